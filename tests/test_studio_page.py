"""The studio's page in a real browser: Debian's Chromium, driven by Playwright. `make studio-test` installs both."""

import asyncio
import base64
import os
import shutil
import signal
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from ldm.runs.places import LOCK, locked
from tests.studio_server import Server, photograph, picture, png
from tests.test_studio import Web
from tests.tiny import save_tiny_model

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="no browser tests: pip install playwright")
if CHROMIUM is None:
    pytest.skip("no browser tests: there is no Chromium (make studio-test installs it)", allow_module_level=True)

SIZE = (400, 300)
LONG = 120_000  # milliseconds: the machine may be busy


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = save_tiny_model(tmp_path_factory.mktemp("tiny"))
    one = Server(model, tmp_path_factory.mktemp("studio") / "kept", ready=False)
    yield one
    assert one.stop() == 0


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """The page, and what a user does there. Coordinates are of the photograph."""

    def __init__(self, page, server: Server):
        self.page, self.server, self.faults = page, server, []
        page.set_default_timeout(LONG)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.faults.append(message.text))
        page.on("request", lambda request: self.faults.append(request.url) if self.is_elsewhere(request.url) else None)
        page.goto(server.url)
        page.wait_for_selector("#settings-fields .field", state="attached")

    def is_elsewhere(self, url: str) -> bool:
        return not url.startswith((self.server.url, "data:", "blob:"))

    def open(self, content: bytes | None = None, name: str = "a photo.png") -> "Page":
        content = photograph(SIZE) if content is None else content
        self.page.set_input_files("#photo-file", {"name": name, "mimeType": "image/png", "buffer": content})
        self.page.wait_for_selector("body:not(.empty)")
        with Image.open(BytesIO(content)) as image:
            self.size = image.size
        return self

    def hold_pictures(self, but: str | None = None) -> list:
        """Keep back what the page fetches of predictions, save URLs with `but` in them; the list fills with it."""
        held: list = []

        def hold(route) -> None:
            late = route.request.resource_type == "fetch" and (but is None or but not in route.request.url)
            held.append(route) if late else route.continue_()

        self.page.route("**/jobs/*/view/*", hold)
        return held

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel is on the screen while the photograph fits."""
        box = self.page.locator("#viewport").bounding_box()
        inset = min(24, box["width"] / 20)
        scale = min((box["width"] - 2 * inset) / self.size[0], (box["height"] - 2 * inset) / self.size[1], 8)
        left = box["x"] + (box["width"] - self.size[0] * scale) / 2
        return left + x * scale, box["y"] + (box["height"] - self.size[1] * scale) / 2 + y * scale

    def stroke(self, *points: tuple[float, float], button: str = "left") -> None:
        mouse = self.page.mouse
        mouse.move(*self.at(*points[0]))
        mouse.down(button=button)
        for point in points[1:]:
            mouse.move(*self.at(*point), steps=4)
        mouse.up(button=button)

    def brush(self, size: int) -> int:
        """Bring the brush's size near to one by its keys; how large it is then."""
        self.page.focus("#viewport")
        for _ in range(200):
            now = int(self.page.inner_text("#brush-size-text").split()[0])
            if abs(now - size) <= max(1, round(now * 0.12)) // 2:
                return now
            self.page.keyboard.press("]" if now < size else "[")
        raise AssertionError(now)

    def mask(self) -> np.ndarray:
        """The mask as it is exported."""
        with self.page.expect_download() as download:
            self.page.click("#export-mask")
        with Image.open(download.value.path()) as image:
            assert image.mode == "L"
            return np.asarray(image)

    def run(self, prompt: str = "a red ball", **options: int) -> str:
        """Press run; the id of the job."""
        before = {job["id"] for job in self.server.get("/jobs")}
        self.page.fill("#prompt", prompt)
        options = {"n_samples": 2} | options
        self.page.fill("#n_samples", str(options.pop("n_samples")))
        if self.page.locator("#settings").get_attribute("open") is None:
            self.page.click("#settings > summary")
        for name, value in ({"ddim_steps": 4} | options).items():
            self.page.fill(f"#option-{name}", str(value))
        self.page.click("#run")
        (job,) = Server.wait(lambda: {job["id"] for job in self.server.get("/jobs")} - before)
        return job

    def shown(self) -> None:
        """Wait until a saved prediction is on the stage."""
        self.page.wait_for_selector("#resultbar:not([hidden])")
        self.page.wait_for_selector("#use:not([disabled])")

    def colour(self, x: float, y: float) -> tuple[int, ...]:
        """What is seen at a pixel of the photograph."""
        left, top = self.at(x, y)
        shot = self.page.screenshot(clip={"x": left, "y": top, "width": 1, "height": 1})
        return Image.open(BytesIO(shot)).convert("RGB").getpixel((0, 0))


