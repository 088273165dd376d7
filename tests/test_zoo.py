"""From a model's name to its files, wherever they lie, and to the model."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.backbones import zoo
from ldm.checkpoint import save_safetensors
from ldm.download import Remote
from ldm.errors import UserError
from scripts.download_models import main

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "scripts" / "download_models.py"


class Tiny(nn.Module):
    def __init__(self, cond_stage_config: dict, key: str = "txt"):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.cond_stage_config, self.key = cond_stage_config, key


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the model `things`, and nothing downloaded; the working directory is elsewhere."""
    repository = tmp_path / "repository"
    put_model(repository / "models" / "ldm" / "things")
    put(repository / zoo.MODELS["text2img-large"].config)
    monkeypatch.setattr(zoo, "REPOSITORY", repository)
    monkeypatch.delenv("LDM_MODELS", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return repository


def put(path: Path, text: str = "model: {}") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def put_model(folder: Path) -> Path:
    put(folder / "config.yaml")
    put(folder / "model.safetensors")
    return folder


def test_auto_takes_the_small_model_and_says_how_to_get_the_other(house: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    folder = house / "models" / "ldm" / "things"
    files = zoo.ModelFiles("things", folder / "config.yaml", folder / "model.safetensors", None, zoo.Given("things"))
    assert zoo.resolve() == files
    assert len(caplog.records) == 1
    assert "model: things" in caplog.text
    assert "python scripts/download_models.py text2img-large" in caplog.text


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
@pytest.mark.parametrize("moved", [False, True])
def test_auto_takes_the_public_model_once_it_is_there(
    house: Path, tmp_path: Path, name: str, moved: bool, monkeypatch: pytest.MonkeyPatch, caplog
):
    caplog.set_level("INFO")
    if moved:
        monkeypatch.setenv("LDM_MODELS", str(tmp_path / "big-disk"))
    weights = put((tmp_path / "big-disk" if moved else house / "models") / "ldm" / "text2img-large" / name)
    config = house / "configs" / "latent-diffusion" / "txt2img-1p4B-eval.yaml"
    given = zoo.Given("text2img-large")
    files = zoo.ModelFiles("text2img-large", config, weights, "ViT-B-16-quickgelu/openai", given)
    assert zoo.resolve("auto") == files
    assert len(caplog.records) == 1
    assert "model: text2img-large (the small one is things)" in caplog.text


def test_auto_also_looks_in_the_repository(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(house / "models" / "ldm" / "text2img-large" / "model.ckpt")
    monkeypatch.setenv("LDM_MODELS", str(tmp_path / "big-disk"))
    assert zoo.resolve("auto").name == "text2img-large"


def test_an_unfinished_download_is_no_model(house: Path):
    put(house / "models" / "ldm" / "text2img-large" / "model.ckpt.part")
    assert zoo.resolve("auto").name == "things"


def test_the_small_model_is_found_though_models_are_kept_elsewhere(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clip = house / "models" / "clip" / "things"
    clip.mkdir(parents=True)
    monkeypatch.setenv("LDM_MODELS", str(tmp_path / "big-disk"))
    assert zoo.resolve("auto").weights == house / "models" / "ldm" / "things" / "model.safetensors"
    assert zoo.resolve("things").clip == clip
    retrained = put_model(tmp_path / "big-disk" / "ldm" / "things")
    assert zoo.resolve("things").weights == retrained / "model.safetensors"
    assert zoo.resolve("things").clip == clip, "the one that comes along ranks it too"


def test_a_model_that_is_not_here(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LDM_MODELS", str(tmp_path / "big-disk"))
    with pytest.raises(
        UserError, match=r"big-disk/ldm/text2img-large.* is missing: python scripts/download_models\.py text2img-l"
    ):
        zoo.resolve("text2img-large")
    (house / "models" / "ldm" / "things" / "model.safetensors").unlink()
    missing = r"repository/models/ldm/things/model\.safetensors is missing: "
    with pytest.raises(UserError, match=missing + "it comes with this program, install that again"):
        zoo.resolve("auto")
    (house / ".git").mkdir()
    with pytest.raises(UserError, match=missing + "git checkout -- models/ldm/things"):
        zoo.resolve("auto")


@pytest.mark.parametrize(
    "config, weights",
    [
        ("config.yaml", "model.safetensors"),
        ("project.yaml", "model.ckpt"),
        ("2022-06-07-project.yaml", "model.ckpt"),
        ("configs/2022-06-07-project.yaml", "checkpoints/last.ckpt"),
    ],
)
def test_a_folder_of_the_users(house: Path, config: str, weights: str):
    config, weights = put(Path("mine") / config).resolve(), put(Path("mine") / weights).resolve()
    assert zoo.resolve("mine") == zoo.ModelFiles("mine", config, weights, zoo.OPENAI_CLIP, zoo.Given("mine"))
    Path("mine/clip").mkdir()
    assert zoo.resolve("mine").clip == Path("mine/clip").resolve()


def test_the_latest_config_of_a_run_counts(house: Path):
    put(Path("mine/model.ckpt"))
    for day in (2, 3, 1):
        put(Path(f"mine/configs/2022-06-0{day}-project.yaml"))
    assert zoo.resolve("mine").config.name == "2022-06-03-project.yaml"


def test_a_folder_that_is_no_model(house: Path):
    with pytest.raises(UserError, match="nor a folder"):
        zoo.resolve("m" * 300)  # no file system has such a name
    put(Path("mine/config.yaml"))
    with pytest.raises(UserError, match=r"mine is no model: it lacks model\.safetensors or model\.ckpt"):
        zoo.resolve("mine")
    Path("mine/config.yaml").rename("mine/model.ckpt")
    with pytest.raises(UserError, match=r"mine is no model: it lacks config\.yaml or project\.yaml"):
        zoo.resolve("mine")


def test_files_of_the_users(house: Path):
    config, weights = put(Path("a/c.yaml")), put(Path("b/w.pt"))
    found = zoo.resolve(config="a/c.yaml", ckpt=Path("b/w.pt"))
    given = zoo.Given("auto", "a/c.yaml", "b/w.pt")
    assert found == zoo.ModelFiles("w", config.resolve(), weights.resolve(), zoo.OPENAI_CLIP, given)


def test_what_is_recorded_finds_the_same_model_where_the_clone_has_moved(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """However a named model was asked for, its name is recorded and no path of this machine."""
    (house / "models/clip/things").mkdir(parents=True)
    put(house / "models/ldm/text2img-large/model.ckpt")
    by_name = [zoo.resolve(name) for name in ("things", "text2img-large")]
    folder, large = house / "models/ldm/things", by_name[1]
    assert zoo.resolve() == zoo.resolve(config=large.config, ckpt=large.weights) == large
    assert zoo.resolve(str(folder)) == by_name[0]
    assert zoo.resolve(config=folder / "config.yaml", ckpt=folder / "model.safetensors") == by_name[0]

    put_model(Path("mine"))
    own = [zoo.resolve("./mine"), zoo.resolve(config="mine/config.yaml", ckpt="mine/model.safetensors")]
    assert [files.given for files in own] == [
        ("./mine", None, None, None, ()),
        ("auto", "mine/config.yaml", "mine/model.safetensors", None, ()),
    ]
    moved = house.rename(tmp_path / "moved")
    monkeypatch.setattr(zoo, "REPOSITORY", moved)
    for files in [*by_name, *own]:
        again = zoo.resolve(*files.given)
        assert again.given == files.given and again.name == files.name
        assert not again.weights.is_relative_to(house)
    assert zoo.resolve(*by_name[0].given).clip == moved / "models/clip/things"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": "stable"}, 'model "stable" is neither auto, things, scenes, text2img-large, pixels,'),
        ({"config": "c.yaml"}, "`config` needs `ckpt`"),
        ({"ckpt": "w.pt"}, "`ckpt` needs `config`"),
        ({"model": "scenes", "config": "c.yaml", "ckpt": "w.pt"}, "two models"),
        ({"config": "none.yaml", "ckpt": "w.pt"}, "`config` .*none.yaml.*: there is no such file"),
        ({"config": "c.yaml", "ckpt": "none.pt"}, "`ckpt` .*none.pt.*: there is no such file"),
    ],
)
def test_contradictions(house: Path, arguments: dict, message: str):
    put(Path("c.yaml")), put(Path("w.pt"))
    with pytest.raises(UserError, match=message):
        zoo.resolve(**arguments)


def test_load(house: Path):
    folder = house / "models" / "ldm" / "scenes"
    save_safetensors({"linear.weight": torch.eye(2), "linear.bias": torch.ones(2)}, folder / "model.safetensors")
    put(
        folder / "config.yaml",
        f"""
        size: 2
        model:
          target: {__name__}.Tiny
          params:
            key: txt
            cond_stage_config:
              target: some.Encoder
              params: {{tokenizer: ".", vocab: words/vocab.txt, hub: bert-base-uncased, width: "${{size}}"}}
        """,
    )
    put(folder / "words" / "vocab.txt")
    put(folder / "txt")
    model = zoo.load(zoo.resolve("scenes"), torch.device("cpu"), torch.float32)
    assert torch.equal(model.linear(torch.ones(1, 2)), torch.full((1, 2), 2.0))
    assert not model.training
    assert model.key == "txt", "only the text encoder has paths"
    assert model.cond_stage_config["params"] == {
        "tokenizer": str(folder),
        "vocab": str(folder / "words" / "vocab.txt"),
        "hub": "bert-base-uncased",
        "width": 2,
    }


@pytest.mark.parametrize("text", ["- 1", "other: 1", "model: 3", "model: [", "a: ${nowhere}", "", "\0"])
def test_configs_that_cannot_be_used(tmp_path: Path, text: str):
    with pytest.raises(UserError, match=r"c\.yaml") as caught:
        zoo.read_config(put(tmp_path / "c.yaml", text))
    assert "\n" not in str(caught.value)


def test_download_goes_where_resolve_looks(house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(zoo, "fetch", lambda remote, target, force: calls.append((remote, target, force)))
    zoo.download("text2img-large")
    zoo.download("text2img-large", Path("here"), force=True)
    remote = zoo.MODELS["text2img-large"].remote
    assert calls == [
        (remote, house / "models" / "ldm" / "text2img-large" / "model.ckpt", False),
        (remote, tmp_path / "elsewhere" / "here" / "model.ckpt", True),
    ]
    assert len(remote.urls) == 2


@pytest.mark.parametrize("name, what", [("scenes", "comes with this program"), ("stable", "is unknown")])
def test_nothing_to_download(house: Path, name: str, what: str):
    with pytest.raises(UserError, match=f'model "{name}" {what}; to download: text2img-large'):
        zoo.download(name)


def test_script_lists_the_models(house: Path, capsys: pytest.CaptureFixture):
    main([])
    listed = capsys.readouterr().out
    main(["--list"])
    assert capsys.readouterr().out == listed
    small, _, large, *_ = listed.splitlines()
    assert small.split()[:2] == ["things", "here"]
    assert large.split()[:3] == ["text2img-large", "not", "here"]


@pytest.mark.parametrize("options, use", [([], "--model text2img-large"), (["--to", "here"], "here/model.ckpt")])
def test_script_says_how_to_use_it(
    house: Path, options: list[str], use: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(zoo, "fetch", lambda remote, target, force: target)
    main(["text2img-large", *options])
    assert use in capsys.readouterr().out


def test_script_without_a_mirror_is_one_line_and_exit_code_2(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from ldm import cli

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    closed = zoo.KnownModel("nowhere", "ldm/nowhere", remote=Remote(("http://127.0.0.1:1/x",), 1))
    monkeypatch.setitem(zoo.MODELS, "nowhere", closed)
    monkeypatch.setattr(logging.getLogger("ldm"), "handlers", [])  # `run` sets its own: put back what was there
    assert cli.run(main, ["nowhere"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "http://127.0.0.1:1/x (" in errors[0] and "refused" in errors[0]
