"""Weights in and out: what is read, what is refused, what it costs."""

import hashlib
import logging
import os
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ldm.checkpoint import assign, load_model, read_state_dict, save_safetensors
from ldm.errors import UserError
from ldm.files import weights_hash

REPOSITORY = Path(__file__).resolve().parents[1]
ENDINGS = [".safetensors", ".ckpt", ".pt", ".pth", ".bin"]


class Tiny(nn.Module):
    """Shaped like LatentDiffusion: schedule buffers of its own, networks below."""

    def __init__(self, width: int = 3, lost: bool = False):
        super().__init__()
        self.register_buffer("betas", torch.zeros(4))
        self.model = nn.Sequential(nn.Linear(width, 2), nn.BatchNorm1d(2))
        self.model.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=not lost)


CONFIG = {"model": {"target": f"{__name__}.Tiny"}}
CPU = torch.device("cpu")


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t + 7
        for key, t in Tiny().state_dict().items()
    }


def write(path: Path, tensors: dict, **options) -> Path:
    if path.suffix == ".safetensors":
        save_safetensors(tensors, path)
    else:
        torch.save(tensors, path, **options)
    return path


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(got[key], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_is_read(tmp_path: Path, ending: str):
    assert_same(read_state_dict(write(tmp_path / f"w{ending}", weights())), weights())


def test_format_of_old_torch_is_read(tmp_path: Path):
    path = write(tmp_path / "w.ckpt", {"state_dict": weights()}, _use_new_zipfile_serialization=False)
    assert_same(read_state_dict(path), weights())


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_training_on_loaded_weights_leaves_the_file(tmp_path: Path, ending: str):
    path = write(tmp_path / f"w{ending}", weights())
    before = path.read_bytes()
    model = load_model(CONFIG, path, device=CPU, dtype=torch.float32).requires_grad_(True)
    model.model[0].weight.sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not torch.equal(model.model[0].weight, weights()["model.0.weight"])
    assert path.read_bytes() == before


# Lightning's checkpoints


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type:
    """A class that pickles as Lightning's callback and, if it were used, would leave the file `marker`."""

    class ModelCheckpoint:
        def __init__(self):
            self.monitor = "val/loss"

        def __setstate__(self, state: dict):
            (tmp_path / "marker").touch()

    name = "pytorch_lightning.callbacks.model_checkpoint"
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = name, "ModelCheckpoint"
    sys.modules[name].ModelCheckpoint = ModelCheckpoint
    return ModelCheckpoint


@pytest.mark.parametrize("zipped", [True, False])
def test_lightning_checkpoint_of_2022(tmp_path: Path, lightning: type, caplog: pytest.LogCaptureFixture, zipped: bool):
    import numpy as np

    training = {
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.diffusion_modelw": torch.zeros(2),
        "first_stage_model.loss.logvar": torch.zeros(()),
    }
    content = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": weights() | training,
        "callbacks": {lightning: {"monitor": "val/loss", "best": torch.tensor(1.0)}, "other": lightning()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "lr_schedulers": [{"last_lr": np.float64(1e-4), "history": np.arange(3)}],
    }
    path = write(tmp_path / "model.ckpt", content, _use_new_zipfile_serialization=zipped)
    assert_same(read_state_dict(path), weights())
    assert not (tmp_path / "marker").exists(), "the callback's own code ran"
    notices = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(notices) == 1
    for part in ("skipped 9 ", "6 bookkeeping", "2 model_ema.", "1 first_stage_model.loss."):
        assert part in notices[0]


def test_lightning_is_never_imported(tmp_path: Path, lightning: type, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "model.ckpt", {"state_dict": weights(), "callbacks": {lightning: 1}})
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    assert_same(read_state_dict(path), weights())
    assert "pytorch_lightning" not in sys.modules


def test_plain_weights_give_no_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    read_state_dict(write(tmp_path / "w.ckpt", {"state_dict": weights()}))
    assert not caplog.records


# Refused files


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("how", ["zip", "zip protocol 4", "old torch", "bare pickle"])
@pytest.mark.parametrize("lightning_too", [False, True])
def test_code_is_refused_by_name_and_does_not_run(tmp_path: Path, lightning: type, how: str, lightning_too: bool):
    marker, path = tmp_path / "marker", tmp_path / "evil.ckpt"
    content = {"state_dict": weights() | {"x": Hostile(os.system, f"touch {marker}")}}
    if lightning_too:
        content["callbacks"] = {lightning: 1}
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(content["state_dict"]["x"]))
    else:
        protocol = 4 if how == "zip protocol 4" else 2
        write(path, content, _use_new_zipfile_serialization=how != "old torch", pickle_protocol=protocol)
    with pytest.raises(UserError, match=rf"evil\.ckpt was refused.*{os.system.__module__}\.system\b") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value), "torch's advice to switch the protection off"
    assert "ModelCheckpoint" not in str(caught.value)
    assert not marker.exists(), "the checkpoint's code ran"