@pytest.fixture
def open_page(server, chromium):
    """A function that opens the page in a browser that has never seen it."""
    contexts, pages = [], []

    def make(**context) -> Page:
        contexts.append(chromium.new_context(**{"viewport": {"width": 1280, "height": 800}} | context))
        pages.append(Page(contexts[-1].new_page(), server))
        return pages[-1]

    yield make
    for page in pages:
        assert page.faults == []
    for context in contexts:
        context.close()
    server.post("/jobs/cancel")


@pytest.fixture
def page(open_page) -> Page:
    return open_page().open()


def test_a_photograph_is_dropped(open_page):
    page = open_page()
    assert page.page.is_visible("#drop")
    text = base64.b64encode(photograph(SIZE)).decode()
    transfer = page.page.evaluate_handle(
        """(text) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
            return transfer;
        }""",
        text,
    )
    page.page.dispatch_event("main", "dragenter", {"dataTransfer": transfer})
    assert page.page.is_visible("#dropping")
    page.page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    page.page.wait_for_selector("body:not(.empty)")
    assert not page.page.is_visible("#drop") and not page.page.is_visible("#dropping")
    assert "dropped.png, 400 by 300" in page.page.get_attribute("#viewport", "aria-label")
    page.page.set_input_files("#photo-file", {"name": "a.svg", "mimeType": "image/svg+xml", "buffer": b"<svg/>"})
    page.page.wait_for_selector(".toast.bad")
    assert "no picture" in page.page.inner_text(".toast.bad")
    page.faults.clear()  # the browser's own note that the studio refused it


def paste(page: Page, target: str, **data: str) -> None:
    """Paste into an element: `text`, and a PNG in base64 as `picture`."""
    page.page.evaluate(
        """([target, { text, picture }]) => {
            const transfer = new DataTransfer();
            if (text) transfer.setData("text/plain", text);
            const bytes = Uint8Array.from(atob(picture), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], "image.png", { type: "image/png" }));
            const event = new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
            document.querySelector(target).dispatchEvent(event);
        }""",
        [target, data],
    )


def test_a_picture_is_pasted_and_text_with_a_picture_of_itself_is_not(open_page):
    page = open_page()
    paste(page, "body", picture=base64.b64encode(photograph(SIZE)).decode())
    page.page.wait_for_selector("body:not(.empty)")
    shown = page.page.get_attribute("#viewport", "aria-label")
    assert "image.png, 400 by 300" in shown
    paste(page, "#prompt", text="a red ball", picture=base64.b64encode(photograph((60, 40))).decode())
    time.sleep(0.3)
    assert page.page.get_attribute("#viewport", "aria-label") == shown


def test_two_tabs_keep_to_their_own_photographs(page):
    other = Page(page.page.context.new_page(), page.server)
    other.page.wait_for_selector("body:not(.empty)")  # a new tab goes on with what was done last
    other.open(photograph((300, 200)), "other.png")
    other.page.wait_for_selector('#viewport[aria-label*="other.png"]')
    page.page.reload()
    page.page.wait_for_selector("body:not(.empty)")
    assert "a photo.png, 400 by 300" in page.page.get_attribute("#viewport", "aria-label")
    assert other.faults == []


