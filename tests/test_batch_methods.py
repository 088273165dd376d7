"""Rows of a batch that ask for other methods than ours: made as their commands make them, by the same worker."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.cli import run
from ldm.runs.baseline_jobs import BlendedDiffusionJob, GlideJob, PaintByWordJob
from ldm.runs.batch.rows import BadRow, Row, plan, read_rows
from ldm.runs.folder import read_run
from ldm.runs.jobs import EditJob
from scripts import batch_editing, blended_diffusion, glide_inpaint, paint_by_word
from tests.batches import command, finish, lines, make_inputs, pixels, run_ids, start, wait_for, write_rows
from tests.tiny_pixels import glide_config, save_byte_pairs, save_model, save_pixel_model, vq_config

GUIDED = {"model": "pixel-model", "timestep_respacing": "4", "skip_timesteps": 1, "aug_num": 2, "iterations_num": 1}
GUIDED |= {"batch_size": 2}
ROWS: dict[str, dict] = {
    "ours": {},
    "blended_diffusion": GUIDED | {"seed": 3},
    "local_clip_guided_diffusion": GUIDED | {"lpips_sim_lambda": 0},
    "glide": {
        "model": "glide",
        "upsampler": "glide-up",
        "tokenizer": "bytes",
        "base_respacing": "2",
        "upsample_respacing": "2",
        "n_iter": 2,
    },
    "paint_by_word": {"model": "vq", "size": 16, "steps": 2, "aug_num": 2, "lpips_sim_lambda": 0},
}
COMMANDS = {
    "blended_diffusion": (blended_diffusion, []),
    "local_clip_guided_diffusion": (
        blended_diffusion,
        ["--local_clip_guided_diffusion", "--background_preservation_loss"],
    ),
    "glide": (glide_inpaint, ["--n_samples", "2"]),  # which the batch's command line says
    "paint_by_word": (paint_by_word, []),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The inputs of batches, and a tiny model for each method."""
    home = make_inputs(tmp_path_factory.mktemp("methods"))
    save_pixel_model(home / "pixel-model")
    save_model(home / "glide", glide_config(False))
    save_model(home / "glide-up", glide_config(True), clip=False)
    save_byte_pairs(home / "bytes")
    save_model(home / "vq", vq_config())
    return home


def row(method: str, /, **more) -> dict:
    files = {"image": "a.png", "mask": "a_mask.png", "prompt": "a red ball", "name": method}
    return files | ({} if method == "ours" else {"method": method}) | ROWS[method] | more


def batch(*argv: str) -> int:
    """The command, in this process."""
    try:
        return run(batch_editing.main, argv)
    except SystemExit as stop:
        return int(stop.code or 0)


def rows(folder: Path, records: list[dict], name: str = "rows.jsonl") -> list[Row | BadRow]:
    return list(read_rows(write_rows(folder / name, records), Path("out"), {"n_samples": 2, "ddim_steps": 2}))


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory) -> Path:
    """A batch of a row of each method, made by a worker."""
    out = tmp_path_factory.mktemp("made") / "out"
    source = write_rows(folder / "all.jsonl", [row(method) for method in ROWS])
    code, said = finish(command(source, out, folder / "model", "--devices", "cpu"))
    assert code == 0, said
    return out


@pytest.mark.parametrize("method", COMMANDS)
def test_a_row_holds_what_the_methods_command_makes(folder, made, tmp_path, method):
    script, more = COMMANDS[method]
    named = {"model", "upsampler", "tokenizer"}
    own = {name: str(folder / value) if name in named else str(value) for name, value in ROWS[method].items()}
    argv = [word for name, value in own.items() for word in (f"--{name}", value)]
    files = ["-p", "a red ball", "-i", str(folder / "a.png"), "--mask", str(folder / "a_mask.png")]
    where = "--output_path" if script is blended_diffusion else "--outdir"
    script.main([*files, *argv, *more, where, str(tmp_path / "one")])
    ours, theirs = read_run(made / method).record, read_run(tmp_path / "one").record
    assert {name: value for name, value in ours.options.items() if name != "row"} == theirs.options
    assert (ours.seeds, ours.scores, ours.measures) == (theirs.seeds, theirs.scores, theirs.measures)
    alone = {Path(path).name: picture for path, picture in pixels(tmp_path).items() if "results" in path}
    assert alone == {
        Path(path).name: picture for path, picture in pixels(made).items() if path.startswith(f"{method}/samples/res")
    }


def test_the_summary_tells_of_every_method(made):
    told = lines(made / "summary.jsonl")
    assert [(line["name"], line["status"]) for line in told] == [(method, "done") for method in ROWS]
    assert [len(line["seeds"]) for line in told] == [2, 2, 2, 4, 1]


def test_a_batch_that_is_killed_goes_on_and_makes_nothing_twice(folder, made, tmp_path):
    source, out = write_rows(folder / "killed.jsonl", [row(method) for method in ROWS]), tmp_path / "out"
    argv = command(source, out, folder / "model", "--devices", "cpu")
    process = start(argv, tmp_path / "log")
    wait_for(lambda: len(list(out.glob("*/.row.json"))) >= 2 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.parent.name for path in out.glob("*/.row.json")}
    before = {name: run for name, run in run_ids(out).items() if name in done}
    assert len(done) >= 2
    code, said = finish(argv)
    assert code == 0 and f"{len(ROWS) - len(before)} made, 0 failed" in said, said
    assert before.items() <= run_ids(out).items()
    assert pixels(out) == pixels(made)


