"""What has become of the rows of a batch: `summary.jsonl`, a line for each, and `index.html`, a page of them."""

import base64
import html
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from ldm.errors import UserError
from ldm.files import atomic_file, write_error
from ldm.imaging.images import as_picture

SUMMARY, PAGE, _THUMBNAILS = "summary.jsonl", "index.html", ".thumbnails.json"
# How our pages and lines begin; the second is of pages that were written before they named their generator.
_GENERATOR = '<meta name="generator" content="blended-latent-diffusion">'
_PAGE_MARKS = (_GENERATOR, '<form hidden><input type="search" name="words" placeholder="find in prompts and files"')
_LINE = re.compile(rb'\{"row": \d+, "name": "[\w-]*", "status": "(done|failed)"')
_SIDE = 192  # pixels of a thumbnail's longer side
_BEST = 4  # results that the page shows
_SHARE = 20  # the page is written again when this many times the time has gone by that it took to write


@dataclass(frozen=True)
class Outcome:
    """What has become of a row; a line of the summary.

    Attributes:
        row, name: its number, and its folder below the output folder.
        status: "done" or "failed", which `error` explains.
        prompt, image, mask: as given.
        seeds, scores, measures: of its predictions, best first; see `RunRecord`.
        unknown_words: of its prompt, that the model does not know.
        seconds: `reading` and `writing` its files, which other rows' sampling hides; `waiting`, that the device
            waited for its files; `sampling`, its part of the batch's.
        digest: of all that makes the row what it is, see `row_digest`.
    """

    row: int
    name: str
    status: str
    prompt: str | None = None
    image: str | None = None
    mask: str | None = None
    seeds: Sequence[int] = ()
    scores: Sequence[float] | None = None
    measures: Sequence[Mapping[str, Any]] = ()
    unknown_words: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    device: str | None = None
    digest: str | None = None
    error: str | None = None

    def line(self) -> bytes:
        """A line of the summary: JSON in UTF-8."""
        text = json.dumps(asdict(self), ensure_ascii=False, default=str)
        return text.encode("utf-8", "replace") + b"\n"


def read_summary(outdir: Path) -> list[Outcome]:
    """The outcomes that an earlier run has noted; what is torn or none of ours is left out."""
    try:
        lines = (outdir / SUMMARY).read_bytes().split(b"\n")
    except OSError:
        return []
    names, outcomes = {one.name for one in fields(Outcome)}, []
    for line in lines:
        with suppress(ValueError, TypeError, AttributeError):
            values = json.loads(line)
            outcomes.append(Outcome(**{name: value for name, value in values.items() if name in names}))
    return outcomes


def check_report(outdir: Path, source: Path) -> None:
    """Make sure, before any work is done, that the two files replace only what an earlier batch wrote.

    Args:
        source: the batch's rows.

    Raises:
        UserError: a file of the user's lies there; or it is the rows.
    """
    checks = {SUMMARY: _is_summary, PAGE: _is_page}
    for name, is_ours in checks.items():
        path = outdir / name
        try:
            ours = not os.path.lexists(path) or (not path.is_symlink() and is_ours(path.read_bytes()))
        except OSError:  # a folder, or nothing that we may read
            ours = False
        if not ours:
            raise UserError(f'"{path}" is no {name} of a batch, so it stays: move it away or choose another `outdir`')
        if path.exists() and source.exists() and path.samefile(source):
            raise UserError(f'"{path}" would be replaced while its rows are read: copy it or choose another `outdir`')


def check_thumbnails(folder: Path) -> None:
    """Make sure, before any work is done, that `save_thumbnails` replaces only what it wrote.

    Raises:
        UserError: a file of the user's lies there.
    """
    path = folder / _THUMBNAILS
    if os.path.lexists(path) and not _thumbnails(folder):
        raise UserError(f'"{path}" holds no thumbnails of a batch, so it stays: move it away')


def _is_summary(content: bytes) -> bool:
    first, _, more = content.partition(b"\n")
    torn = not more and b'{"row": '.startswith(first[:8]) and not first.endswith(b"}")  # a batch was killed
    return not content.strip() or torn or _LINE.match(first) is not None