def test_a_tab_that_nobody_sees_gives_up_its_line(page):
    """A browser has six to a server: with more tabs than that, none would be left for the one in sight."""
    page.page.clock.install()

    def become(state: str) -> None:
        page.page.evaluate(
            """(state) => {
                Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            state,
        )

    become("hidden")
    page.page.clock.fast_forward(31_000)
    job = page.server.edit(page.server.pictures(), ddim_steps=1)["id"]
    page.server.ended(job)
    assert page.page.locator(f'[data-job="{job}"]').count() == 0
    become("visible")
    page.page.wait_for_selector(f'[data-job="{job}"]')


def test_a_token_opens_the_page_and_no_script_can_read_it(chromium, tmp_path):
    """A studio whose workers are never started, as others in the network see it."""
    web = Web(tmp_path / "kept", host="0.0.0.0", token="correct-horse")
    server = uvicorn.Server(uvicorn.Config(web.app, port=0, lifespan="off", log_level="error"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(),), daemon=True)
    thread.start()
    Server.wait(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    try:
        tab = chromium.new_context().new_page()
        assert tab.goto(url).status == 401
        assert tab.goto(f"{url}?token=wrong-horse").status == 401
        tab.goto(f"{url}?token=correct-horse")
        assert tab.url == url, "the token does not stay in sight"
        tab.wait_for_selector("#settings-fields .field", state="attached")
        assert tab.evaluate("() => document.cookie") == ""
        tab.context.clear_cookies()  # as after a start with another token
        loop.call_soon_threadsafe(web.studio.hub.close)
        Server.wait(lambda: "asks for its token" in tab.inner_text("#status-text"))
        tab.context.close()
    finally:
        server.should_exit = True
        thread.join(10)
        loop.close()


def test_strokes_are_painted_erased_undone_and_redone(page):
    size = page.brush(40)
    page.stroke((100, 100), (200, 100))
    first = page.mask()
    assert set(np.unique(first)) == {0, 255}
    rows, columns = np.nonzero(first)
    assert np.ptp(rows) == pytest.approx(size - 1, abs=1.5) and np.ptp(columns) == pytest.approx(size + 99, abs=3)
    page.stroke((150, 80), (150, 120), button="right")
    assert page.mask()[100, 150] == 0 and page.mask()[100, 110] == 255
    page.page.keyboard.press("Control+z")
    assert (page.mask() == first).all()
    page.page.keyboard.press("Control+z")
    assert not page.mask().any()
    page.page.keyboard.press("Control+Shift+Z")
    assert (page.mask() == first).all()
    page.page.keyboard.press("e")
    page.stroke((100, 100), (200, 100))
    assert not page.mask().any()


def test_a_line_a_rectangle_a_lasso_and_one_pixel(page):
    page.brush(1)
    page.stroke((50.5, 50.5))
    assert page.mask().sum() == 255
    page.page.keyboard.down("Shift")
    page.stroke((90.5, 50.5))
    page.page.keyboard.up("Shift")
    line = page.mask()
    assert line[50, 50:91].all() and np.count_nonzero(line) == 41
    page.page.keyboard.press("r")
    page.stroke((200, 100), (240, 120))
    box = np.argwhere(page.mask()[:, 150:])
    assert box.min(0) == pytest.approx([100, 50], abs=1) and np.ptp(box, axis=0) == pytest.approx([19, 39], abs=2)
    page.page.keyboard.press("Delete")
    assert not page.mask().any()
    page.page.keyboard.press("l")
    page.stroke((100, 100), (200, 100), (200, 200), (100, 100))
    lasso = page.mask()
    assert lasso[120, 180] and not lasso[180, 120]
    assert np.count_nonzero(lasso) == pytest.approx(5000, rel=0.06)


def test_fill_invert_grow_shrink_and_a_soft_edge(page):
    page.brush(10)
    page.stroke((100, 100), (200, 100), (200, 200), (100, 200), (100, 100))
    assert not page.mask()[150, 150]
    page.page.keyboard.press("f")
    filled = page.mask()
    assert filled[150, 150] == 255 and not filled[50, 50]
    page.page.click('[data-do="grow"]')
    grown = page.mask()
    page.page.click('[data-do="shrink"]')
    assert (grown >= filled).all() and grown.sum() > filled.sum()
    assert np.abs(page.mask().astype(int) - filled).sum() / 255 < 60, "grown and shrunk, only corners differ"
    page.page.keyboard.press("i")
    assert page.mask()[150, 150] == 0 and page.mask()[50, 50] == 255
    page.page.keyboard.press("Delete")
    page.brush(61)
    page.page.fill("#brush-soft", "100")
    page.stroke((150, 150))
    soft = page.mask()[150, 110:191].astype(int)
    assert soft.max() > 240 and len(np.unique(soft)) > 20 and (np.diff(soft[:40]) >= 0).all()


def test_a_mask_is_exported_and_imported_as_it_is(page):
    page.stroke((120, 90), (180, 140))
    mask = page.mask()
    page.page.keyboard.press("Delete")
    page.page.set_input_files(
        "#mask-file", {"name": "m.png", "mimeType": "image/png", "buffer": png(Image.fromarray(mask))}
    )
    Server.wait(lambda: page.page.is_enabled('[data-do="undo"]'))
    time.sleep(0.2)
    assert (page.mask() == mask).all()


def test_the_view_zooms_to_the_pointer_and_moves(page):
    x, y = page.at(100, 100)
    before = page.colour(100, 100)
    page.page.mouse.move(x, y)
    page.page.keyboard.down("Control")
    page.page.mouse.wheel(0, -600)
    page.page.keyboard.up("Control")
    zoom = int(page.page.inner_text("#zoom-text").split()[0])
    page.page.keyboard.press("1")
    assert page.page.inner_text("#zoom-text") == "100 %" and zoom > 200
    page.page.keyboard.press("0")
    time.sleep(0.1)
    assert page.colour(100, 100) == before
    size = page.page.inner_text("#brush-size-text")
    page.page.mouse.move(x, y)
    page.page.mouse.wheel(0, -100)
    assert page.page.inner_text("#brush-size-text") != size


def test_a_run_forms_before_the_eyes_and_ends_compared(page):
    box = page.page.locator("#viewport").bounding_box()
    page.stroke((200, 150), (260, 150))
    job = page.run(ddim_steps=60)
    page.page.wait_for_selector("#grid .forming")
    page.page.wait_for_selector("#tag:not([hidden])")  # an estimate, in the photograph
    assert page.page.inner_text("#tag") == "Forming"
    assert "Painting" in page.page.inner_text("#progress-text")
    page.shown()
    assert "left" not in page.page.inner_text("#jobs")
    about = page.page.inner_text("#result-about")
    assert "1 of 2" in about and "0 of 255" in about
    assert page.page.locator("#grid .shot").count() == 2
    assert page.page.locator("#viewport").bounding_box() == box, "the picture does not jump when its result comes"
    time.sleep(0.3)
    after, outside = page.colour(230, 150), page.colour(30, 280)
    page.page.focus("#viewport")
    page.page.keyboard.down("c")
    time.sleep(0.2)
    assert page.page.inner_text("#tag") == "Input"
    input_, original = page.colour(230, 150), picture(SIZE).getpixel((230, 150))
    page.page.keyboard.up("c")
    assert input_ == pytest.approx(original, abs=3) and after != input_ and page.colour(30, 280) == outside
    page.page.keyboard.press("s")
    split = page.page.locator("#split")
    assert split.is_visible()
    split.press("ArrowRight")
    page.page.focus("#viewport")
    page.page.keyboard.press("ArrowRight")
    Server.wait(lambda: "2 of 2" in page.page.inner_text("#result-about"))
    with page.page.expect_download() as download:
        page.page.click("#download")
    result = page.server.client.get(f"/jobs/{job}/results/1").content
    assert Path(download.value.path()).read_bytes() == result
    assert page.server.client.delete(f"/jobs/{job}").status_code == 204  # as pruning does
    page.page.wait_for_selector("#resultbar", state="hidden")
    assert page.mask().any(), "the mask has survived the run"


def test_a_run_that_is_saved_while_its_picture_is_fetched_can_be_used(page):
    """Predictions are told of before they are saved: the word that they are may come before the picture does."""
    held = page.hold_pictures()
    page.stroke((200, 150), (220, 150))
    job = page.run(n_samples=1)
    Server.wait(lambda: "1 prediction" in page.page.inner_text(f'[data-job="{job}"]') and held)
    assert page.page.is_hidden("#resultbar"), "the run has ended before its picture is there"
    held[0].continue_()
    page.page.wait_for_selector("#resultbar:not([hidden])")
    assert page.page.is_enabled("#use") and page.page.is_enabled("#restore")
    assert page.page.get_attribute("#download", "aria-disabled") == "false"


def test_a_run_that_loses_its_predictions_while_they_are_shown_gives_the_picture_back(page):
    """They are shown before they are saved: until then they are lost where the model's process dies."""
    page.stroke((200, 150), (220, 150))
    page.page.hover("#run")  # no ring of the brush on the canvas
    before = page.colour(210, 150)
    job = page.run(n_samples=1, ddim_steps=60)
    with locked(page.server.outdir / "jobs" / job / LOCK):  # it cannot be saved
        page.page.wait_for_selector("#resultbar:not([hidden])")
        assert page.page.is_disabled("#use")
        Server.wait(lambda: page.colour(210, 150) != before)
        (worker,) = page.server.workers()
        os.kill(worker, signal.SIGKILL)
        failed = page.server.ended(job)
        assert failed["state"] == "failed" and failed["results"] == []
        Server.wait(lambda: "was killed" in page.page.inner_text(f'[data-job="{job}"]'))
    assert page.page.is_hidden("#resultbar") and page.page.is_visible("#brushbar")
    Server.wait(lambda: page.colour(210, 150) == before)


def test_a_prediction_of_another_input_is_shown_by_one_click(page):
    page.stroke((100, 100), (140, 100))
    page.run()
    page.shown()
    page.page.click("#use")
    page.page.wait_for_selector('#steps li:nth-child(2) .step[aria-current="true"]')
    page.page.wait_for_selector("#resultbar", state="hidden")
    page.page.click('#grid [data-index="1"]')
    page.page.wait_for_selector('#steps li:nth-child(1) .step[aria-current="true"]')
    page.shown()
    assert "2 of 2" in page.page.inner_text("#result-about")
    assert page.page.get_attribute('#grid [data-index="1"]', "aria-current") == "true"


def test_a_picture_that_comes_late_does_not_replace_its_restoration(page):
    page.stroke((200, 150), (240, 150))
    job = page.run(n_samples=1)
    page.shown()
    held = page.hold_pictures(but="restored")
    page.page.click('#grid [data-index="0"]')
    page.server.post(f"/jobs/{job}/restore", {"index": 0, "optimization_steps": 1})
    Server.wait(lambda: "background restored" in page.page.inner_text("#result-about") and held)
    with page.page.expect_response(held[0].request.url) as response:
        held[0].continue_()
    response.value.finished()
    time.sleep(0.3)
    assert "background restored" in page.page.inner_text("#result-about"), "what comes late changes nothing"


def test_a_run_is_cancelled_and_others_wait_in_their_order(page):
    page.stroke((200, 150), (220, 150))
    first = page.run(ddim_steps=1000)
    second = page.run("a blue cube", ddim_steps=3)
    third = page.run("a pink ball", ddim_steps=3)
    Server.wait(lambda: "1 before it" in page.page.inner_text(f'[data-job="{second}"]'))
    Server.wait(lambda: "2 before it" in page.page.inner_text(f'[data-job="{third}"]'))
    page.page.click(f'li:has([data-job="{third}"]) [title="Cancel"]')
    page.page.click(f'li:has([data-job="{first}"]) [title="Cancel"]')
    Server.wait(lambda: "Cancelled" in page.page.inner_text(f'[data-job="{first}"]'))
    assert page.server.ended(second)["state"] == "done"
    assert page.server.get(f"/jobs/{third}")["state"] == "cancelled"


def test_two_edits_are_chained_and_the_first_is_gone_back_to(page):
    page.stroke((100, 100), (140, 100))
    page.run()
    page.shown()
    page.page.click("#use")
    page.page.wait_for_selector('#steps li:nth-child(2) .step[aria-current="true"]')
    assert not page.mask().any(), "the next step begins without a mask"
    page.stroke((300, 200), (330, 200))
    page.run("a blue cube")
    page.shown()
    slow: list = []
    page.page.route("**/images/*/file", lambda route: route.continue_() if slow else slow.append(route))
    page.page.click("#use")
    Server.wait(lambda: page.page.locator("#steps li").count() == 3 and slow)
    first = "#steps li:nth-child(1) .step"
    page.page.click(first)  # while the new input is still on its way
    Server.wait(lambda: page.page.get_attribute(first, "aria-current") == "true")
    slow[0].continue_()
    time.sleep(0.3)
    assert page.page.get_attribute(first, "aria-current") == "true", "what comes late changes nothing"
    mask = page.mask()
    assert mask[100, 120] and not mask[200, 315], "and its own mask is there again"
    with page.page.expect_download() as download:
        page.page.click("#download-session")
    assert Path(download.value.path()).read_bytes()[:2] == b"PK"
    (session,) = [one for one in page.server.get("/sessions") if len(one["steps"]) == 3]
    assert [step["prompt"] for step in session["steps"]] == ["", "a red ball", "a blue cube"]


@pytest.mark.slow
def test_a_background_is_restored_and_more_is_made(page):
    page.stroke((200, 150), (240, 150))
    job = page.run(n_samples=1)
    page.shown()
    page.page.click("#restore")
    page.page.wait_for_selector(".shot .mark")
    Server.wait(lambda: "restored" in page.page.inner_text("#result-about"))
    seeds = [one["seed"] for one in page.server.get(f"/jobs/{job}")["results"]]
    before = {one["id"] for one in page.server.get("/jobs")}
    page.page.click("#more")
    (more,) = Server.wait(lambda: {one["id"] for one in page.server.get("/jobs")} - before)
    assert page.server.ended(more)["results"][0]["seed"] == seeds[0] + 1


def test_a_reload_in_the_middle_loses_nothing(page):
    page.stroke((200, 150), (260, 170))
    mask = page.mask()
    job = page.run("a pink ball", ddim_steps=60)
    page.page.wait_for_selector("#tag:not([hidden])")
    page.page.reload()
    page.page.wait_for_selector("body:not(.empty)")
    assert page.page.input_value("#prompt") == "a pink ball" and page.page.input_value("#option-ddim_steps") == "60"
    assert (page.mask() == mask).all()
    page.page.wait_for_selector("#grid .forming, #resultbar:not([hidden])")
    page.shown()
    assert page.server.get(f"/jobs/{job}")["state"] == "done"


def test_words_that_the_model_does_not_know_are_marked(page):
    page.server.wait(lambda: page.server.get("/health")["status"] == "ready")
    page.page.wait_for_selector("#vocabulary", state="attached")
    page.page.fill("#prompt", "a red Dog, a ball; caf\u00e9")
    Server.wait(lambda: page.page.locator("#marks mark").all_inner_texts() == ["Dog", "caf\u00e9"])
    assert "“Dog”, “café”" in page.page.inner_text("#prompt-words")
    page.page.fill("#prompt", "a red ball")
    assert page.page.locator("#marks mark").count() == 0 and page.page.inner_text("#prompt-words") == ""


def test_mistakes_are_sentences(page):
    page.page.click("#run")
    assert "Paint over what is to change" in page.page.inner_text("#problem")
    page.stroke((200, 150), (240, 150))
    page.page.click("#settings > summary")
    page.page.fill("#option-ddim_steps", "0")
    page.page.click("#run")
    assert page.page.inner_text("#problem") == "“Steps” is 0: give a whole number from 1 to 1000."
    page.page.fill("#option-ddim_steps", "3")
    page.page.click(".all > summary")
    page.page.fill("#option-guidance_interval", "0.9 0.1")
    page.page.click("#run")
    page.page.wait_for_selector("#problem:not([hidden])")
    assert "give the lower noise level first" in page.page.inner_text("#problem")
    page.faults.clear()  # the browser's own note that the studio refused it
    page.page.fill("#option-guidance_interval", "")
    page.page.fill("#prompt", "dog")
    page.page.click("#run")
    page.page.wait_for_selector("#notes .bad")
    assert "knows no word of" in page.page.inner_text("#notes .bad")


def test_every_option_has_a_field_with_its_sentence(page):
    offered = {option["name"]: option["help"] for option in page.server.get("/options")["edit"]}
    own = {"prompt", "n_samples", "seed", "soft_mask"}  # with places of their own; grey masks are soft by themselves
    for name, help_ in offered.items():
        if name not in own:
            assert page.page.locator(f"#option-{name}").count() == 1, name
            told = page.page.locator(f"#option-{name}-help").text_content()
            assert told and (name == "skip_steps" or help_[1:20] in told)


def test_a_narrow_touch_screen(open_page):
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True).open()
    assert page.page.evaluate("() => document.documentElement.scrollWidth") == 360
    page.page.touchscreen.tap(*page.at(200, 150))
    assert page.mask()[150, 200] == 255
    box = page.page.locator("#viewport").bounding_box()
    client = page.page.context.new_cdp_session(page.page)
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    before = page.mask()
    zoom = page.page.inner_text("#zoom-text")

    def fingers(kind: str, apart: float | None) -> None:
        points = (
            []
            if apart is None
            else [{"x": middle[0] + s * apart, "y": middle[1], "id": i} for i, s in ((0, -1), (1, 1))]
        )
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", 30)
    for apart in (40, 60, 80):
        fingers("touchMove", apart)
    fingers("touchEnd", None)
    assert page.page.inner_text("#zoom-text") != zoom and (page.mask() == before).all(), "two fingers zoom"
    height = page.page.locator("#viewport").bounding_box()["height"]
    page.run(n_samples=1)
    page.shown()
    assert page.page.evaluate("() => document.documentElement.scrollWidth") == 360
    for name in ("#use", "#restore", "#compare", "#download"):
        box = page.page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["width"] >= 36, name
    assert page.page.is_visible("#use span"), "what is pressed next has its words"
    assert page.page.locator("#viewport").bounding_box()["height"] == height, "the picture does not jump"


