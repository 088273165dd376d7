"""Whose is a file that lies where we write? What a run of ours made may be replaced, all else is the user's.

Told by what is in it, not by its name: the text chunks of a PNG, the record of a run.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.errors import UserError
from ldm.runs.record import RunRecord, prompt_slug

# The files of a run, and those of a run that edited nothing.
RUN = re.compile(
    r"run\.json|latents\.safetensors|(images|results|masks)/\d{4,}\.png|videos/\d{4,}\.\w+|assets/[^/]+"
    r"|reconstructed_[a-z0-9_]+/(\d{4,}\.png|reconstruction\.json)"
)
PICTURES = re.compile(r"run\.json|latents\.safetensors|\d{4,}\.png")

# What others leave in any folder: file managers, and a process of ours that was killed while it wrote.
_LITTER = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\.[0-9a-f]{12}\.part")

# The released grids have `parameters` alone, as other programs write them too: ours in this order, named by the prompt.
_RELEASED = re.compile(
    r"(Steps: \d+, )?Sampler: (DDIM|DPM\+\+ 2M), (Eta: [\d.]+, )?(CFG scale: [\d.e+-]+, )?Seed: \d+, Size: \d+x\d+, "
    r"Model: [^,]*(, CLIP distance: [\d.-]+)?"
)


def check_folder(folder: Path, layout: re.Pattern[str], whole: bool) -> None:
    """Make sure that what lies at `folder` is nothing, an empty folder, or a run of ours.

    Args:
        layout: `RUN` or `PICTURES`.
        whole: it will be removed, so every single file in it must be that run's; so must those of a folder that has
            no record to go by.

    Raises:
        UserError: it is the user's.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise _refusal(folder, "is no folder")
    if is_free(folder):
        return
    run = run_id(folder)
    if run is None and (layout is RUN or (folder / "run.json").exists()):
        raise _refusal(folder, "holds files but no run.json of a run")
    if (folder / "images").is_dir() != (layout is RUN):
        raise _refusal(folder, "is another kind of run")
    if (whole or run is None) and (strange := next(_strangers(folder, layout, run), None)):
        raise _refusal(strange, "is not of the run in its folder")


def check_png(path: Path, kind: str) -> None:
    """Make sure that what lies at `path` is nothing, or a picture of ours of this kind.

    Args:
        kind: `kind` in its text chunk `ldm`, such as "grid"; "prediction" is what has none but an `index`.

    Raises:
        UserError: it is the user's.
    """
    if not os.path.lexists(path):
        return
    text = _text(path)
    about = _about(text)
    prompt, _, line = text.get("parameters", "").rpartition("\n")
    ours = about.get("kind", "prediction" if "index" in about else None) == kind
    released = kind == "grid" and "ldm" not in text and _RELEASED.fullmatch(line) and prompt_slug(prompt) == path.stem
    if path.is_symlink() or not (ours or released):
        raise _refusal(path, "was not made by this program")


def check_lock(path: Path) -> None:
    """Make sure that what lies at `path` is nothing or a lock: an empty file, or one that begins with the number of its
    holder, as there is on file systems without locks.

    Raises:
        UserError: it is the user's.
    """
    try:
        ours = not os.path.lexists(path) or re.match(rb"\d+\n|\Z", path.read_bytes()) is not None
    except FileNotFoundError:  # given back in this moment
        ours = not path.is_symlink()
    except OSError:
        ours = False
    if path.is_symlink() or not ours:
        raise _refusal(path, "is no lock of this program")


def is_free(folder: Path) -> bool:
    """Whether nothing lies there, or an empty folder."""
    if not os.path.lexists(folder):
        return True
    try:
        return not folder.is_symlink() and not any(folder.iterdir())
    except OSError:  # a file, or a folder that we may not read
        return False


def run_id(folder: Path) -> str | None:
    """Of the run in a folder; None where there is none that can be read, now."""
    try:
        return RunRecord.from_json((folder / "run.json").read_text(encoding="utf-8")).run_id
    except (OSError, UnicodeDecodeError, UserError):
        return None


def _strangers(folder: Path, layout: re.Pattern[str], run: str | None) -> Iterator[Path]:
    """The files in a run's folder that the run did not make."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (path.is_dir() and not path.is_symlink()) or _LITTER.fullmatch(path.name):
            continue
        numbered = re.fullmatch(r"\d{4,}\.png", path.name)
        if path.is_symlink() or not layout.fullmatch(name) or (numbered and not _is_of(path, folder, run)):
            yield path


def _is_of(picture: Path, folder: Path, run: str | None) -> bool:
    """Whether a numbered picture is of this run; of the released `txt2img.py`, whose folders have no record, of its
    prompt."""
    about = _about(_text(picture))
    if run is None:
        return "run" not in about and prompt_slug(str(about.get("prompt"))) == folder.name
    try:
        return RunRecord.from_json(json.dumps(about["run"])).run_id == run
    except (KeyError, UserError):
        return False


def _text(path: Path) -> dict[str, str]:
    """The text chunks of a PNG before its pixels, where ours are; none for other files."""
    if not path.is_file():
        return {}
    try:
        with Image.open(path, formats=("PNG",)) as file:
            return {key: str(value) for key, value in file.info.items() if isinstance(value, str)}
    except Exception:  # a damaged file may break a decoder in any way, and is then none of ours
        return {}


def _about(text: Mapping[str, str]) -> dict[str, Any]:
    try:
        about = json.loads(text.get("ldm", ""))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _refusal(path: Path, what: str) -> UserError:
    return UserError(f'"{path}" {what}, so it stays: move it away or choose another `outdir`')
