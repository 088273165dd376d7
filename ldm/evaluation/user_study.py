"""The user study of appendix C.2: pages with pairs of pictures to rate, and what the ratings say.

Each rater gets a page of one file: in an order of its own, the best-ranked prediction of one method beside that of
another for the same input, each on a side drawn at random. Which is which stands in `key.json` alone.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import binomtest

from ldm.errors import UserError
from ldm.evaluation.inputs import FILE, Input, painted_from, read_benchmark
from ldm.evaluation.jobs import StudyJob
from ldm.evaluation.paintings import about_painting, best_file
from ldm.files import atomic_file, write_error
from ldm.imaging.images import load_image

QUESTIONS = {"quality": "better visual quality", "match": "matches the prompt more closely"}
KEY = "key.json"
PAGES = "pages"
SIDE = 512
"""Longer side that pictures are brought to, in pixels, at most."""

_SIDES = ("left", "equal", "right")


@dataclass(frozen=True)
class Pair:
    """Two pictures for one input, files both; against: the other method."""

    prompt: str
    against: str
    ours: Path
    theirs: Path


def pairs_of(
    evaluation: Path, inputs: Sequence[Input], ours: str, against: Sequence[str], count: int | None = None
) -> list[Pair]:
    """The pairs of an evaluation's folder: of the inputs that both methods have painted, the first `count`.

    Raises:
        UserError: a method that painted nothing there, or the same method twice.
    """
    if ours in against:
        raise UserError(f'`against` names "{ours}", which is `ours`')
    found = []
    for other in against:
        both = []
        for index, one in enumerate(inputs):
            files = [best_file(evaluation / "paintings" / name, name, index) for name in (ours, other)]
            if all(file.is_file() for file in files):
                both.append(Pair(one.prompt, other, *files))
        if not both:
            raise UserError(f'"{evaluation}" has no input that both {ours} and {other} have painted: run evaluate.py')
        found += both[:count]
    return found


def pairs_in(job: StudyJob) -> list[Pair]:
    """The pairs that a job asks for.

    Raises:
        UserError: see `pairs_of`; no benchmark, or no method to compare with.
    """
    path = job.benchmark or _benchmark_of(job.evaluation)
    inputs = read_benchmark(path)
    painted = job.evaluation / "paintings"
    if job.against:
        against = [name.strip() for name in job.against.split(",") if name.strip()]
    else:  # those that have painted something: a method that failed everywhere leaves an empty folder
        folders = sorted(painted.iterdir()) if painted.is_dir() else []
        against = [one.name for one in folders if (one / "best").is_dir() and one.name != job.ours]
    if not against:
        raise UserError(f'"{job.evaluation}" has no method to compare {job.ours} with: run evaluate.py with several')
    pairs = pairs_of(job.evaluation, inputs, job.ours, against, job.count)
    for index, one in enumerate(inputs):  # a prompt of another file would be rated without anybody's noticing
        painting = painted / job.ours / f"{job.ours}-{index:04d}.png"
        now = painted_from(one)
        if now and painting.is_file() and about_painting(painting).get("input", now) != now:
            raise UserError(
                f'input {index} of "{path}" is not what "{job.evaluation}" has painted: give its `benchmark`'
            )
    return pairs


def _benchmark_of(evaluation: Path) -> Path:
    """Where the inputs of an evaluation lie: as it says itself, else where it makes them."""
    try:
        told = json.loads((evaluation / "evaluation.json").read_text(encoding="utf-8"))["settings"]["benchmark"]
        return evaluation / told
    except (OSError, ValueError, KeyError, TypeError):
        return evaluation / "benchmark" / FILE


def make_study(pairs: Sequence[Pair], ours: str, outdir: Path, raters: int = 5, seed: int = 0) -> list[Path]:
    """Write a page for each rater and the key; returns the pages.

    Raises:
        UserError: the folder holds another study, or cannot be written.
    """
    pictures = [(_data_uri(pair.ours), _data_uri(pair.theirs)) for pair in pairs]
    digest = hashlib.sha256(json.dumps([seed, raters, ours, [p for both in pictures for p in both]]).encode())
    study = digest.hexdigest()[:12]
    _check_free(outdir, study)
    try:
        (outdir / PAGES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(outdir, error) from error
    random = np.random.default_rng(int(study, 16) + seed)
    names = [f"{value:010x}" for value in random.choice(2**40, len(pairs) * raters, replace=False)]
    key: dict[str, Any] = {"study": study, "ours": ours, "raters": raters, "pairs": {}}
    pages: list[Path] = []
    template = Path(__file__).with_name("study.html").read_text(encoding="utf-8")
    for rater in range(1, raters + 1):
        shown = []
        for index in random.permutation(len(pairs)).tolist():
            name, left = names.pop(), bool(random.random() < 0.5)
            pair, (mine, theirs) = pairs[index], pictures[index]
            sides = {"left": mine if left else theirs, "right": theirs if left else mine}
            shown.append({"id": name, "prompt": pair.prompt, **sides})
            about = {"rater": rater, "pair": index, "prompt": pair.prompt, "against": pair.against}
            key["pairs"][name] = about | {"ours": "left" if left else "right"}
        data = json.dumps({"study": study, "rater": rater, "pairs": shown}).replace("<", "\\u003c")
        pages.append(outdir / PAGES / f"rater-{rater}.html")
        with atomic_file(pages[-1]) as file:  # at once: each holds all pictures
            file.write(template.replace("__DATA__", data).encode())
    with atomic_file(outdir / KEY) as file:  # last: where it is, all is
        file.write((json.dumps(key, indent=1) + "\n").encode())
    return pages


def _check_free(outdir: Path, study: str) -> None:
    path = outdir / KEY
    if path.exists() and _read(path).get("study") != study:
        raise UserError(f'"{outdir}" holds another study: give another `outdir`')


def _data_uri(path: Path) -> str:
    image = load_image(path).rgb.copy()
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.save(file, "JPEG", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f'"{path}" cannot be read ({error.strerror})') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'"{path}" is no JSON ({error})') from error
    if not isinstance(content, dict):
        raise UserError(f'"{path}" is no file of a study')
    return content


@dataclass(frozen=True)
class Verdict:
    """What the raters say of one question about ours against another method.

    wins, equal, losses: pairs, by the majority of their raters. share: ours, an equal pair counting half. p: of the
    two-sided binomial test that wins and losses are equally likely; None where no pair was decided. ratings: how many.
    """

    against: str
    question: str
    wins: int
    equal: int
    losses: int
    ratings: int

    @property
    def share(self) -> float:
        """Of the points, ours."""
        return (self.wins + self.equal / 2) / (self.wins + self.equal + self.losses)

    @property
    def p(self) -> float | None:
        """See above."""
        decided = self.wins + self.losses
        return float(binomtest(self.wins, decided).pvalue) if decided else None


def majority(votes: Sequence[str]) -> str:
    """What more raters say than say anything else, "ours", "theirs" or "equal"; "equal" where there is no such."""
    counts = Counter(votes)
    most = max(counts.values())
    first = [vote for vote, count in counts.items() if count == most]
    return first[0] if len(first) == 1 else "equal"


def analyse(folder: Path, files: Sequence[Path]) -> list[Verdict]:
    """The verdicts of a study, from the raters' files.

    Raises:
        UserError: no study, or a file that is not of it, or of a rater who is there twice.
    """
    key = _read(folder / KEY)
    pairs = key.get("pairs")
    told = {"rater", "pair", "against", "ours"}
    whole = isinstance(pairs, dict) and all(isinstance(one, dict) and told <= one.keys() for one in pairs.values())
    if not (whole and {"study", "ours"} <= key.keys()):
        raise UserError(f'"{folder / KEY}" is no key of a study')
    votes: dict[tuple[str, str, int], list[str]] = {}
    seen: dict[int, Path] = {}
    for file in files:
        content = _read(file)
        if content.get("study") != key["study"]:
            raise UserError(f'"{file}" is of another study than "{folder}"')
        rater = content.get("rater")
        if not isinstance(rater, int):
            raise UserError(f'"{file}" does not say whose ratings it holds')
        if rater in seen:
            raise UserError(f'"{file}" is of rater {rater}, as "{seen[rater]}" is: give one of them')
        seen[rater] = file
        for (against, question, pair), vote in _votes(file, content, key["pairs"]):
            votes.setdefault((against, question, pair), []).append(vote)
    if not votes:
        raise UserError("there is no rating: give the files that the pages have saved")
    verdicts = []
    for against in dict.fromkeys(about["against"] for about in key["pairs"].values()):
        for question in QUESTIONS:
            here = [given for (a, q, _), given in votes.items() if (a, q) == (against, question)]
            decided = Counter(map(majority, here))
            if here:
                counts = (decided["ours"], decided["equal"], decided["theirs"])
                verdicts.append(Verdict(against, question, *counts, sum(map(len, here))))
    return verdicts


def _votes(file: Path, content: Mapping[str, Any], pairs: Mapping[str, Any]) -> list[tuple[tuple[str, str, int], str]]:
    ratings = content.get("ratings")
    if not isinstance(ratings, dict):
        raise UserError(f'"{file}" has no ratings')
    found = []
    for name, answers in ratings.items():
        about = pairs.get(name)
        if about is None or about["rater"] != content.get("rater") or not isinstance(answers, dict):
            raise UserError(f'"{file}" rates "{name}", which is no pair of that rater')
        for question, side in answers.items():
            if question not in QUESTIONS or side not in _SIDES:
                raise UserError(f'"{file}" answers "{question}" by "{side}": expected one of {", ".join(_SIDES)}')
            vote = "equal" if side == "equal" else "ours" if side == about["ours"] else "theirs"
            found.append(((about["against"], question, int(about["pair"])), vote))
    return found


def markdown(ours: str, verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a table."""
    lines = ["| against | question | ours | equal | theirs | share of ours | p, two-sided | ratings |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    for one in verdicts:
        p = "–" if one.p is None else f"{one.p:.2g}"
        cells = [one.against, QUESTIONS[one.question], one.wins, one.equal, one.losses, f"{100 * one.share:.1f} %", p]
        lines.append(f"| {' | '.join(map(str, [*cells, one.ratings]))} |")
    head = f"{ours} against others: pairs by the majority of their raters; an equal one gives half a point to each.\n\n"
    return head + "\n".join(lines) + "\n"


def ours_of(folder: Path) -> str:
    """The method that a study is about."""
    return str(_read(folder / KEY).get("ours", ""))