def test_what_is_made_of_a_rows_files_is_theirs_and_goes(folder, tmp_path, capsys):
    whole = row("blended_diffusion", name="whole") | {"mask": None}
    wide = row("blended_diffusion", name="wide", extrapolate="0 0 8 8")
    source, out = write_rows(folder / "made.jsonl", [whole, wide]), tmp_path / "out"
    argv = [str(source), "-o", str(out), "--workers", "0"]
    assert batch(*argv) == 0
    assert (out / "wide/samples/assets/original.png").is_file()
    assert Image.open(out / "wide/samples/results/0000.png").size == (98, 78)
    mask = np.asarray(Image.open(out / "whole/samples/assets/original_mask.png"))
    assert mask.shape == (70, 90) and (mask == 255).all()
    assert lines(out / "summary.jsonl")[0]["mask"] is None
    first = run_ids(out)
    capsys.readouterr()
    assert batch(*argv) == 0
    assert "0 made, 0 failed, 2 were there already" in capsys.readouterr().out and run_ids(out) == first
    (out / "whole/.row.json").unlink()  # as where it was killed before the marker
    assert batch(*argv) == 0
    assert run_ids(out) == first


def test_the_contents_of_each_of_its_models_decide_whether_a_row_is_done(folder, tmp_path):
    from ldm.runs.batch.site import Site, content_of

    first, other = rows(folder, [row("glide"), row("glide", name="b", upsampler="glide")])
    same, steps = rows(folder, [row("glide", name="c"), row("glide", name="d", base_respacing="3")])
    asked = [one.job for one in (first, other, same, steps) if isinstance(one, Row)]
    with Site(str(tmp_path / "out")).opened() as files:
        digests = [files.digest(job, content_of(job)) for job in asked]
    assert digests[0] == digests[2] and len({*digests}) == 3


def test_each_method_has_its_options_and_the_command_lines_where_they_are_the_same(folder):
    ours, guided, local, glide, painted = (one.job for one in rows(folder, [row(method) for method in ROWS]))
    assert isinstance(ours, EditJob) and (ours.n_samples, ours.ddim_steps) == (2, 2)
    assert isinstance(guided, BlendedDiffusionJob) and guided.model == str(folder / "pixel-model")
    assert (guided.output_path, guided.seeds) == (Path("out/blended_diffusion"), range(3, 5))
    assert local.local_clip_guided_diffusion and local.background_preservation_loss
    assert isinstance(glide, GlideJob) and (glide.n_samples, glide.tokenizer) == (2, str(folder / "bytes"))
    assert isinstance(painted, PaintByWordJob) and len(painted.seeds) == 1
    source = write_rows(folder / "one.jsonl", [row("glide", model=None)])
    (plain,) = read_rows(source, Path("out"), {"model": "x"})
    assert plain.job.model == "glide-base", "the command line's model is one of ours"


def test_rows_of_one_program_stand_together_and_only_ours_share_a_batch(folder):
    records = [row(method, name=f"{method}-{i}", seed=i) for i in range(2) for method in ROWS]
    chunks = plan(rows(folder, records), 8)
    kinds = [tuple(type(one.job) for one in chunk) for chunk in chunks]
    assert kinds == [
        (EditJob, EditJob),
        *[(BlendedDiffusionJob,)] * 4,
        *[(GlideJob,)] * 2,
        *[(PaintByWordJob,)] * 2,
    ]


def test_our_method_may_be_named_and_changes_no_name(folder):
    plain, named = ({**row("ours"), "name": None}, {**row("ours"), "name": None, "method": "blended_latent"})
    assert rows(folder, [plain])[0].name == rows(folder, [named])[0].name
    assert isinstance(rows(folder, [named | {"method": ""}])[0], Row)


def test_what_is_no_option_of_its_method_is_one_line_and_the_others_are_made(folder, tmp_path, capsys):
    wrong = [
        row("glide", name="a", ddim_steps=5),
        row("ours", name="b", method="blended_latent", timestep_respacing="4"),
        row("glide", name="c", method="gilde"),
        row("paint_by_word", name="d", learning_rat=1),
        row("glide", name="e") | {"mask": None},
        row("glide", name="f", model="vq"),
        row("blended_diffusion", name="g", skip_timesteps=4),
        row("blended_diffusion", name="h", timestep_respacing="many"),
        row("paint_by_word", name="i", size=17),
        row("glide", name="j", image="none.png"),
        row("paint_by_word", name="k"),
    ]
    source = write_rows(folder / "wrong.jsonl", wrong)
    assert batch(str(source), "-o", str(tmp_path / "out"), "--check") == 1
    *said, last = capsys.readouterr().out.splitlines()
    expected = [
        "row 1: --ddim_steps is an option of blended_latent, and the row's method is glide: leave it out",
        "row 2: --timestep_respacing is an option of blended_diffusion, and the row's method is blended_latent",
        'row 3: there is no method "gilde": is it "glide"?',
        'row 4: there is no option "learning_rat" for a row: is it "learning_rate"?',
        "row 5: there is no mask",
        "this command takes InpaintText2ImUNet",
        "row 7: --skip_timesteps is 4",
        "row 8: --timestep_respacing",
        "17x17 does not fit the network, whose sizes are multiples of 4: the nearest is --size 16",
        "none.png",
    ]
    assert [(text, line) for text, line in zip(expected, said, strict=True) if text not in line] == []
    assert last.startswith("rows: 1 to make in 1 batches") and not (tmp_path / "out").exists()


def test_a_prompt_that_no_clip_can_guide_fails_its_row_alone(folder, tmp_path):
    records = [row("blended_diffusion", name="a", prompt="zebra"), row("blended_diffusion", name="b")]
    source, out = write_rows(folder / "zebra.jsonl", records), tmp_path / "out"
    assert batch(str(source), "-o", str(out), "--workers", "0") == 1
    first, second = map(json.dumps, lines(out / "summary.jsonl"))
    assert "knows no word of this prompt" in first and '"status": "done"' in second
