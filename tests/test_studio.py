"""The studio's API without a model: what it takes and what it refuses, the queue, what is kept, and who may ask."""

import asyncio
import hmac
import json
import re
import struct
import zlib
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from ldm.editing.request import EditRequest
from ldm.errors import UserError
from ldm.imaging.images import load_image
from ldm.options import declared
from ldm.studio import app as app_module
from ldm.studio import guard
from ldm.studio.app import PAGE, make_app
from ldm.studio.events import Event, Hub
from ldm.studio.schema import Job, Session, Step, new_id, now
from ldm.studio.settings import StudioSettings
from ldm.studio.store import Store
from ldm.studio.studio import Studio, without_paths
from tests.studio_server import mask_of, photograph, picture, png

API = "/api/v1"
JSON = {"X-Studio": "test", "Content-Type": "application/json"}
OTHERS = "http://other.example"


class Web:
    """An application that is asked without a socket, and its studio, whose workers are never started."""

    def __init__(self, folder: Path, token: str | None = None, **settings):
        self.studio = Studio(StudioSettings(outdir=folder, model="scenes", token=token, **settings))
        self.app = make_app(self.studio.settings, self.studio, token)
        self.said: list[str] = []

    def ask(self, method: str, path: str, headers=None, base="http://127.0.0.1:7860", **more):
        plain = {"X-Studio": "test"} if headers is None else headers

        async def go():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.request(method, path, headers=plain, **more)

        answer = asyncio.run(go())
        self.said.append(answer.text if "image/" not in answer.headers.get("content-type", "") else "")
        self.said.append(str(answer.headers))
        return answer

    def get(self, path, **more):
        return self.ask("GET", API + path, **more)

    def post(self, path, **more):
        return self.ask("POST", API + path, **more)

    def pictures(self) -> dict[str, str]:
        image = self.post("/images", content=photograph()).json()
        mask = self.post("/masks", content=mask_of()).json()
        return {"image": image["id"], "mask": mask["id"]}


@pytest.fixture
def web(tmp_path: Path) -> Web:
    return Web(tmp_path / "kept", queue=3)


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Web:
    """One for all tests that leave nothing behind."""
    return Web(tmp_path_factory.mktemp("studio") / "kept", queue=3)


def problem(answer) -> str:
    """The sentence of an answer that refuses something."""
    assert 400 <= answer.status_code < 600 and answer.json().keys() == {"error"}, answer.text
    return answer.json()["error"]


# ---- what is asked for


def test_every_option_of_an_edit_is_offered_documented_and_taken(web):
    offered = {option["name"] for option in web.get("/options").json()["edit"]}
    schema = web.get("/openapi.json").json()
    body = schema["paths"][f"{API}/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    options = set(declared(EditRequest))
    assert offered == options
    assert set(body["properties"]) == options | {"image", "mask", "session", "model"}
    assert body["properties"]["n_samples"]["maximum"] == 1024
    values = {
        "n_samples": 2,
        "ddim_eta": 0.5,
        "guidance_interval": [0.2, 0.8],
        "H": 64,
        "region": "whole",
        "strip": True,
    }
    job = web.post("/jobs", json={"prompt": "a ball", **web.pictures(), **values})
    assert job.status_code == 201 and job.json()["options"] == {"prompt": "a ball", **values}
    assert job.headers["location"] == f"{API}/jobs/{job.json()['id']}"


@pytest.mark.parametrize(
    "wrong, word",
    [
        ({"n_sample": 2}, "`n_samples` is one"),
        ({"ddim_steps": 0}, "from 1 to 1000"),
        ({"ddim_steps": "many"}, '"many"'),
        ({"prompt": ["a"]}, "a text"),
        ({"skip_steps": 50, "ddim_steps": 50}, "0 to 49"),
        ({"seed": -1}, "seed"),
        ({"seed": {"a": 1}}, "an integer"),
        ({"feather": float("inf")}, "a number"),
        ({"image": "0123456789abcdef"}, "no such image"),
        ({"mask": "../../../etc/passwd"}, "mask"),
        ({"image": None}, "image"),
        ({"session": "ffffffffffffffff"}, "session"),
        ({"session": 5}, "session"),
        ({"model": "/etc"}, "none that there is"),
        ({"model": 7}, "none that there is"),
        ({"outdir": "/tmp"}, "no option"),
    ],
)
def test_a_wrong_request_is_refused_in_a_sentence(asked, wrong, word):
    body = {"prompt": "a ball", **asked.pictures(), **wrong}
    answer = asked.post(
        "/jobs", content=json.dumps(body), headers={"X-Studio": "1", "Content-Type": "application/json"}
    )
    assert answer.status_code in (404, 422) and word in problem(answer)
    assert asked.get("/jobs").json() == []


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"{", b"\xff\xfe", b"[" * 100_000, b'{"prompt": "\\ud800"}'])
def test_a_body_that_is_no_object_is_refused(asked, body):
    answer = asked.post("/jobs", content=body, headers=JSON)
    assert answer.status_code == 422 and problem(answer)


