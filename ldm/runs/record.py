"""The record of a run: everything that is needed to make it again, as run.json and the pictures hold it."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import unicodedata
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import PIL

from ldm.errors import UserError

FORMAT = 3
_READABLE = (2, 3)  # 2: absolute paths, no run_id, device and precision as asked for
_SLUG_LENGTH = 80
_SAMPLERS = {"ddim": "DDIM", "dpmpp_2m": "DPM++ 2M", "lcm": "LCM"}  # as the common viewers know them
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}


def prompt_slug(prompt: str) -> str:
    """A file name for a prompt: at most 80 of a-z, 0-9, "-" and "_", different for different prompts.

    "a pink yarn ball" is "a-pink-yarn-ball". A prompt that loses anything on the way (capitals, other scripts,
    punctuation, length) ends in "_" and ten digits of its SHA-256; the empty prompt is "unconditional".
    """
    if not prompt:
        return "unconditional"
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    name = "-".join(re.findall("[a-z0-9]+", plain))
    exact = name.replace("-", " ") == prompt and name not in _RESERVED | {"unconditional"}
    if exact and len(name) <= _SLUG_LENGTH:
        return name
    mark = "_" + hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return (name or "prompt")[: _SLUG_LENGTH - len(mark)].strip("-") + mark


def portable_path(path: str | os.PathLike) -> str:
    """A path as a record may hold it: as given where it is relative, else the file's name alone.

    Records travel with pictures, and an absolute path tells of its author's machine.
    """
    return str(Path(path).name if Path(path).is_absolute() else path)


def _versions() -> dict[str, str]:
    import torch  # of who makes a run: those who only read records do without

    try:
        own = importlib.metadata.version("blended-latent-diffusion")
    except importlib.metadata.PackageNotFoundError:  # run from a folder that was not installed
        own = "not installed"
    return {
        "blended-latent-diffusion": own,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pillow": PIL.__version__,
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class RunRecord:
    """All that is needed to make a run again; run.json holds its fields under their names.

    Attributes:
        prompt: as given; "" is unconditional.
        model: the model's name.
        seed: the first prediction's; `seeds` are those of the predictions in rank order, best first.
        size: (H,W) that the model worked at.
        image, mask, invert_mask: the input, see `portable_path`; None where nothing was edited (plain generation).
        options: all other options under their names on the command line, defaults filled in.
        scores: CLIP distances in rank order, lower is better; None where nothing ranked them.
        image_sha256, mask_sha256: of the files' content.
        window: the part of the image that the model saw, the fields of `Window`; None where nothing was edited.
        feather: width of the band around the mask, in pixels of the image.
        measures: of each result in rank order, the fields of `Measures`.
        fits: of each mask in rank order whether it was fitted to its prediction ("fitted"), how much of it was "kept",
            and "why"; None where none could be, and in records of earlier versions.
        device, precision: what was used, never "auto"; None in records of format 2.
        ranker: the name of the model that scored the predictions, None where there was none.
        config, weights: files of a model without a name, see `write_run`; None for the others.
        weights_sha256: of the weights' content, see `ldm.backbones.zoo.ModelFiles.digest`.
        versions: of Python, this program, and the packages that decide what the pictures are.
        created: in UTC, ISO 8601.
        run_id: tells this run from all others, wherever its folder lies.
    """

    prompt: str
    model: str
    seed: int
    seeds: tuple[int, ...]
    size: tuple[int, int]
    image: str | None = None
    mask: str | None = None
    image_sha256: str | None = None
    mask_sha256: str | None = None
    invert_mask: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    scores: tuple[float, ...] | None = None
    window: dict[str, Any] | None = None
    feather: float | None = None
    fits: tuple[dict[str, Any], ...] | None = None
    measures: tuple[dict[str, Any], ...] | None = None
    device: str | None = None
    precision: str | None = None
    ranker: str | None = None
    config: str | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    versions: dict[str, str] = field(default_factory=_versions)
    created: str = field(default_factory=_now)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    format: int = FORMAT

    def __post_init__(self):
        """Lists (as JSON has them) become tuples, and paths portable.

        Raises:
            ValueError: as many scores as there are not predictions.
        """
        for name in ("seeds", "size", "scores", "measures", "fits"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if self.scores is not None and len(self.scores) != len(self.seeds):
            raise ValueError(f"{len(self.scores)} scores for {len(self.seeds)} predictions")
        if self.format < FORMAT:  # the released program found files by the absolute paths of its records
            return
        for name in ("image", "mask"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else portable_path(value))
        options = {k: portable_path(v) if isinstance(v, os.PathLike) else v for k, v in self.options.items()}
        object.__setattr__(self, "options", options)

    def to_json(self) -> str:
        """The record as indented JSON; what JSON has no word for (paths, devices) as text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str | os.PathLike = "run.json") -> "RunRecord":
        """The record of `to_json`; fields that this version does not know are left out.

        Raises:
            UserError: damaged, or of a newer format; `source` is named.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UserError(f'"{source}" is damaged ({error}): make the run again') from error
        if not isinstance(values, dict):
            raise UserError(f'"{source}" is not the record of a run: make the run again')
        version = values.get("format", FORMAT)
        if version not in _READABLE:
            mend = "update the program" if isinstance(version, int) and version > FORMAT else "make the run again"
            raise UserError(f'"{source}" has format {version}, this version reads {FORMAT}: {mend}')
        try:
            known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
            return cls(**{"run_id": _released_id(values), **known})
        except (TypeError, ValueError) as error:
            raise UserError(f'"{source}" is damaged ({error}): make the run again') from error

    def png_text(self, index: int) -> dict[str, str]:
        """The text chunks of a prediction: `parameters` as common viewers read it, and `ldm`, JSON of everything."""
        distance = None if self.scores is None else self.scores[index]
        sampler = self.options.get("sampler", "ddim")
        words = {
            "Steps": self.options.get("ddim_steps"),
            "Sampler": _SAMPLERS.get(sampler, sampler),
            "Eta": self.options.get("ddim_eta") or None,
            "CFG scale": self.options.get("scale"),
            "Seed": self.seeds[index],
            "Size": f"{self.size[1]}x{self.size[0]}",  # width first, as everybody has it
            "Model": self.model,
            "CLIP distance": None if distance is None else f"{distance:.4f}",
        }
        line = ", ".join(f"{key}: {value}" for key, value in words.items() if value is not None)
        negative = self.options.get("negative_prompt")
        line = f"Negative prompt: {negative}\n{line}" if negative else line
        about = {
            "index": index,
            "seed": self.seeds[index],
            "clip_distance": distance,
            "run": json.loads(self.to_json()),
        }
        return {"parameters": f"{self.prompt}\n{line}", "ldm": json.dumps(about, ensure_ascii=False)}

    def grid_text(self) -> dict[str, str]:
        """The text chunks of a run's grid: as of its best prediction, but `ldm` tells that it is a grid."""
        about = {"kind": "grid", "run": json.loads(self.to_json())}
        return self.png_text(0) | {"ldm": json.dumps(about, ensure_ascii=False)}


def _released_id(values: Mapping[str, Any]) -> str:
    """The `run_id` of a record of format 2, which has none: the same for run.json and the run's pictures."""
    names = ("prompt", "model", "seeds", "size", "options", "scores", "window", "feather", "created")
    content = json.dumps({name: values.get(name) for name in names}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]
