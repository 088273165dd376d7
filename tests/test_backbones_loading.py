"""How models of diffusers are found and loaded, and what is said where they cannot be: files in, one line out."""

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.backbones import diffusers_models, hub, single_file, zoo
from ldm.cli import run
from ldm.editing.editor import Editor
from ldm.editing.request import EditRequest
from ldm.errors import UserError
from ldm.models.diffusion.schedule import NoiseLevel
from scripts import batch_editing, reconstruct, text_editing, txt2img
from tests.tiny import normal
from tests.tiny_pipelines import lora, original_checkpoint, saved

QUICK = ("--ddim_steps", "2", "--n_samples", "1", "--device", "cpu", "--precision", "float32")


@pytest.fixture(autouse=True)
def no_ranker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.editing.editor.find_ranker", lambda *_: None)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture and a mask."""
    folder = tmp_path_factory.mktemp("files")
    coarse = np.random.RandomState(0).randint(0, 255, (5, 5, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((90, 70), Image.Resampling.BICUBIC).save(folder / "img.png")
    mask = np.zeros((70, 90), np.uint8)
    mask[20:50, 30:60] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def edit(files: Path, outdir: Path, model: Path | str, *more: Any) -> int:
    argv = ["-p", "a red ball", "-i", str(files / "img.png"), "--mask", str(files / "mask.png")]
    return run(text_editing.main, [*argv, "--model", str(model), "-o", str(outdir), *QUICK, *map(str, more)])


def refused(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Path | str, *more: Any) -> str:
    """The one line of an edit that fails, and writes nothing."""
    capsys.readouterr()
    assert edit(files, tmp_path / "out", model, *more) == 2
    *notices, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and not (tmp_path / "out").exists()
    assert all(notice.startswith(("mask_dilation_iterations auto", "fit_mask auto", "Fetching")) for notice in notices)
    return line


def changed(folder: Path, into: Path, change: Callable[[Path], Any]) -> Path:
    """A copy of a model, changed."""
    copy = Path(shutil.copytree(folder, into / folder.name))
    change(copy)
    return copy


def of_json(file: str, **values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def predictions(model: Any) -> torch.Tensor:
    z, level = normal(1, model.channels, 16, 16), NoiseLevel(0.8, 0.6, 400)
    return model.predict(z, level, model.condition(["a red ball"], (64, 64))).out


def loaded(*args: Any, **options: Any) -> Any:
    return zoo.load(zoo.resolve(*args, **options), torch.device("cpu"), torch.float32)


# --- command lines ---------------------------------------------------------------------------------------------------


def test_every_command_works_with_a_folder(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, out = saved("sd"), tmp_path / "run"
    assert edit(files, out, model, "--save_video", "--negative_prompt", "a cube") == 0
    samples = out / "samples"
    assert [path.name for path in samples.rglob("*.mp4")] == ["0000.mp4"]
    for kind in ("optimization", "residual", "pixel", "poisson"):
        argv = ["--images_path", str(samples), "--reconstruction_type", kind, "--optimization_steps", "2"]
        assert run(reconstruct.main, argv) == 0
        assert Image.open(samples / f"reconstructed_{kind}" / "0000.png").size == (90, 70)

    picture = samples / "results" / "0000.png"
    assert run(text_editing.main, ["--from", str(picture), "-o", str(tmp_path / "again")]) == 0
    again = tmp_path / "again" / "samples" / "results" / "0000.png"
    assert Image.open(again).tobytes() == Image.open(picture).tobytes()

    assert edit(files, out, model, "--check") == 0
    assert "16x16 cells" in capsys.readouterr().out
    argv = ["-p", "a red ball", "--model", str(model), "-o", str(tmp_path / "words"), *QUICK]
    assert run(txt2img.main, argv) == 0

    row = {"image": str(files / "img.png"), "mask": str(files / "mask.png"), "prompt": "a red ball"}
    row |= {"model": str(model), "ddim_steps": 2, "n_samples": 1, "precision": "float32"}
    (tmp_path / "edits.jsonl").write_text("\n".join(json.dumps(row | {"seed": seed}) for seed in (1, 2)))
    argv = [str(tmp_path / "edits.jsonl"), "-o", str(tmp_path / "batch"), "--devices", "cpu", "--workers", "0"]
    assert run(batch_editing.main, argv) == 0
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "batch").glob("*/samples/run.json"))]
    assert sorted(record["seed"] for record in records) == [1, 2]
    assert records[0]["weights_sha256"] == json.loads((samples / "run.json").read_text())["weights_sha256"]
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "batch").glob("*/samples/run.json"))]
    assert run(batch_editing.main, argv) == 0
    after = [path.stat().st_mtime_ns for path in sorted((tmp_path / "batch").glob("*/samples/run.json"))]
    assert before == after, "rows that are there are not made again"


