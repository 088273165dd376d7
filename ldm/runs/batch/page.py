"""The page of a batch, `index.html`: each row with its small pictures, to be looked at in a browser.

Of few rows it is one file that has all in itself. Of many it is a list of parts, `.pages/00001.html` and so on, each
of which loads the pictures that are looked at.
"""

import html
import os
from collections.abc import Iterable, Iterator, Set
from itertools import islice
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from ldm.errors import UserError
from ldm.files import atomic_file
from ldm.runs.batch.outcome import Outcome
from ldm.runs.batch.store import LocalStore, Store
from ldm.runs.batch.thumbnails import STRIP, read_thumbnails

PAGE = "index.html"
_PARTS = ".pages"
ROWS = 200  # of a part, and of a page that has no parts
_FAILURES = 1000  # that are listed on the first page
# How our pages begin; the second is of pages that were written before they named their generator.
_GENERATOR = '<meta name="generator" content="blended-latent-diffusion">'
_PAGE_MARKS = (_GENERATOR, '<form hidden><input type="search" name="words" placeholder="find in prompts and files"')

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #62676f; --line: #dcdfe4; --paper: #fff; --back: #f5f6f8;
  --bad: #b3261e; --accent: #1f5fbf; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa1ab; --line: #33373e; --paper: #1b1e22;
  --back: #121417; --bad: #ff8a80; --accent: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
header, main { max-width: 80rem; margin: 0 auto; padding: 1rem; }
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
ul.strip { grid-template-columns: repeat(auto-fill, 12rem); max-width: none; gap: .4rem; }
li a { display: block; color: var(--soft); text-decoration: none; font-size: .82rem; }
nav a, p.error a { color: var(--accent); margin-right: .5rem; }
main > h2 { margin: 1.2rem 0 .4rem; }
nav.parts { display: grid; grid-template-columns: repeat(auto-fill, 5.5rem); font-variant-numeric: tabular-nums; }
input[type=number] { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; padding: .4rem .7rem; width: 9rem; }
nav { margin: .6rem 0; }
li img { display: block; width: 100%; height: 8.5rem; object-fit: contain; background: var(--back);
  border-radius: 4px; margin-bottom: .2rem; }
a:focus-visible, input:focus-visible, button:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
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


# Of the first page: to the part that has a row.
_GO = """
const form = document.querySelector('form');
form.hidden = false;
form.addEventListener('submit', event => {
  event.preventDefault();
  const row = form.row.valueAsNumber, part = Math.floor((row - 1) / %d) + 1;
  if (row >= 1) location.href = '%s/' + String(part).padStart(5, '0') + '.html#row-' + row;
});
"""


class Summary(Protocol):
    """What a page is made of, see `ldm.runs.batch.report.Summary`."""

    store: Store
    title: str
    total: int
    states: bytearray

    def count(self, status: str) -> int:
        """How many rows have a status."""
        ...

    def outcomes(self, first: int = 0, last: int | None = None) -> Iterator[Outcome]:
        """What is known of rows."""
        ...

    def failures(self) -> Iterator[int]:
        """The numbers of the rows that have failed."""
        ...


def is_page(content: bytes) -> bool:
    """Whether a file that begins so is a page of ours."""
    return any(mark.encode() in content for mark in _PAGE_MARKS)


def page_of(row: int) -> int:
    """The part that shows a row, from 1."""
    return (row - 1) // ROWS + 1


def write(summary: Summary, changed: Set[int]) -> list[str]:
    """Write the page to the desk; of its parts, those that have changed.

    Returns:
        The files that were written.

    Raises:
        UserError: the folder cannot be written, or holds files of the user's.
    """
    last = len(summary.states.rstrip(b"\0")) - 1
    if last <= ROWS:
        _write(summary, PAGE, _whole(summary))
        return [PAGE]
    parts = [part for part in sorted(changed) if part <= page_of(last)]
    files = [f"{_PARTS}/{part:05d}.html" for part in parts]
    for part, file in zip(parts, files, strict=True):
        _write(summary, file, _part(summary, part, page_of(last)))
    _write(summary, PAGE, _contents(summary, page_of(last)))
    return [*files, PAGE]


def _write(summary: Summary, file: str, text: Iterable[str]) -> None:
    path = summary.store.desk / file
    if file != PAGE:
        path.parent.mkdir(exist_ok=True)
        if os.path.lexists(path) and not is_page(path.read_bytes()[:4096]):
            raise UserError(f'"{path}" is no page of a batch, so it stays: move it away or choose another `outdir`')
    with atomic_file(path) as stream:
        stream.writelines(part.encode("utf-8", "replace") for part in text)


def _head(title: str, count: str, pictures: str) -> str:
    """The beginning of a page: it may load pictures of its own place at most, and send nothing."""
    title = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'{_GENERATOR}<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src {pictures}; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><header><h1>{title}</h1><p>{count}</p>"
    )


_FORM = (
    '<form hidden><input type="search" name="words" placeholder="find in prompts and files" '
    'aria-label="find in prompts and files"><label><input type="checkbox" name="failed"> failed only</label>'
    '<output aria-live="polite"></output></form>'
)


def _count(summary: Summary) -> str:
    done, failed = summary.count("done"), summary.count("failed")
    waiting = summary.total - done - failed
    return f"{summary.total} rows: {done} done, {failed} failed" + (f", {waiting} to go" if waiting > 0 else "")