def test_by_the_keyboard_alone(open_page):
    page = open_page().open()
    press = page.page.keyboard.press
    page.page.focus("#viewport")
    press("b")
    for _ in range(6):
        press("ArrowRight")
    press("Enter")
    for _ in range(4):
        press("Shift+ArrowDown")
    mask = page.mask()
    rows, columns = np.nonzero(mask)
    assert mask.any() and np.ptp(rows) > np.ptp(columns) and columns.mean() > 200
    page.page.focus("#viewport")
    press("Control+z")
    assert page.mask().sum() < mask.sum()
    page.page.focus("#viewport")
    press("r")
    press("Enter")
    for _ in range(3):
        press("ArrowLeft")
    press("ArrowUp")
    press("Enter")
    assert page.mask().any()
    page.page.focus("#prompt")
    page.page.keyboard.type("a red ball")
    press("Tab")
    page.page.focus("#n_samples")
    press("Control+a")
    page.page.keyboard.type("1")
    press("Control+Enter")
    page.shown()
    page.page.focus("#viewport")
    press("Escape")
    page.page.wait_for_selector("#resultbar", state="hidden")
    unnamed = page.page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, a[href], canvas")]
            .filter((one) => one.type !== "file" && !one.ariaHidden && !one.getAttribute("aria-label")
                && !one.textContent.trim() && !one.labels?.length).map((one) => one.outerHTML)"""
    )
    assert unnamed == []


@pytest.mark.slow
@pytest.mark.parametrize("at", ["painting", "saving"])
def test_a_server_that_is_killed_and_comes_again_loses_nothing(at, server, chromium, tmp_path):
    first = Server(server.model, tmp_path / "kept", ready=False)
    port = first.url.rstrip("/").rpartition(":")[2]
    page = Page(chromium.new_context(viewport={"width": 1280, "height": 800}).new_page(), first).open()
    page.stroke((200, 150), (260, 150))
    mask = page.mask()
    job = page.run(ddim_steps=100)
    with locked(first.outdir / "jobs" / job / LOCK):  # it is not saved
        if at == "painting":
            first.running(job, 2)
        else:
            page.page.wait_for_selector("#resultbar:not([hidden])")
        first.stop(signal.SIGKILL)
    Server.wait(lambda: "Connection lost" in page.page.inner_text("#status-text"))
    page.page.click("#run")
    page.page.wait_for_selector("#problem:not([hidden])")
    assert "does not answer" in page.page.inner_text("#problem")
    second = Server(server.model, tmp_path / "kept", "--port", port, ready=False)
    try:
        page.shown()
        assert second.get(f"/jobs/{job}")["state"] == "done"
        page.page.keyboard.press("Escape")
        assert (page.mask() == mask).all()
        page.page.context.close()
    finally:
        assert second.stop() == 0


@pytest.mark.slow
def test_a_photograph_of_24_megapixels(open_page):
    page = open_page()
    stream = BytesIO()
    rough = np.random.default_rng(0).integers(0, 255, (400, 600, 3), np.uint8)
    Image.fromarray(rough).resize((6000, 4000), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    begun = time.monotonic()
    page.open(stream.getvalue(), "large.jpg")
    opened = time.monotonic() - begun
    page.stroke((2000, 2000), (3000, 2200))
    mask = page.mask()
    assert mask.shape == (4000, 6000) and mask[2000, 2000] == 255
    begun = time.monotonic()
    job = page.run(n_samples=1)
    page.shown()
    print(f"opened in {opened:.1f} s, run and saved in {time.monotonic() - begun:.1f} s")
    with Image.open(BytesIO(page.server.client.get(f"/jobs/{job}/results/0").content)) as result:
        assert result.size == (6000, 4000)
    page.page.click("#use")
    Server.wait(lambda: page.page.locator("#steps li").count() == 2)