@pytest.mark.parametrize("function, name", [(eval, "eval"), (torch.hub.load, r"torch\.hub\.load"), (open, "open")])
def test_other_callables_are_refused(tmp_path: Path, function, name: str):
    path = write(tmp_path / "evil.pt", {"x": Hostile(function, "1")})
    with pytest.raises(UserError, match=rf"asks for \S*{name}, which"):
        read_state_dict(path)


def test_a_function_of_a_bookkeeping_package_is_not_called(tmp_path: Path, lightning: type):
    def system(marker: str) -> None:
        Path(marker).touch()

    module = lightning.__module__
    system.__module__, system.__qualname__ = module, "system"
    sys.modules[module].system = system
    path = write(tmp_path / "w.ckpt", weights() | {"x": Hostile(system, str(tmp_path / "marker"))})
    assert_same(read_state_dict(path), weights())
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "damage, said",
    [
        ("cut", "get the file again"),
        ("text", "get the file again"),
        ("empty", "is empty"),
        ("folder", "is a folder"),
        ("missing", "is missing"),
    ],
)
def test_damaged_files(tmp_path: Path, ending: str, damage: str, said: str):
    path = tmp_path / f"w{ending}"
    if damage == "cut":
        write(path, weights())
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "text":
        path.write_text("<!DOCTYPE html><title>404</title>" * 10)
    elif damage == "empty":
        path.touch()
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*{said}") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


def test_cut_anywhere(tmp_path: Path):
    whole = write(tmp_path / "w.ckpt", weights(), _use_new_zipfile_serialization=False).read_bytes()
    for length in range(1, len(whole), 61):
        (tmp_path / "cut.ckpt").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.ckpt"):
            read_state_dict(tmp_path / "cut.ckpt")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}, torch.zeros(2)])
def test_files_without_weights(tmp_path: Path, content):
    with pytest.raises(UserError, match="holds"):
        read_state_dict(write(tmp_path / "w.pt", content))


def test_unknown_ending(tmp_path: Path):
    path = tmp_path / "w.onnx"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"\.safetensors, \.ckpt"):
        read_state_dict(path)


# Strict assignment


def test_assign_lists_three_of_each_sort_and_counts_the_rest():
    model = nn.ModuleDict({f"layer{i}": nn.Linear(2, 2) for i in range(5)})
    state = {key: tensor for key, tensor in model.state_dict().items() if "bias" not in key}
    state |= {f"layer{i}.weight": torch.zeros(3, 2) for i in range(4)}
    state |= {f"extra{i}": torch.zeros(1) for i in range(6)}
    with pytest.raises(UserError) as caught:
        assign(model, state, "some.ckpt")
    assert str(caught.value).startswith(
        "some.ckpt does not fit the model of its config ("
        "5 missing: layer0.bias, layer1.bias, layer2.bias and 2 more; "
        "6 unknown: extra0, extra1, extra2 and 3 more; "
        "4 wrong: layer0.weight (3, 2) instead of (2, 2), layer1.weight (3, 2) instead of (2, 2), "
        "layer2.weight (3, 2) instead of (2, 2) and 1 more)"
    )


@pytest.mark.parametrize("key", ["betas", "model.0.weight", "model.steps"])
def test_assign_wants_every_key_buffers_too(key: str):
    state = weights()
    del state[key]
    with pytest.raises(UserError, match=f"1 missing: {key}\\)"):
        assign(Tiny(), state, "w")


def test_assign_refuses_integers_for_weights():
    state = weights() | {"model.0.weight": torch.zeros(2, 3, dtype=torch.int8)}
    with pytest.raises(UserError, match=r"model\.0\.weight \(2, 3\) torch\.int8 instead of \(2, 3\)"):
        assign(Tiny(), state, "w")


def test_assign_does_not_copy_and_keeps_the_models_dtype():
    model, state = Tiny(), weights()
    state["model.0.bias"] = state["model.0.bias"].half()
    assign(model, state, "w")
    assert model.model[0].weight.data_ptr() == state["model.0.weight"].data_ptr()
    assert model.model[0].bias.dtype == torch.float32
    assert model.model[0].weight.requires_grad