def _whole(summary: Summary) -> Iterator[str]:
    own = isinstance(summary.store, LocalStore)  # else the pictures are not here to be put in
    yield _head(summary.title, _count(summary), "data:" if own else "'self'")
    yield f"{_FORM}</header>\n<main>\n"
    for outcome in summary.outcomes():
        yield _article(outcome, "", summary.store.desk if own else None)
    yield f"</main><script>{_SCRIPT}</script></body></html>\n"


def _part(summary: Summary, part: int, parts: int) -> Iterator[str]:
    first = (part - 1) * ROWS + 1
    yield _head(summary.title, f"rows {first} to {part * ROWS}, part {part} of {parts}", "'self' file:")
    links = [("first", 1), ("before", part - 1), ("next", part + 1), ("last", parts)]
    shown = (f'<a href="{number:05d}.html">{word}</a>' for word, number in links if 1 <= number <= parts)
    yield f'<nav><a href="../{PAGE}">all</a> {" ".join(shown)}</nav>{_FORM}</header>\n<main>\n'
    for outcome in summary.outcomes(first, part * ROWS):
        yield _article(outcome, "../")
    yield f"</main><script>{_SCRIPT}</script></body></html>\n"


def _contents(summary: Summary, parts: int) -> Iterator[str]:
    yield _head(summary.title, _count(summary), "'none'")
    last = len(summary.states.rstrip(b"\0")) - 1
    yield (
        f'<form hidden><label>go to row <input type="number" name="row" min="1" max="{last}" required></label>'
        '<button>go</button></form><nav><a href="#rows">all rows</a></nav></header>\n<main>\n'
    )
    failed = summary.count("failed")
    if failed:
        yield f"<h2>{failed} failed{f', the first {_FAILURES}' if failed > _FAILURES else ''}</h2>"
        for number in islice(summary.failures(), _FAILURES):
            link = f"{_PARTS}/{page_of(number):05d}.html#row-{number}"
            for outcome in summary.outcomes(number, number):
                error = html.escape(outcome.error or "")
                yield f'<p class="error"><a href="{link}">{number}</a> {error}</p>\n'
    yield f'<h2 id="rows">All rows, {ROWS} on a page</h2><nav class="parts">'
    for part in range(1, parts + 1):
        yield f'<a href="{_PARTS}/{part:05d}.html">{(part - 1) * ROWS + 1}</a> '
    yield f"</nav></main><script>{_GO % (ROWS, _PARTS)}</script></body></html>\n"


def _article(outcome: Outcome, up: str, outdir: Path | None = None) -> str:
    """A row. `up` leads to the output folder; where that is given, the small pictures are put in."""
    pictures = _beside(outcome, up) if outdir is None else _inside(outdir, outcome)
    prompt = html.escape(outcome.prompt or "") or "<em>no prompt</em>"
    parts = [f'<article id="row-{outcome.row}" class="{outcome.status}"><h2><small>{outcome.row}</small>{prompt}</h2>']
    if outcome.error is not None:
        parts.append(f'<p class="error">{html.escape(outcome.error)}</p>')
    if outcome.status == "done":
        figures = (
            f'<li><a href="{up}{link}">{picture}{caption}</a></li>'
            for (caption, link), picture in zip(_places(outcome), pictures, strict=False)
        )
        parts.append(f"<ul{' class=strip' if outdir is None else ''}>{''.join(figures)}</ul>")
    notes = [f"image {outcome.image}", f"mask {outcome.mask}"] if outcome.image else []
    if outcome.unknown_words:
        notes.append(f"the model does not know: {', '.join(outcome.unknown_words)}")
    if outcome.seconds:
        notes.append(", ".join(f"{name} {seconds:.2f} s" for name, seconds in outcome.seconds.items()))
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in notes]
    return "".join(parts) + "</article>\n"


def _places(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """What a row's small pictures are of, and the files that they stand for."""
    samples = f"{quote(outcome.name)}/samples"
    yield "input", f"{samples}/assets/original{quote(Path(outcome.image or '').suffix.lower())}"
    yield "mask", f"{samples}/assets/full_mask.png"
    for i, seed in enumerate(outcome.seeds):
        score = f", distance {outcome.scores[i]:.3f}" if outcome.scores else ""
        seam = f", seam {outcome.measures[i]['seam']:.1f}" if outcome.measures else ""
        yield f"result {i}: seed {seed}{score}{seam}", f"{samples}/results/{i:04d}.png"


def _alt(outcome: Outcome, caption: str) -> str:
    return html.escape(f"{caption} of row {outcome.row}, {outcome.prompt}", quote=True)


def _inside(outdir: Path, outcome: Outcome) -> Iterator[str]:
    """The small pictures of a row that is here, with all their bytes."""
    for (caption, _), one in zip(_places(outcome), read_thumbnails(outdir / outcome.name), strict=False):
        size = f'width="{one["width"]}" height="{one["height"]}"'
        yield f'<img src="{one["src"]}" {size} alt="{_alt(outcome, caption)}" decoding="async">'


def _beside(outcome: Outcome, up: str) -> Iterator[str]:
    """The small pictures of a row as parts of its strip, which is loaded when it is looked at."""
    left = 0
    for (caption, _), (width, height) in zip(_places(outcome), outcome.thumbnails, strict=False):
        place = f"object-fit:none;object-position:-{left}px 0;width:{width}px;height:{height}px"
        yield (
            f'<img src="{up}{quote(outcome.name)}/{STRIP}" width="{width}" height="{height}" style="{place}" '
            f'alt="{_alt(outcome, caption)}" loading="lazy" decoding="async">'
        )
        left += width