def test_diffusers_that_is_missing_is_told_in_a_line(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    model = saved("sd")
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    line = refused(files, tmp_path, capsys, model)
    assert 'needs the package "diffusers": pip install diffusers (the extra "diffusers" has it)' in line
    monkeypatch.undo()
    own = lora("sd")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match='needs the package "peft"'):
        loaded(str(saved("sd")), lora=[str(own)])


# --- LoRA ------------------------------------------------------------------------------------------------------------


def test_loras_add_their_weights_to_the_networks(tmp_path: Path):
    """W + weight * alpha / r * B A for each, as Hu et al. 2022 have it; in the file's own layout or kohya's."""
    one, other = lora("sd"), tmp_path / "kohya.safetensors"
    factors = load_file(lora("sd", seed=1))
    kohya: dict[str, torch.Tensor] = {}
    for key, factor in factors.items():
        path, _, rest = key.removeprefix("unet.").rpartition(".lora_")
        name = "lora_unet_" + path.replace(".", "_")
        kohya[f"{name}.lora_{'down' if rest.startswith('A') else 'up'}.weight"] = factor.contiguous()
        kohya[f"{name}.alpha"] = torch.tensor(4.0)
    save_file(kohya, other)
    plain = loaded(str(saved("sd"))).network.state_dict()
    both = loaded(str(saved("sd")), lora=[str(one), f"{other}:-0.5"]).network.state_dict()
    assert plain.keys() == both.keys()
    moved = 0
    for key, before in plain.items():
        expected = before.clone()
        for weight, each in ((1.0, load_file(one)), (-0.5, factors)):
            path = f"unet.{key.removesuffix('.weight')}"
            if f"{path}.lora_A.weight" in each:
                expected += weight * 2 * each[f"{path}.lora_B.weight"] @ each[f"{path}.lora_A.weight"]
                moved += 1
        torch.testing.assert_close(both[key], expected, rtol=1e-4, atol=1e-5)
    assert moved == len(factors), "every pair of factors, twice"


def test_a_lora_of_a_transformer():
    plain, without, with_it = (
        predictions(loaded(str(saved("flux")), lora=given))
        for given in ((), [f"{lora('flux')}:0"], [str(lora("flux"))])
    )
    assert torch.equal(plain, without) and not torch.allclose(plain, with_it, atol=1e-3)


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_a_lora_for_another_family_is_refused(
    name: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    line = refused(files, tmp_path, capsys, saved("sd"), "--lora", lora(name))
    assert "--lora" in line and "does not fit" in line and "another family" in line


def test_an_id_of_a_lora_may_have_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "fetch_lora", lambda name: tmp_path / name)
    assert diffusers_models.find_lora("some/style-v1.5:0.8") == (tmp_path / "some/style-v1.5", 0.8)


