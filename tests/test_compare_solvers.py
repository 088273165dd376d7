"""The comparison of solvers: what it measures, that it resumes where it stopped, and what it refuses."""

import json
import math
from pathlib import Path

import pytest

from ldm.cli import run
from ldm.evaluation.solvers import decibels, levels
from scripts.compare_solvers import main
from tests.tiny import save_tiny_model

STEPS = ("--steps", "2", "4", "8", "--reference_steps", "8", "--mask_dilation_iterations", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("compare") / "model")


def compare(model: Path, outdir: Path, *more: str) -> int:
    return run(main, ["--model", str(model), "-o", str(outdir), "--device", "cpu", *STEPS, *more])


def numbers(outdir: Path) -> dict:
    return json.loads((outdir / "solvers.json").read_text())["means"]


def test_tables_numbers_and_plot(model: Path, tmp_path: Path, capsys):
    solvers = ("--solvers", "ddim", "ddim, shared noise", "dpmpp_2m")
    assert compare(model, tmp_path, "--n_triples", "1", *solvers) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "solvers.md").read_text() in printed and (tmp_path / "solvers.png").stat().st_size > 1000
    assert "| steps | ddim | ddim, shared noise | dpmpp_2m |" in printed and "CLIP" not in printed
    means = numbers(tmp_path)
    assert [list(by_steps) for by_steps in means.values()] == [["2", "4", "8"]] * 3
    for name, by_steps in means.items():
        assert by_steps["8"]["to_own"] == 0 and min(by_steps[n]["to_own"] for n in ("2", "4")) > 0
        assert (by_steps["8"]["to_reference"] == 0) == (name == "ddim, shared noise")
    assert means["ddim"]["4"] != means["ddim, shared noise"]["4"], "fresh noise gives another picture"

    # A second triple joins the first, which is not edited again.
    first, _ = (tmp_path / "answers.jsonl").read_text().splitlines()[1:], capsys.readouterr()
    assert compare(model, tmp_path, "--n_triples", "2", *solvers) == 0
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()[1:]
    assert lines[:1] == first and [json.loads(line)["index"] for line in lines] == [0, 1]
    own = [json.loads(line)["results"]["dpmpp_2m"]["4"]["to_own"] for line in lines]
    assert numbers(tmp_path)["dpmpp_2m"]["4"]["to_own"] == pytest.approx(sum(own) / 2)

    assert compare(model, tmp_path, "--n_triples", "1", "--solvers", "ddim") == 2
    assert "evaluation of another solvers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--solvers", "ddim", "euler"], '"euler" is no solver'), (["--steps", "0"], "0 is out of range")],
)
def test_what_is_refused(model: Path, tmp_path: Path, capsys, more: list[str], message: str):
    try:
        code = compare(model, tmp_path / "o", *more)
    except SystemExit as error:
        code = error.code
    assert code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_units():
    assert levels((2 / 255) ** 2) == pytest.approx(1) and levels(4) == 255
    assert decibels(4) == 0 and decibels(0.04) == pytest.approx(20) and decibels(0) == math.inf