def test_a_full_queue_says_so_and_when_to_come_again(web):
    edit = {"prompt": "a ball", **web.pictures()}
    ahead = [web.post("/jobs", json=edit).json()["ahead"] for _ in range(3)]
    assert ahead == [0, 1, 2]
    full = web.post("/jobs", json=edit)
    assert full.status_code == 429 and int(full.headers["retry-after"]) > 0 and "waiting" in problem(full)
    first = web.get("/jobs").json()[0]["id"]
    assert web.post(f"/jobs/{first}/cancel").json()["state"] == "cancelled"
    assert [job["ahead"] for job in web.get("/jobs").json()] == [None, 0, 1]
    assert web.post("/jobs", json=edit).status_code == 201
    assert {job["state"] for job in web.post("/jobs/cancel").json()} == {"cancelled"}
    assert web.get("/health").json()["queued"] == 0


# ---- pictures


def test_a_photograph_is_known_upright_and_given_back_as_it_was(web):
    exif = Image.Exif()
    exif[0x0112] = 6
    sent = png(picture((60, 40)), "JPEG", exif=exif)
    known = web.post("/images?name=holiday.jpg", content=sent).json()
    assert (known["width"], known["height"], known["format"], known["name"]) == (40, 60, "JPEG", "holiday.jpg")
    file = web.get(f"/images/{known['id']}/file")
    assert file.content == sent and file.headers["content-type"] == "image/jpeg"
    thumb = web.get(f"/images/{known['id']}/thumb")
    assert Image.open(BytesIO(thumb.content)).size == (40, 60)


@pytest.mark.parametrize("kind, more", [("TIFF", {}), ("PNG", {"exif": 3}), ("GIF", {})])
def test_what_browsers_do_not_show_upright_has_a_view(web, kind, more):
    if more:
        exif = Image.Exif()
        exif[0x0112] = more["exif"]
        more = {"exif": exif}
    known = web.post("/images", content=png(picture((60, 40)), kind, **more)).json()
    assert known["plain"] is False
    view = Image.open(BytesIO(web.get(f"/images/{known['id']}/view").content))
    turned = picture((60, 40)).rotate(180) if more else picture((60, 40))
    expected = turned.quantize().convert("RGB") if kind == "GIF" else turned
    assert view.format == "PNG" and view.tobytes() == expected.tobytes()


def odd_pictures() -> dict[str, bytes]:
    """Pictures that one program or another stumbles over."""
    deep = Image.fromarray(np.linspace(0, 65535, 12 * 8).astype(np.uint16).reshape(8, 12))
    garbage = Image.Exif()
    garbage[0x010E] = "x"
    kept = picture((12, 8))
    return {
        "16 bits": png(deep, "TIFF"),
        "CMYK": png(kept.convert("CMYK"), "JPEG"),
        "transparent palette": png(kept.quantize(16), transparency=3),
        "transparent grey": png(Image.merge("LA", (kept.convert("L"), kept.convert("L")))),
        "one bit": png(kept.convert("1")),
        "one pixel": png(Image.new("RGB", (1, 1), "red")),
        "one row": png(Image.new("RGB", (3000, 1), "red")),
        "animated": png(kept, "WEBP", save_all=True, append_images=[Image.new("RGB", (12, 8))], lossless=True),
        "animated GIF": png(kept, "GIF", save_all=True, append_images=[Image.new("RGB", (12, 8))]),
        "AVIF": png(kept, "AVIF"),
        "damaged EXIF": png(kept, exif=b"Exif\0\0garbage"),
    }