def test_what_is_no_lora(tmp_path: Path):
    pickle, text = tmp_path / "lora.pt", tmp_path / "lora.safetensors"
    torch.save({}, pickle)
    text.write_text("not weights")
    model = str(saved("sd"))
    for given, expected in [
        (str(pickle), r"from \.safetensors alone"),
        ("none.safetensors", "no such file"),
        (f"{text}:much", "is no weight"),
        (f"{text}:nan", "is no weight"),
        (str(text), "does not fit"),
    ]:
        with pytest.raises(UserError, match=expected):
            loaded(model, lora=[given])
    with pytest.raises(UserError, match="is for models of diffusers, and scenes is none"):
        zoo.resolve("scenes", lora=[str(pickle)])


# --- one file --------------------------------------------------------------------------------------------------------


class Nasty:
    """Code in a pickle."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('run')",))


def test_a_checkpoint_in_one_file_is_the_folder_it_was_made_from(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    state, folder = original_checkpoint()
    save_file(state, tmp_path / "own.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "own.ckpt")
    expected = predictions(loaded(str(folder)))
    for name in ("own.safetensors", "own.ckpt"):
        model = loaded(str(tmp_path / name), config=str(folder))
        torch.testing.assert_close(predictions(model), expected, rtol=1e-4, atol=1e-4)
        outline = zoo.outline(zoo.resolve(str(tmp_path / name), config=str(folder)))
        assert (outline.native_size, outline.unit, outline.factor) == (model.native_size, model.unit, model.factor)
    assert edit(files, tmp_path / "run", tmp_path / "own.ckpt", "--config", folder) == 0
    argv = ["--images_path", str(tmp_path / "run/samples"), "--reconstruction_type", "residual"]
    assert run(reconstruct.main, argv) == 0
    again = ["--from", str(tmp_path / "run/samples/results/0000.png"), "-o", str(tmp_path / "again")]
    assert run(text_editing.main, again) == 0
    line = refused(files, tmp_path, capsys, tmp_path / "own.ckpt")
    assert "stable-diffusion-v1-5" in line and "--config" in line and "cannot be reached" in line


def test_what_is_no_checkpoint(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state, folder = original_checkpoint()
    torch.save({"state_dict": state, "hook": Nasty()}, tmp_path / "nasty.ckpt")
    save_file({"some.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    shutil.copy(lora("sd"), tmp_path / "lora.safetensors")
    save_file(state, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-100])
    unet_alone = {key: weight for key, weight in state.items() if key.startswith("model.")}
    save_file(unet_alone, tmp_path / "unet.safetensors")
    for name, expected in {
        "nasty.ckpt": "was refused, and nothing in it was run",
        "other.safetensors": "no checkpoint that paints pictures",
        "lora.safetensors": "give it by --lora",
        "cut.safetensors": "may be cut short",
        "unet.safetensors": "cannot be loaded",
        "none.safetensors": "there is no such file",
    }.items():
        assert expected in refused(files, tmp_path, capsys, tmp_path / name, "--config", folder)
    assert "is no folder in the layout" in refused(
        files, tmp_path, capsys, tmp_path / "unet.safetensors", "--config", tmp_path
    )


# --- the hub ---------------------------------------------------------------------------------------------------------

NOWHERE, FILE = "http://127.0.0.1:9", "/{repo_id}/resolve/{revision}/{filename}"
COMMITS = {"main": "a" * 40, "v2": "b" * 40}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: `server.repositories` are folders by id, in two revisions."""

    server: Any

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner, name, what, revision, *_ = [*parts[2 if api else 0 :], *["main"] * 4]
        folder = self.server.repositories.get(f"{owner}/{name}")
        commit = COMMITS.get(revision, revision)
        if folder is None or commit not in COMMITS.values():
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound" if folder is None else "RevisionNotFound"})
        if folder == "gated":
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if api:
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            tree = [{"type": "file", "path": str(path.relative_to(folder)), "size": 1, "oid": "0"} for path in files]
            content = tree if what == "tree" else {"id": f"{owner}/{name}", "sha": commit, "siblings": []}
            return self.answer(200, json.dumps(content).encode(), {})
        path = folder.joinpath(*parts[4:])
        if not path.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        self.server.asked.append(path.name)
        content = path.read_bytes()
        return self.answer(200, content, {"X-Repo-Commit": commit, "ETag": f'"{abs(hash(content)):x}"'})

    def answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The hub, and a cache of its own."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + FILE)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_id_of_the_hub_is_downloaded_once_and_safely(
    server: Any, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def clutter(folder: Path) -> None:
        for name in ("unet/diffusion_pytorch_model.bin", "pipeline.py", "v1-5.safetensors", "vae/code.py"):
            (folder / name).write_text("never wanted")
        shutil.copy(folder / "vae/diffusion_pytorch_model.safetensors", folder / "vae/model.fp16.safetensors")

    server.repositories |= {"some/sd": changed(saved("sd"), tmp_path / "remote", clutter), "gated/sd": "gated"}
    server.repositories["some/lora"] = lora("sd").parent
    server.repositories["some/empty"] = files
    assert edit(files, tmp_path / "run", "some/sd", "--revision", "v2", "--lora", "some/lora:0.5") == 0
    wanted = {Path(asked).suffix for asked in server.asked}
    assert wanted <= {".json", ".safetensors", ".txt"} and "v1-5.safetensors" not in server.asked
    assert not [name for name in server.asked if "fp16" in name]
    record = json.loads((tmp_path / "run/samples/run.json").read_text())
    assert (record["model"], record["options"]["revision"]) == ("some/sd", "v2")
    assert record["options"]["lora"] == ["some/lora:0.5"] and record["weights"] is None
    own = zoo.resolve(str(saved("sd")), lora=[f"{lora('sd')}:0.5"])
    assert record["weights_sha256"] == own.digest(), "whichever way it came"

    for model, more, expected in [
        ("some/other", (), "the hub has no such model"),
        ("some/sd", ("--revision", "v3"), '"some/sd" at v3: the hub has no such model'),
        ("gated/sd", (), "licence"),
        ("some/empty", (), "is no pipeline of diffusers: it has no model_index.json"),
        ("some/sd", ("--lora", "some/empty"), "holds none of them"),
    ]:
        assert expected in refused(files, tmp_path, capsys, model, *more)

    for offline in (True, False):  # told to be, or the hub does not answer
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", NOWHERE + FILE)
        hub.fetch.cache_clear()
        hub.fetch_lora.cache_clear()
        again = ["--from", str(tmp_path / "run/samples/results/0000.png"), "-o", str(tmp_path / f"again{offline}")]
        assert run(text_editing.main, again) == 0
        line = refused(files, tmp_path, capsys, "some/other")
        assert str(tmp_path / "hub") in line and "connect once" in line


