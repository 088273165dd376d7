"""The model card of a model of everyday things: its text, its sources, and every figure from what measured it.

No figure is written by hand: those of the judges come from `things.json`, those of the trainings from their logs, the
sources from the table that `scripts/make_things.py` writes, the words from the model's own list.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.backbones import zoo
from ldm.backbones.words import known_words
from ldm.data.things.nouns import FAMILIAR, NOUNS
from ldm.errors import UserError
from ldm.evaluation.things_report import Figure, markdown

ROWS = 8
"""Of each training's log, at most."""

TEXT = """# {name}

A latent diffusion model that paints everyday things with names before photographs, at {size}x{size} pixels. Its
weights come with this repository under its licence (MIT) and were trained by it from the sources below alone: no
pretrained generative model, no pictures from the web. What it paints looks like them: rendered objects, toy-like, in
the light of the photograph. It knows no text, no persons by name, no places by name.

{size_on_disk}

## How it was made

Composites of cut-outs on photographs ([docs/things.md](../../../docs/things.md)): each noun has one portrait, a
rendered object or a 3D model from the front; one or two are put before a photograph with its light and with shadows,
and a grammar captions them. The first stage (f8, four channels) has the encoder of [`scenes`](../scenes/README.md); its
decoder was trained further at this size, with a perceptual loss on the features of EfficientNet-Lite0 (Apache-2.0) and
a patch discriminator. The denoiser begins with that of `scenes` too. It learned v-prediction on these latents, folded
2x2, with 10 % of the prompts left out; what ships is the running mean of its weights. The ranker is a small CLIP that
learned from crops of the composites. Weights were chosen on the validation split of `scripts/evaluate_things.py`, on
other photographs than those of the tables and by another classifier.

{logs}
## Figures

{figures}
## Words

{words}
It reads the names of {others} more things, of which it has seen far less:
`python scripts/text_editing.py --words --model {name}` prints all words.

## Sources and licences

Nothing under the GPL, and nothing that forbids commercial use or changes. Photographs of the split "test" have had no
part in training or selection.

{sources}
## Limits

A thing is painted much like the one picture that the training has of it: predictions differ in place, size and
detail, and hardly in pose. Colours are those that a thing could be turned to; two things in one prompt come out less
often than one.
"""


def write_card(
    model: str, credits: Path, evaluation: Path | None = None, logs: Sequence[Path] = (), name: str | None = None
) -> str:
    """The card as Markdown.

    Args:
        model: name or folder of the model. credits: `CREDITS.md` of the data. evaluation: folder of
            `scripts/evaluate_things.py`; without it the card says that nothing was measured. logs: run folders of the
            trainings, in their order. name: what the card calls the model.

    Raises:
        UserError: a file that is not there, or an evaluation of other weights or of the validation split.
    """
    files = zoo.resolve(model)
    outline: Any = zoo.outline(files)
    try:
        sources = credits.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f'"{credits}" cannot be read ({error.strerror}): scripts/make_things.py writes it') from error
    return TEXT.format(
        name=name or files.name,
        size=int(outline.image_size) * int(outline.factor),
        size_on_disk=size_line(files),
        logs="".join(log_table(folder) for folder in logs),
        figures=_figures(files, evaluation),
        words=words_lines(files),
        others=len(NOUNS) - len(FAMILIAR),
        sources=sources.strip() + "\n",
    )


def size_line(files: zoo.ModelFiles) -> str:
    """What ships, in megabytes."""
    folders = [files.weights.parent] + ([files.clip] if isinstance(files.clip, Path) else [])
    within = {file for folder in folders for file in folder.rglob("*") if file.is_file()}
    return f"Everything that ships of it is {sum(file.stat().st_size for file in within) / 1e6:.1f} MB."


def _figures(files: zoo.ModelFiles, folder: Path | None) -> str:
    if folder is None:
        return "Not measured yet: `python scripts/evaluate_things.py`.\n"
    from ldm.files import weights_hash

    try:
        content = json.loads((folder / "things.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f'"{folder}" holds no things.json: evaluate the model first') from error
    settings = content["settings"]
    if settings.get("split") != "test":
        raise UserError(f'"{folder}" is of the validation split: a card shows the figures of the test split alone')
    if settings.get("model_sha256") != weights_hash(files.weights):
        raise UserError(f'"{folder}" measured other weights than those of {files.name}: evaluate these')
    names = Figure.__dataclass_fields__
    figures = [Figure(**{key: row[key] for key in names}) for row in content["figures"]]
    how = f"`scripts/evaluate_things.py`, {settings['ddim_steps']} steps of {settings['sampler']}"
    return f"By {how}; in brackets 95 % intervals over the inputs.\n\n{markdown(figures)}"


def words_lines(files: zoo.ModelFiles) -> str:
    """What the model's list says that it knows, by kind."""
    return "".join(f"- {kind}: {', '.join(words)}\n" for kind, words in known_words(files).items()) + "\n"


def log_table(folder: Path) -> str:
    """A training's validation figures at a few of its steps, of all its runs, as Markdown; its loss where it was not
    validated.

    Raises:
        UserError: the folder holds no log.
    """
    validated: dict[int, dict[str, float]] = {}
    trained: dict[int, dict[str, float]] = {}
    versions = sorted((folder / "csv").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    for path in versions:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                values = {key: float(value) for key, value in row.items() if key and "/" in key and value}
                for kind, seen in (("val/", validated), ("train/loss", trained)):
                    if found := {key: value for key, value in values.items() if key.startswith(kind)}:
                        seen.setdefault(int(row["step"]) + 1, {}).update(found)
    if not versions:
        raise UserError(f'"{folder}" holds no log of scripts/train.py')
    seen = validated or trained
    if not seen:
        return ""
    steps = sorted(seen)
    chosen = sorted({steps[round(i * (len(steps) - 1) / max(1, ROWS - 1))] for i in range(ROWS)})
    return f"{folder.name}, on {'validation' if validated else 'training'} composites:\n\n{_rows(chosen, seen)}\n"


def _rows(steps: Sequence[int], seen: Mapping[int, Mapping[str, float]]) -> str:
    keys = list(dict.fromkeys(key for step in steps for key in seen[step]))
    lines = [["step", *(key.split("/", 1)[1] for key in keys)], ["---"] * (1 + len(keys))]
    lines += [[str(step), *(f"{seen[step][key]:.4g}" if key in seen[step] else "" for key in keys)] for step in steps]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