def _is_page(content: bytes) -> bool:
    return any(mark.encode() in content for mark in _PAGE_MARKS)


class Summary:
    """Both files, kept as rows are finished: a line is added at once, the page is written anew from time to time.

    Args:
        outdir: exists. title: of the page. total: how many rows there are.
        known: what earlier runs have done; the summary begins with it.

    Raises:
        UserError: a file cannot be written; so do the methods.
    """

    def __init__(self, outdir: Path, title: str, total: int, known: Iterable[Outcome] = ()):
        self.outdir, self.title, self.total = outdir, title, total
        self.outcomes = {outcome.row: outcome for outcome in known}
        with atomic_file(outdir / SUMMARY) as file:
            file.writelines(outcome.line() for _, outcome in sorted(self.outcomes.items()))
        self.due = 0.0

    def add(self, outcome: Outcome) -> None:
        """Note what has become of a row, in place of what was known of it."""
        self.outcomes[outcome.row] = outcome
        path = self.outdir / SUMMARY
        try:
            with open(path, "ab") as file:
                file.write(outcome.line())
        except OSError as error:
            raise write_error(path, error) from error
        if time.monotonic() >= self.due:
            self.write_page()

    def write_page(self) -> None:
        """Write the page anew, as a whole."""
        start = time.monotonic()
        outcomes = [outcome for _, outcome in sorted(self.outcomes.items())]
        with atomic_file(self.outdir / PAGE) as file:
            file.writelines(part.encode("utf-8", "replace") for part in _page(self, outcomes))
        now = time.monotonic()
        self.due = now + _SHARE * (now - start)

    def count(self, status: str) -> int:
        """How many rows have a status, "done" or "failed"."""
        return sum(outcome.status == status for outcome in self.outcomes.values())


def save_thumbnails(folder: Path, source: Image.Image, mask: Image.Image, results: Sequence[Image.Image]) -> None:
    """Keep small copies for the page in a row's folder, so that the page never reads large files.

    Raises:
        UserError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [_thumbnail(image) for image in (source, mask, *results[:_BEST])]
    with atomic_file(folder / _THUMBNAILS) as file:
        file.write(json.dumps(pictures).encode())


def _thumbnail(image: Image.Image) -> dict[str, Any]:
    image = image.copy()
    image.thumbnail((_SIDE, _SIDE))
    file = BytesIO()
    as_picture(image).rgb.save(file, "WEBP", quality=75)
    source = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return {"src": source, "width": image.width, "height": image.height}


def _thumbnails(folder: Path) -> list[dict[str, Any]]:
    """What `save_thumbnails` wrote; nothing where it did not."""
    try:
        pictures = json.loads((folder / _THUMBNAILS).read_bytes())
        return [{name: picture[name] for name in ("src", "width", "height")} for picture in pictures]
    except (OSError, ValueError, TypeError, LookupError):
        return []


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #62676f; --line: #dcdfe4; --paper: #fff; --back: #f5f6f8;
  --bad: #b3261e; --accent: #1f5fbf; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa1ab; --line: #33373e; --paper: #1b1e22;
  --back: #121417; --bad: #ff8a80; --accent: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
header, main { max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.35rem; margin: .5rem 0 0; overflow-wrap: anywhere; }
header p { margin: .25rem 0 1rem; color: var(--soft); }
form { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center; }
input[type=search] { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; padding: .4rem .7rem; flex: 0 1 22rem; min-width: 0; }
article { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: .9rem 1rem;
  margin-bottom: .8rem; content-visibility: auto; contain-intrinsic-size: auto 16rem; }
article.failed { border-left: 4px solid var(--bad); }
h2 { font-size: 1rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
h2 small { font-weight: 400; color: var(--soft); margin-right: .5rem; }
ul { list-style: none; margin: .6rem 0; padding: 0; display: grid; gap: .7rem;
  grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); max-width: 66rem; }
li a { display: block; color: var(--soft); text-decoration: none; font-size: .82rem; }
li img { display: block; width: 100%; height: 8.5rem; object-fit: contain; background: var(--back);
  border-radius: 4px; margin-bottom: .2rem; }
a:focus-visible, input:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
a:hover img { outline: 1px solid var(--accent); }
p.note { margin: .3rem 0 0; color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
p.error { margin: .4rem 0 0; color: var(--bad); overflow-wrap: anywhere; }
[hidden] { display: none !important; }
"""