# --- folders ---------------------------------------------------------------------------------------------------------


def cut_short(file: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[:-100])

    return change


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no pipeline": (lambda folder: (folder / "model_index.json").unlink(), "is no model: it lacks config.yaml"),
    "a damaged index": (
        lambda folder: (folder / "model_index.json").write_text("{"),
        "model_index.json cannot be read",
    ),
    "a list": (lambda folder: (folder / "model_index.json").write_text("[]"), "is no config"),
    "an upscaler": (of_json("model_index.json", _class_name="StableDiffusionUpscalePipeline"), "paints no pictures"),
    "a video": (of_json("model_index.json", _class_name="WanPipeline"), "is a WanPipeline, which paints no pictures"),
    "code of its own": (of_json("model_index.json", unet=["my_unet", "MyUNet"]), 'code of its own for its part "unet"'),
    "a pipeline of its own": (of_json("model_index.json", _class_name=["pipeline", "Mine"]), "code of its own"),
    "a refiner": (of_json("model_index.json", requires_aesthetics_score=True), "is a refiner of SDXL"),
    "another autoencoder": (of_json("model_index.json", vae=["diffusers", "AutoencoderTiny"]), "only AutoencoderKL"),
    "other noise levels": (
        of_json("scheduler/scheduler_config.json", _class_name="EDMDPMSolverMultistepScheduler"),
        "has the noise levels of EDM",
    ),
    "another prediction": (
        of_json("scheduler/scheduler_config.json", prediction_type="x"),
        "prediction_type x, which is not known",
    ),
    "no scheduler": (lambda folder: (folder / "scheduler/scheduler_config.json").unlink(), "is incomplete"),
    "no vocabulary": (
        lambda folder: [path.unlink() for path in (folder / "tokenizer").iterdir()],
        "tokenizer has no vocabulary, get the model again",
    ),
    "an empty entry": (of_json("model_index.json", more=[], _class_name="WanPipeline"), "paints no pictures"),
    "a part missing": (lambda folder: shutil.rmtree(folder / "vae"), "/vae is missing, get the model again"),
    "weights missing": (
        lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").unlink(),
        "it has no safetensors, or only some",
    ),
    "pickles": (
        lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/weights.bin"),
        "pickles of diffusers are not read",
    ),
    "cut short": (cut_short("unet/diffusion_pytorch_model.safetensors"), "damaged or cut short"),
    "text encoder cut short": (cut_short("text_encoder/model.safetensors"), "damaged or cut short"),
    "another shape": (of_json("unet/config.json", cross_attention_dim=48), "cannot be loaded"),
}


