"""The record of a run: everything that is needed to make it again, as run.json and the pictures hold it."""

import hashlib
import json
import os
import platform
import re
import unicodedata
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from typing import Any

import PIL
import torch

from ldm.errors import UserError

FORMAT = 2
_SLUG_LENGTH = 80
_SAMPLERS = {"ddim": "DDIM", "dpmpp_2m": "DPM++ 2M"}  # as the common viewers know them
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


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "pillow": PIL.__version__}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class RunRecord:
    """All that is needed to make a run again; run.json holds its fields under their names.

    Attributes:
        prompt: as given; "" is unconditional.
        model: the model's name.
        config, weights: their paths; `weights_sha256` where it is known.
        seed: the first prediction's; `seeds` are those of the predictions in rank order, best first.
        scores: CLIP distances in rank order, lower is better; None where nothing ranked them.
        options: the command line's options under their names (`ddim_steps`, `scale`, ...).
        image, mask, invert_mask: the input as given.
        size: (H,W) that the model worked at.
        window: the part of the image that it saw, the fields of `Window`; None where nothing was edited (plain
            generation).
        feather: width of the band around the mask, in pixels of the image.
        measures: of each result in rank order, the fields of `Measures`.
    """

    prompt: str
    model: str
    config: str
    weights: str
    seed: int
    seeds: tuple[int, ...]
    image: str
    mask: str
    size: tuple[int, int]
    options: dict[str, Any] = field(default_factory=dict)
    scores: tuple[float, ...] | None = None
    invert_mask: bool = False
    window: dict[str, Any] | None = None
    feather: float | None = None
    measures: tuple[dict[str, Any], ...] | None = None
    weights_sha256: str | None = None
    versions: dict[str, str] = field(default_factory=_versions)
    created: str = field(default_factory=_now)
    format: int = FORMAT

    def __post_init__(self):
        """Lists (as JSON has them) become tuples.

        Raises:
            ValueError: as many scores as there are not predictions.
        """
        for name in ("seeds", "size", "scores", "measures"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if self.scores is not None and len(self.scores) != len(self.seeds):
            raise ValueError(f"{len(self.scores)} scores for {len(self.seeds)} predictions")

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
        if version != FORMAT:
            mend = "update the program" if isinstance(version, int) and version > FORMAT else "make the run again"
            raise UserError(f'"{source}" has format {version}, this version reads {FORMAT}: {mend}')
        try:
            return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        except (TypeError, ValueError) as error:
            raise UserError(f'"{source}" is damaged ({error}): make the run again') from error

    def png_text(self, index: int) -> dict[str, str]:
        """The text chunks of a prediction: `parameters` as common viewers read it, and `ldm`, JSON of everything."""
        distance = None if self.scores is None else self.scores[index]
        words = {
            "Steps": self.options.get("ddim_steps"),
            "Sampler": _SAMPLERS[self.options.get("sampler", "ddim")],
            "CFG scale": self.options.get("scale"),
            "Seed": self.seeds[index],
            "Size": f"{self.size[1]}x{self.size[0]}",  # width first, as everybody has it
            "Model": self.model,
            "CLIP distance": None if distance is None else f"{distance:.4f}",
        }
        line = ", ".join(f"{key}: {value}" for key, value in words.items() if value is not None)
        about = {
            "index": index,
            "seed": self.seeds[index],
            "clip_distance": distance,
            "run": json.loads(self.to_json()),
        }
        return {"parameters": f"{self.prompt}\n{line}", "ldm": json.dumps(about, ensure_ascii=False)}