# Whole models


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_load_model(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype):
    state = {key: t.to(stored) if t.is_floating_point() else t for key, t in weights().items()}
    model = load_model(CONFIG, write(tmp_path / "w.safetensors", state), device=CPU, dtype=wanted)
    loaded = model.state_dict()
    assert loaded.pop("betas").dtype == torch.float32, "the schedule stays float32"
    assert {t.dtype for t in loaded.values() if t.is_floating_point()} == {wanted}
    for key, tensor in loaded.items():
        torch.testing.assert_close(tensor, state[key].to(tensor.dtype), rtol=0, atol=0)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_part_that_goes_elsewhere_is_never_on_the_device(tmp_path: Path):
    """The meta device keeps no values: what had been there once would be lost."""

    class Two(Tiny):
        def __init__(self):
            super().__init__()
            self.text = nn.Linear(2, 2)

    state = weights() | {"text.weight": torch.eye(2), "text.bias": torch.ones(2)}
    path = write(tmp_path / "w.safetensors", state)
    config = {"model": {"target": f"{__name__}.Two"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "Two", Two)
        model = load_model(config, path, device=torch.device("meta"), dtype=torch.float32, elsewhere={"text": CPU})
    assert torch.equal(model.text(torch.ones(1, 2)), torch.full((1, 2), 2.0))
    assert model.betas.is_meta and all(tensor.is_meta for tensor in model.model.state_dict().values())


def test_load_model_names_the_file_that_does_not_fit(tmp_path: Path):
    path = write(tmp_path / "w.ckpt", weights())
    config = {"model": CONFIG["model"] | {"params": {"width": 5}}}
    with pytest.raises(
        UserError, match=r"w\.ckpt does not fit.*1 wrong: model\.0\.weight \(2, 3\) instead of \(2, 5\)"
    ):
        load_model(config, path, device=CPU, dtype=torch.float32)
    with pytest.raises(UserError, match="no part 'model'"):
        load_model({"target": "x"}, path, device=CPU, dtype=torch.float32)


def test_load_model_notices_a_tensor_that_nothing_fills(tmp_path: Path):
    state = weights()
    del state["model.steps"]
    config = {"model": CONFIG["model"] | {"params": {"lost": True}}}
    with pytest.raises(RuntimeError, match=r"model\.steps"):
        load_model(config, write(tmp_path / "w.ckpt", state), device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
def test_loading_takes_the_memory_of_the_weights_once(tmp_path: Path, ending: str):
    """Copying them, or building the model beside them, takes 2.0 times the file; a cast to half adds 0.5."""
    width = 5000
    path = write(tmp_path / f"big{ending}", {f"{i}.weight": torch.ones(width, width) for i in range(2)})
    script = f"""
        import re, resource, torch
        from pathlib import Path
        from ldm.checkpoint import load_model

        def peak():  # bytes; VmHWM where there is one, since ru_maxrss begins at what the parent process had
            status = Path("/proc/self/status")
            found = re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text()) if status.exists() else None
            return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

        class Big(torch.nn.Sequential):
            def __init__(self):
                super().__init__(*(torch.nn.Linear({width}, {width}, bias=False) for _ in range(2)))

        def load(dtype):
            torch.ones(8).to(dtype).sum()
            config = {{"model": {{"target": "__main__.Big"}}}}
            return load_model(config, Path({str(path)!r}), device=torch.device("cpu"), dtype=dtype)

        before = peak()
        model = load(torch.float32)
        loaded = peak()
        assert all(p.sum().item() > 0 for p in model.parameters())
        used = peak()
        del model
        load(torch.bfloat16)
        print(loaded - before, used - before, peak() - before)
    """
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, check=True
    )
    loaded, used, cast = (int(number) / path.stat().st_size for number in run.stdout.split())
    assert loaded < 0.3, "weights are read when they are used, not before"
    assert used < 1.4
    assert cast < 1.75


# Saving


def test_save_keeps_shared_views_and_strides(tmp_path: Path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": base, "tied": base, "row": base[1], "turned": base.T, "half": base.bfloat16()}
    save_safetensors(tensors, tmp_path / "new" / "w.safetensors", {"step": "7"})
    assert_same(read_state_dict(tmp_path / "new" / "w.safetensors"), tensors)
    with safe_open(tmp_path / "new" / "w.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "step": "7"}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["w.safetensors"]


def test_save_follows_the_umask(tmp_path: Path):
    save_safetensors(weights(), tmp_path / "w.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_saving_over_the_mapped_file_is_safe(tmp_path: Path):
    path = write(tmp_path / "w.safetensors", weights())
    mapped = read_state_dict(path)
    save_safetensors({key: tensor * 0 for key, tensor in mapped.items()}, path)
    assert_same(mapped, weights())
    assert not any(tensor.any() for tensor in read_state_dict(path).values())


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "w.safetensors", weights())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match=r"cannot write .*w\.safetensors.*No space left"):
        save_safetensors({"x": torch.zeros(1)}, path)
    assert_same(read_state_dict(path), weights())
    assert list(tmp_path.iterdir()) == [path]


def test_saving_where_no_folder_can_be(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        save_safetensors(weights(), tmp_path / "file" / "w.safetensors")


def test_the_hash_of_weights_is_that_of_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    path = tmp_path / "w.ckpt"
    for content in (b"one", b"another", b"x" * 10_000_001):
        path.write_bytes(content)
        assert weights_hash(path) == weights_hash(path) == hashlib.sha256(content).hexdigest()
    (noted,) = [file for file in cache.rglob("*") if file.is_file() and file.read_text() == weights_hash(path)]
    noted.write_text("0" * 64)
    assert weights_hash(path) == "0" * 64, "large files are read once"
    noted.write_text("damaged")
    assert weights_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=r"none\.ckpt"):
        weights_hash(tmp_path / "none.ckpt")


def test_weights_are_hashed_where_nothing_can_be_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert weights_hash(tmp_path / "cache") == hashlib.sha256(b"no folder").hexdigest()