_SCRIPT = """
const rows = [...document.querySelectorAll('article')], form = document.querySelector('form');
form.hidden = false;
form.addEventListener('submit', event => event.preventDefault());
form.addEventListener('input', () => {
  const words = form.words.value.toLowerCase().split(/\\s+/);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = (form.failed.checked && !row.classList.contains('failed')) || !words.every(w => text.includes(w));
    shown += !row.hidden;
  }
  form.querySelector('output').textContent = shown + ' of ' + rows.length;
});
"""


def _page(summary: Summary, outcomes: Sequence[Outcome]) -> Iterable[str]:
    title = html.escape(summary.title)
    done, failed = summary.count("done"), summary.count("failed")
    waiting = summary.total - done - failed
    count = f"{summary.total} rows: {done} done, {failed} failed" + (f", {waiting} to go" if waiting else "")
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'{_GENERATOR}<meta name="viewport" content="width=device-width, initial-scale=1">'
        # The page may load nothing and send nothing: what it shows is in it.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><header><h1>{title}</h1><p>{count}</p>"
        '<form hidden><input type="search" name="words" placeholder="find in prompts and files" '
        'aria-label="find in prompts and files"><label><input type="checkbox" name="failed"> failed only</label>'
        '<output aria-live="polite"></output></form></header>\n<main>\n'
    )
    for outcome in outcomes:
        yield _article(summary.outdir, outcome)
    yield f"</main><script>{_SCRIPT}</script></body></html>\n"


def _article(outdir: Path, outcome: Outcome) -> str:
    prompt = html.escape(outcome.prompt or "") or "<em>no prompt</em>"
    parts = [f'<article class="{outcome.status}"><h2><small>{outcome.row}</small>{prompt}</h2>']
    if outcome.error is not None:
        parts.append(f'<p class="error">{html.escape(outcome.error)}</p>')
    if outcome.status == "done":
        parts.append(f"<ul>{''.join(_figures(outdir, outcome))}</ul>")
    notes = [f"image {outcome.image}", f"mask {outcome.mask}"] if outcome.image else []
    if outcome.unknown_words:
        notes.append(f"the model does not know: {', '.join(outcome.unknown_words)}")
    if outcome.seconds:
        notes.append(", ".join(f"{name} {seconds:.2f} s" for name, seconds in outcome.seconds.items()))
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in notes]
    return "".join(parts) + "</article>\n"


def _figures(outdir: Path, outcome: Outcome) -> Iterable[str]:
    """The thumbnails of a row, each a link to its file."""
    thumbnails = _thumbnails(outdir / outcome.name)
    samples = f"{quote(outcome.name)}/samples"
    original = f"original{quote(Path(outcome.image or '').suffix.lower())}"
    places = [("input", f"{samples}/assets/{original}"), ("mask", f"{samples}/assets/full_mask.png")]
    for i in range(max(0, len(thumbnails) - len(places))):
        score = f", distance {outcome.scores[i]:.3f}" if outcome.scores else ""
        seam = f", seam {outcome.measures[i]['seam']:.1f}" if outcome.measures else ""
        places.append((f"result {i}: seed {outcome.seeds[i]}{score}{seam}", f"{samples}/results/{i:04d}.png"))
    for (caption, link), thumbnail in zip(places, thumbnails, strict=False):
        size = f'width="{thumbnail["width"]}" height="{thumbnail["height"]}"'
        alt = html.escape(f"{caption} of row {outcome.row}, {outcome.prompt}", quote=True)
        image = f'<img src="{thumbnail["src"]}" {size} alt="{alt}" decoding="async">'
        yield f'<li><a href="{link}">{image}{caption}</a></li>'