@pytest.mark.parametrize("name", odd_pictures())
def test_an_odd_picture_is_seen_as_the_command_line_reads_it(asked, tmp_path, name):
    content = odd_pictures()[name]
    (tmp_path / "picture").write_bytes(content)
    read = load_image(tmp_path / "picture")
    known = asked.post("/images", content=content).json()
    assert (known["width"], known["height"]) == read.rgb.size
    view = Image.open(BytesIO(asked.get(f"/images/{known['id']}/view").content))
    assert view.convert("RGB").tobytes() == read.rgb.tobytes()
    assert (read.alpha is not None) == ("A" in view.getbands())
    thumb = asked.get(f"/images/{known['id']}/thumb")
    assert thumb.status_code == 200 and max(Image.open(BytesIO(thumb.content)).size) <= 320


def files_of(web: Web) -> set[Path]:
    return {path for path in web.studio.store.root.rglob("*") if path.is_file()}


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is huge."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize(
    "content, word",
    [
        (SVG, "no picture"),
        (b"<!doctype html><script>alert(1)</script>", "no picture"),
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n", "no picture"),
        (photograph()[:200], "no picture"),
        (bomb(30_000, 30_000), "megapixels"),
        (bomb(8_000, 7_000), "56.0 megapixels"),
        (png(picture(), "PPM"), "PNG, JPEG"),
        (png(picture(), "TIFF")[:-4000], "no picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "HEIC"),
        (png(Image.new("F", (8, 8), 0.5), "TIFF"), "32 bits"),
        (png(Image.new("I", (8, 8), 1 << 20), "TIFF"), "32 bits"),
        (b"%PDF-1.7", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
    ],
)
def test_what_is_no_picture_is_refused_whatever_it_is_called(asked, kind, content, word):
    headers = {"X-Studio": "1", "Content-Type": "image/png"}
    before = files_of(asked)
    answer = asked.post(f"/{kind}?name=a.png", content=content, headers=headers)
    assert answer.status_code == 422 and word in problem(answer)
    assert files_of(asked) == before


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b.png", "a\\b.png", "..", "a\0b", "a\nb", "x" * 500])
def test_a_name_that_is_a_path_is_refused(asked, name):
    assert "slashes" in problem(asked.post("/images", params={"name": name}, content=photograph()))


@pytest.mark.parametrize("id", ["..%2f..%2fetc%2fpasswd", "../../job", "0123", "g" * 16, "0" * 17, "%00", "A" * 16])
@pytest.mark.parametrize(
    "path", ["/images/{}", "/images/{}/file", "/jobs/{}", "/jobs/{}/results/0", "/sessions/{}/zip"]
)
def test_an_id_that_is_none_leads_nowhere(asked, path, id):
    answer = asked.get(path.format(id))
    assert answer.status_code == 404 and problem(answer)


def test_too_large_a_body_is_refused_however_it_is_sent(tmp_path):
    web = Web(tmp_path / "kept", max_upload_mb=1)
    large = bytes(1_000_001)

    async def pieces():
        for _ in range(30):
            yield bytes(100_000)

    assert "too large" in problem(web.post("/images", content=large))
    assert "too large" in problem(web.post("/images", content=pieces()))
    assert web.post("/jobs", content=large[:300_000]).status_code == 413
    lying = {"X-Studio": "1", "Content-Length": "-5"}
    assert web.post("/images", content=b"", headers=lying).status_code == 413
    assert not [*(tmp_path / "kept/incoming").iterdir()]


# ---- who may ask


def test_what_changes_something_needs_the_header(asked):
    for path in ("/images", "/jobs", "/jobs/cancel", "/sessions"):
        assert asked.post(path, headers={}, content=b"").status_code == 403
    assert asked.ask("DELETE", f"{API}/jobs/{new_id()}", headers={}).status_code == 403


@pytest.mark.parametrize("more", [{"Origin": OTHERS}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_page_of_another_site_changes_nothing(asked, more):
    answer = asked.post("/images", headers={"X-Studio": "1", **more}, content=photograph())
    assert answer.status_code == 403 and "another site" in problem(answer)
    own = asked.post("/images", headers={"X-Studio": "1", "Origin": "http://127.0.0.1:7860"}, content=photograph())
    assert own.status_code == 201


def test_no_other_site_may_read_an_answer(asked):
    ask = {"Origin": OTHERS, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-studio"}
    for answer in (asked.ask("OPTIONS", f"{API}/jobs", headers=ask), asked.get("/health", headers={"Origin": OTHERS})):
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("name", ["attacker.example", "attacker.example:7860", "127.0.0.1.attacker.example", ""])
def test_another_name_for_this_machine_is_not_answered_to(asked, name):
    """DNS rebinding: the name of a page of others that now means 127.0.0.1."""
    assert asked.get("/health", headers={"Host": name}).status_code == 421
    for own in ("localhost:7860", "127.0.0.1", "[::1]:7860"):
        assert asked.get("/health", headers={"Host": own}).status_code == 200


def test_a_token_is_asked_for_in_constant_time(tmp_path, monkeypatch):
    web, compared = Web(tmp_path / "kept", token="correct-horse"), []
    real = hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append(a) or real(a, b))
    wrong = ["Bearer wrong", "Bearer correct-hors", "Basic correct-horse", "Bearer ", "Bearer é"]
    for value in wrong:
        headers = {"Authorization": value.encode("latin-1")}
        assert web.get("/health", headers=headers).status_code == 401
        assert web.ask("GET", "/", headers=headers).status_code == 401
    assert web.get("/health", headers={"Cookie": "studio-token=wrong"}).status_code == 401
    assert web.ask("GET", "/?token=wrong").status_code == 401
    assert len(compared) >= 5
    assert web.get("/health", headers={"Authorization": "Bearer correct-horse"}).status_code == 200
    came = web.ask("GET", "/?token=correct-horse")
    cookie = came.headers["set-cookie"]
    assert came.status_code == 303 and came.headers["location"] == "/"
    astray = web.ask("GET", "/%2fother.example/%0d%0aa?token=correct-horse")
    assert astray.headers["location"] == "/other.example/%0D%0Aa", "and never to another host"
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert web.ask("GET", "/", headers={"Cookie": cookie.split(";")[0]}).status_code == 200
    assert web.post("/jobs/cancel", headers={"Cookie": cookie.split(";")[0]}).status_code == 403, "and the header too"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_address_for_others_needs_a_token(host):
    with pytest.raises(UserError, match="token"):
        StudioSettings(host=host)
    assert len(str(StudioSettings(host=host, token="auto").secret())) > 20
    with pytest.raises(UserError, match="guess"):
        StudioSettings(host=host, token="1234")
    with pytest.raises(UserError, match="other characters"):
        StudioSettings(host=host, token="my secret; Path=/")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_an_address_of_this_machine_alone_needs_none(host):
    assert StudioSettings(host=host).secret() is None


# ---- the page


def test_the_page_runs_no_script_but_its_own(asked):
    policy = asked.ask("GET", "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
    docs = asked.get("/docs").headers["content-security-policy"]
    assert "script-src 'self';" in docs
    for page in PAGE.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", text)


def test_the_page_asks_no_other_host():
    files = [path for path in PAGE.rglob("*") if path.suffix in (".html", ".css", ".js", ".svg")]
    assert len(files) > 10
    for path in files:
        others = re.findall(r"(?:https?:)?//(?!www\.w3\.org/)[\w-]+\.\w[\w.-]*/", path.read_text(encoding="utf-8"))
        assert not others, path


def test_the_page_parses_no_text_as_html():
    for path in (PAGE / "js").iterdir():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", path.read_text()), path


@pytest.mark.parametrize("index", ["9" * 300, "9" * 5000, "-1", "0?restored=" + "a" * 4000])
@pytest.mark.parametrize("what", ["results", "view"])
def test_a_prediction_of_no_number_is_not_there(web, what, index):
    job = web.post("/jobs", json={"prompt": "a ball", **web.pictures()}).json()["id"]
    assert web.get(f"/jobs/{job}/{what}/{index}").status_code == 404


@pytest.mark.parametrize("path", ["/..%2fapp.py", "/js/..%2f..%2fapp.py", "/%2e%2e/app.py", "//etc/passwd"])
def test_nothing_beside_the_page_is_served(asked, path):
    assert asked.ask("GET", path).status_code in (404, 405)


def test_the_documentation_s_own_files_are_here(asked):
    text = asked.get("/docs").text
    for path in re.findall(r'(?:src|href)="([^"]+)"', text):
        assert asked.ask("GET", path).status_code == 200, path


# ---- nothing of the machine


def test_no_answer_holds_a_path_of_the_machine(tmp_path, monkeypatch):
    web = Web(tmp_path / "kept", queue=3)
    pictures = web.pictures()
    job = web.post("/jobs", json={"prompt": "a ball", **pictures}).json()
    job_now = web.studio.jobs[job["id"]]
    web.studio._end(job_now, "failed", f'cannot write "{tmp_path}/kept/jobs/x/samples" (No space left on device)')
    (web.studio.store.root / "images" / f"{pictures['image']}.png").unlink()
    for path in ("/jobs", f"/jobs/{job['id']}", "/models", "/health", "/sessions", f"/images/{pictures['image']}/file"):
        web.get(path)
    web.post("/jobs", json={"prompt": "a ball", **pictures})

    def broken(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path / "kept/incoming/x"))

    monkeypatch.setattr(app_module, "look_at", broken)
    assert problem(web.post("/images", content=photograph()))
    said = "".join(web.said)
    assert "No space left" in said and "samples" in said
    for part in (str(tmp_path), str(Path(__file__).parents[1]), str(Path.home()) + "/"):
        assert part not in said


@pytest.mark.parametrize(
    "text, told",
    [
        ('the image "/home/ann/my-pictures/a b.png" is empty', 'the image "a b.png" is empty'),
        ('cannot write "/home/Ann Lee/my pictures/kept/a.png" (full)', 'cannot write "a.png" (full)'),
        ("~/models/own/config.yaml is no config", "config.yaml is no config"),
        ("/a/b.py: no such file", "b.py: no such file"),
        ("give 1/2 or and/or", "give 1/2 or and/or"),
        ("128x64 `W=64`", "128x64 `W=64`"),
    ],
)
def test_paths_in_messages_become_names(text, told):
    assert without_paths(text) == told


def test_messages_call_pictures_as_their_owner_does(web):
    """On disk they have other names."""
    sent = {"image": web.post("/images?name=holiday.jpg", content=photograph()).json()["id"]}
    sent["mask"] = web.post("/masks", content=mask_of()).json()["id"]
    job = web.studio.jobs[web.post("/jobs", json={"prompt": "a ball", **sent}).json()["id"]]
    image, mask = web.studio.store.file("images", sent["image"]), web.studio.store.file("masks", sent["mask"])
    told = {
        f'"{image}" has 2 frames': '"holiday.jpg" has 2 frames',
        f'the mask "{mask}" is all black': "the mask is all black",
        f'"{mask}" is empty': "the mask is empty",
    }
    for text, known in told.items():
        assert web.studio._in_their_names(job, text) == known


# ---- what is kept


def kept_job(store: Store, age_days: float = 0, **more) -> Job:
    at = now() - age_days * 86_400
    values = {"image": new_id(), "mask": new_id(), "options": {"prompt": "a ball"}, "created": at, "ended": at}
    job = Job(id=new_id(), kind="edit", **{"state": "done"} | values | more)
    store.save_job(job)
    (store.folder(job.id) / "result.bin").write_bytes(bytes(100_000))
    return job


def test_a_start_takes_up_the_queue_where_it_was_left(tmp_path):
    store = Store(tmp_path)
    times = {"first": 3.0, "second": 2.0, "third": 1.0}
    jobs = {name: kept_job(store, age, state="queued", ended=None) for name, age in times.items()}
    running = kept_job(store, 4.0, state="running", ended=None, attempts=1)
    made = {"index": 0, "seed": 1, "distance": None, "measures": {}}
    fatal = kept_job(store, 5.0, state="running", ended=None, attempts=2)
    ready = kept_job(
        store,
        6.0,
        state="running",
        ended=None,
        attempts=1,
        results=[made],
    )
    (store.folder(ready.id) / "samples").mkdir()
    (store.folder(ready.id) / "samples/run.json").write_text("{}")
    damaged = kept_job(store)
    (store.folder(damaged.id) / "job.json").write_text('{"id": "')
    studio = Studio(StudioSettings(outdir=tmp_path))
    for job in studio.store.jobs():
        studio._take_up(job)
    assert list(studio.waiting) == [running.id, *(jobs[name].id for name in times)]
    assert studio.jobs[fatal.id].state == "failed" and "twice" in str(studio.jobs[fatal.id].error)
    assert studio.jobs[ready.id].state == "done" and studio.jobs[ready.id].saved
    assert damaged.id not in studio.jobs


def test_what_is_old_goes_and_sessions_go_as_a_whole(tmp_path):
    store = Store(tmp_path)
    old, new = kept_job(store, 40), kept_job(store, 1)
    waiting = kept_job(store, 50, state="queued", ended=None)
    session = Session(steps=[Step(image=new_id())], used=now())
    store.save_session(session)
    of_session = kept_job(store, 60, session=session.id)
    jobs = [old, new, waiting, of_session]
    assert store.prune(jobs, keep_days=30, keep_gb=1) == [old.id]
    left = {path.name for path in (tmp_path / "jobs").iterdir()}
    assert left == {new.id, waiting.id, of_session.id}, "what waits stays, and what belongs to a session in use"


def test_a_folder_that_cannot_be_used_is_told_in_a_line(tmp_path):
    (tmp_path / "images").write_text("no folder")
    with pytest.raises(UserError, match=r"cannot write .*images"):
        Store(tmp_path)


def test_the_oldest_go_while_there_is_too_much(tmp_path):
    store = Store(tmp_path)
    jobs = [kept_job(store, age) for age in (1, 2, 3, 4)]
    gone = store.prune(jobs, keep_days=30, keep_gb=250_000 / 1e9)
    assert gone == [jobs[3].id, jobs[2].id]


def test_a_full_disk_is_told_and_nothing_is_queued(web, monkeypatch):
    pictures = web.pictures()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ldm.files.os.replace", full)
    answer = web.post("/jobs", json={"prompt": "a ball", **pictures})
    assert answer.status_code == 422 and "No space left" in problem(answer)
    assert web.get("/jobs").json() == []
    monkeypatch.setattr("ldm.studio.store.os.replace", full)
    assert web.post("/images", content=photograph()).status_code == 507
    monkeypatch.undo()
    assert web.post("/jobs", json={"prompt": "a ball", **pictures}).status_code == 201


# ---- news


def test_a_listener_hears_of_its_job_until_it_ends():
    async def listen():
        hub = Hub()
        stream = hub.stream(
            lambda: Event("job", {"state": "queued"}, "a"), "a", lambda event: event.data["state"] == "done"
        )
        first = await anext(stream)
        hub.tell(Event("job", {"state": "running"}, "b"))
        hub.tell(Event("job", {"state": "done"}, "a"))
        rest = [piece async for piece in stream]
        return first, rest, hub.listeners

    first, rest, left = asyncio.run(listen())
    assert b'"queued"' in first and [b'"done"' in piece for piece in rest] == [True] and not left


def test_a_slow_listener_misses_previews_first_and_then_is_sent_away():
    async def listen():
        hub = Hub()
        stream = hub.stream(lambda: Event("hello", {}))
        await anext(stream)
        for _ in range(1000):
            hub.tell(Event("preview", {}, lossy=True))
        (listener,) = hub.listeners
        waiting = listener.queue.qsize()
        for _ in range(1000):
            hub.tell(Event("job", {}))
        return waiting, [piece async for piece in stream], hub.listeners

    waiting, rest, left = asyncio.run(listen())
    assert waiting < 200 and rest == [] and not left


def test_the_server_s_process_imports_no_torch(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, time; begun = time.time()\n"
        "import ldm.studio.server, ldm.studio.app\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