@pytest.mark.parametrize("change, expected", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_folder_that_cannot_be_used_is_told_in_a_line(
    change: Callable[[Path], Any],
    expected: str,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert expected in refused(files, tmp_path, capsys, changed(saved("sd"), tmp_path, change))


def test_parts_that_come_in_half_precision_alone(tmp_path: Path):
    """As a repository with other precisions of some parts is downloaded; weights may be cut into several files."""
    folder = changed(saved("sd"), tmp_path, lambda _: None)
    plain = predictions(loaded(str(folder)))
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    torch.testing.assert_close(predictions(loaded(str(folder))), plain)


def test_what_is_downloaded_of_a_repository():
    files = ["model_index.json", "v1-5.safetensors", "unet/config.json", "safety_checker/model.safetensors"]
    files += ["unet/model.fp16-00001-of-00002.safetensors", "unet/model-00001-of-00002.safetensors"]
    files += ["text_encoders/t5xxl_fp16.safetensors", "vae/model.fp16.safetensors", "vae_1_0/model.safetensors"]
    assert hub.wanted_files(files, {"unet", "vae"}) == [
        *("model_index.json", "unet/config.json"),
        *("unet/model-00001-of-00002.safetensors", "vae/model.fp16.safetensors"),
    ]


def test_the_quick_ones_in_one_file_are_told_by_name(monkeypatch: pytest.MonkeyPatch):
    for kind, name, key in [
        ("sd35_large", "sd3.5_large_turbo", "sd3-turbo"),
        ("xl_base", "juggernautXL-Lightning", "sdxl-turbo"),
        ("v1", "dreamshaper-LCM", "sd-lcm-lora"),
        ("v1", "hyperrealism", "sd"),
    ]:
        monkeypatch.setattr(single_file, "_kind", lambda path, kind=kind: kind)
        assert single_file.family_key(Path(f"{name}.safetensors"), name) == key


def test_what_does_not_fit_the_model(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "multiples of 8: the nearest is --W 64 --H 64" in refused(
        files, tmp_path, capsys, saved("sd"), "--H", 60, "--W", 66
    )
    assert "--revision is for models of diffusers" in refused(files, tmp_path, capsys, "scenes", "--revision", "v2")
    line = refused(files, tmp_path, capsys, saved("sd"), "--revision", "v2")
    assert "--revision is for ids of the hub" in line
    line = refused(files, tmp_path, capsys, "own.safetensors", "--ckpt", "other.ckpt")
    assert "name two checkpoints" in line
    assert "is neither auto" in refused(files, tmp_path, capsys, tmp_path / "nowhere")

    def overflow(folder: Path) -> None:
        path = folder / "vae/diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        for name in ("conv_in", "mid_block.resnets.0.conv2"):  # each fits into half precision, their sum does not
            weights[f"decoder.{name}.bias"] += 6e4
        save_file(weights, path, {"format": "pt"})

    broken = changed(saved("sd"), tmp_path, overflow)
    of_json("vae/config.json", force_upcast=False)(broken)
    line = refused(files, tmp_path, capsys, broken, "--precision", "float16")
    assert "NaN" in line and "--precision float32" in line
    of_json("vae/config.json", force_upcast=True)(broken)
    assert edit(files, tmp_path / "upcast", broken, "--precision", "float16") == 0, "such a VAE is kept in float32"


def test_the_identity_of_a_folder_is_that_of_all_that_decides(tmp_path: Path):
    def digest(change: Callable[[Path], Any], into: str) -> str:
        return zoo.resolve(str(changed(saved("sd"), tmp_path / into, change))).digest()

    def rewrite(folder: Path) -> None:
        path = folder / "unet/diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        weights["conv_in.bias"] += 1
        save_file(weights, path)

    plain = digest(lambda _: None, "a")
    assert plain == digest(lambda _: None, "elsewhere")
    assert plain == digest(lambda folder: (folder / "README.md").write_text("words"), "b")
    others = {digest(rewrite, "c"), digest(of_json("scheduler/scheduler_config.json", beta_end=0.1), "d")}
    others |= {zoo.resolve(str(saved("sd")), lora=[f"{lora('sd')}:{weight}"]).digest() for weight in (0.5, 1)}
    assert len({plain, *others}) == 5


# --- ways to run -----------------------------------------------------------------------------------------------------


def test_little_memory_leaves_text_encoders_where_they_are(files: Path):
    whole = Editor.load(str(saved("sd")), device="cpu", precision="float32")
    low = Editor.load(str(saved("sd")), device="cpu", precision="float32", low_memory=True)
    assert low.model.pipe.vae.use_tiling and low.model.text_device == torch.device("cpu")
    options: dict[str, Any] = {"n_samples": 1, "ddim_steps": 2, "H": 128, "W": 128}  # 16 tiles of the VAE
    one, other = (
        each.edit(files / "img.png", files / "mask.png", "a red ball", **options).results[0] for each in (whole, low)
    )
    difference = np.abs(np.asarray(one).astype(int) - np.asarray(other))
    assert difference.max() > 0 and difference.mean() < 12


@pytest.mark.parametrize("mode", ["regions", "graphs"])
def test_a_compiled_denoiser_gives_the_same(mode: str):
    model = loaded(str(saved("flux")))
    before = predictions(model)
    model.compile_denoiser(mode, backend="eager")
    torch.testing.assert_close(predictions(model), before, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="regions or graphs"):
        model.compile_denoiser("fast")


def test_few_steps_tell_what_they_have_no_room_for(files: Path, caplog: pytest.LogCaptureFixture):
    editor = Editor.outline(zoo.resolve(str(saved("sd"))))

    def said(**options: Any) -> str:
        caplog.clear()
        request = EditRequest("a red ball", **options)
        editor.prepare(files / "img.png", files / "mask.png", request)
        return caplog.text

    assert "2 steps have room for 2 of the 4 masks" in said(ddim_steps=2, mask_dilation_iterations=3)
    assert "1 step has room for 1 of the 2 masks" in said(ddim_steps=4, skip_steps=3, mask_dilation_iterations=1)
    assert "room" not in said(ddim_steps=4, mask_dilation_iterations=3)
    assert "2 levels" in said(ddim_steps=2, soft_mask=True)
    assert "levels" not in said(ddim_steps=4, soft_mask=True)
