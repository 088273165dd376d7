"""What `pip install .` brings along, and that all that is imported is declared."""

import ast
import os
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASELINES = ("blended-diffusion", "glide", "paint-by-word")
COMMANDS = ("edit", "reconstruct", "batch", "txt2img", "download", "studio", *BASELINES)
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "open_clip": "open_clip_torch",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The repository in another place, where what builds leave behind is in nobody's way."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("LICENSE", "configs", "ldm", "models", "pyproject.toml", "scripts", "setup.py"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def unpacked(source: Path, tmp_path_factory) -> Path:
    """The content of the wheel that pip builds."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("unpacked")
    quick = "--config-settings=--build-option=--compression=stored"
    words = ["--quiet", "--no-deps", "--no-build-isolation", quick, "--wheel-dir", wheels, source]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *words], check=True)
    return unpack(wheels, target)


def unpack(wheels: Path, target: Path) -> Path:
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def python(code: str, unpacked: Path, cwd: Path, **environment: str) -> str:
    """What code prints that has only the unpacked wheel on its path."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), "PYTHONPATH": str(unpacked), **environment}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_all_that_a_named_model_needs(unpacked: Path, tmp_path: Path):
    code = (
        "import ldm; from ldm.backbones import zoo; files = zoo.resolve()\n"
        "print(ldm.__file__, files.config, files.weights, files.clip, zoo.read_config(files.config)['model']"
        "['params']['cond_stage_config']['params']['tokenizer'],"
        "zoo.REPOSITORY / zoo.MODELS['text2img-large'].config, sep='\\n')"
    )
    paths = [Path(line) for line in python(code, unpacked, tmp_path).splitlines()]
    assert len(paths) == 6 and all(path.is_relative_to(unpacked) and path.exists() for path in paths)
    for path in paths[2:4]:
        (own,) = (ROOT / "models").rglob(str(path.relative_to(unpacked / "ldm/_bundled/models")))
        assert own.is_dir() or own.read_bytes() == path.read_bytes()
    assert {path.name for path in paths[3].iterdir()} == {path.name for path in (ROOT / "models/clip/things").iterdir()}
    assert (unpacked / "ldm/py.typed").is_file()
    page = ROOT / "ldm/studio/page"
    for path in (path.relative_to(page) for path in page.rglob("*") if path.is_file()):
        assert (unpacked / "ldm/studio/page" / path).is_file(), path
    assert {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"} == {"ldm"}


def test_the_console_commands_are_the_scripts(unpacked: Path, tmp_path: Path):
    (declared,) = unpacked.glob("*.dist-info/entry_points.txt")
    commands = dict(re.findall(r"(bld-\S+) = ldm\.cli:(\S+)", declared.read_text()))
    assert commands.keys() == {f"bld-{name}" for name in COMMANDS}
    code = (
        "import sys; sys.argv = ['bld-x', '--help']; from ldm import cli\n"
        f"for name in {list(commands.values())}:\n"
        "    try: getattr(cli, name)()\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    assert python(code, unpacked, tmp_path).count("usage: ") == len(commands)


def test_an_editable_installation_runs_the_repository_s_own(source: Path, tmp_path: Path):
    build = f"from setuptools.build_meta import build_editable; build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    unpack(tmp_path, tmp_path / "unpacked")
    (finder,) = tmp_path.glob("unpacked/*_finder.py")
    code = (
        f"import {finder.stem}; {finder.stem}.install()\n"
        "import ldm.commands.reconstruct; from ldm.backbones import zoo\n"
        "print(ldm.commands.reconstruct.__file__, zoo.resolve('things').weights, sep='\\n')"
    )
    script, weights = python(code, tmp_path / "unpacked", tmp_path).splitlines()
    assert Path(script).resolve() == ROOT / "scripts/reconstruct.py"
    assert Path(weights) == ROOT / "models/ldm/things/model.safetensors"


def test_an_installed_program_knows_no_clone(unpacked: Path, tmp_path: Path):
    """Downloads go to the user's cache, and no hint speaks of git or of scripts."""
    code = (
        "from ldm.backbones import zoo; from ldm.errors import UserError\n"
        "print(zoo.models_dir())\n"
        "for name in ('text2img-large', 'scenes'):\n"
        "    zoo.WEIGHTS_NAMES = ('none',)\n"
        "    try: zoo.resolve(name)\n"
        "    except UserError as error: print(error)"
    )
    folder, large, scenes = python(code, unpacked, tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache")).splitlines()
    assert folder == str(tmp_path / "cache/blended-latent-diffusion/models")
    assert large.endswith("is missing: bld-download text2img-large")
    assert scenes.endswith("is missing: it comes with this program, install that again")


def test_what_is_imported_is_declared(monkeypatch: pytest.MonkeyPatch):
    declared = {}
    monkeypatch.setattr("setuptools.setup", lambda **arguments: declared.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    requirements = sum(declared["extras_require"].values(), declared["install_requires"])
    names = {_plain(re.split("[<>=~!;[ ]", requirement)[0]) for requirement in requirements}
    undeclared = {
        f"{module} ({file.relative_to(ROOT)})"
        for folder in ("ldm", "scripts")
        for file in (ROOT / folder).rglob("*.py")
        for module in _imports(file) - sys.stdlib_module_names - {"ldm", "__future__", "_typeshed"}
        if _plain(DISTRIBUTIONS.get(module, module)) not in names
    }
    assert undeclared == set()


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _imports(file: Path) -> set[str]:
    """Top-level names of all that a file imports, within functions too."""
    modules = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.append(node.module)
    return {module.partition(".")[0] for module in modules}
