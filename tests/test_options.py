"""Options, declared once: every one goes through every way in and out and stays what it is."""

import csv
import io
import json
import typing
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.cli import Parser
from ldm.editing.request import EditRequest, Place
from ldm.errors import UserError
from ldm.options import add_options, as_flags, declared, markdown_rows, option, options, recorded, same
from ldm.runs.again import options_of
from ldm.runs.baseline_jobs import BlendedDiffusionJob, GlideJob, PaintByWordJob
from ldm.runs.batch.rows import COLUMNS, Row, read_rows
from ldm.runs.folder import write_run
from ldm.runs.jobs import BatchJob, EditJob, GenerationJob, ModelChoice, ReconstructionJob
from ldm.runs.record import RunRecord
from ldm.studio.settings import StudioSettings

ROOT = Path(__file__).parents[1]
NOISE_LEVELS = "two numbers, the lower first, from 0 (clean) to 1 (pure noise)"
NEEDED = {"prompt": "a red ball", "init_image": "img.png", "mask": "mask.png"}

# A value that is not the default, for every option of an edit.
VALUES = {
    "prompt": "10 % of a \"ball\", é; '2'\n🦀",
    "negative_prompt": "blurred, 10 %",
    "n_samples": 3,
    "n_iter": 2,
    "seed": 2**63 - 1,
    "ddim_steps": 30,
    "ddim_eta": 0.1,
    "scale": 0.30000000000000004,
    "guidance_interval": (0.2, 0.8),
    "sampler": "dpmpp_2m",
    "H": 64,
    "W": 96,
    "aspect": "mask",
    "force": True,
    "skip_steps": 4,
    "background_noise": "shared",
    "percentage_of_pixel_blending": 0.25,
    "region": "whole",
    "context": 0.0,
    "feather": 2.5,
    "mask_dilation_iterations": 0,
    "mask_downsample": "cover",
    "fit_mask": "on",
    "invert_mask": True,
    "soft_mask": True,
    "model": "scenes",
    "config": Path("own.yaml"),
    "ckpt": Path("own.ckpt"),
    "device": "cpu",
    "precision": "bfloat16",
    "low_memory": True,
    "revision": "fp16",
    "lora": ("style.safetensors:0.5", "someone/style"),
    "compile": "regions",
    "init_image": Path("a b.png"),
    "mask": Path("m,1.png"),
    "outdir": Path("elsewhere"),
    "overwrite": True,
    "strip": True,
    "save_video": True,
}
EDIT = sorted(declared(EditJob))
IN_A_ROW = [name for name in EDIT if name in COLUMNS["blended_latent"]]


def asked(name: str) -> EditJob:
    return EditJob(**NEEDED | {name: VALUES[name]})


def told(value: typing.Any) -> list[str]:
    """A value as the words of a command line."""
    return [*map(str, value)] if isinstance(value, tuple) else [str(value)]


def test_every_option_has_a_value_here():
    assert sorted(VALUES) == EDIT
    plain = EditJob(**NEEDED)
    assert all(getattr(plain, name) != value for name, value in VALUES.items())


@pytest.mark.parametrize("name", EDIT)
def test_by_the_command_line(name):
    parser = Parser()
    add_options(parser, EditJob)
    value = VALUES[name]
    argv = [f"--{name}"] if value is True else [f"--{name}", *told(value)]
    given = vars(parser.parse_args(argv))
    assert set(given) == {name}, "what is not given is not there"
    assert EditJob(**NEEDED | given) == asked(name)


@pytest.mark.parametrize("name", [name for name, value in VALUES.items() if value is True])
def test_a_switch_can_be_turned_off(name):
    parser = Parser()
    add_options(parser, EditJob)
    assert vars(parser.parse_args([f"--no-{name}"])) == {name: False}


@pytest.mark.parametrize("kind", ["json", "json text", "csv"])
@pytest.mark.parametrize("name", IN_A_ROW)
def test_by_a_row_of_a_batch(name, kind, tmp_path):
    value = VALUES[name]
    text = " ".join(told(value))
    if kind == "csv":
        rows = {**NEEDED, name: text}
        stream = io.StringIO()
        csv.writer(stream).writerows([rows.keys(), rows.values()])
        source = tmp_path / "rows.csv"
        source.write_text(stream.getvalue(), encoding="utf-8")
    else:
        plain = str(value) if isinstance(value, Path) else value
        source = tmp_path / "rows.jsonl"
        source.write_text(json.dumps({**NEEDED, name: plain if kind == "json" else text}), encoding="utf-8")
    (row,) = read_rows(source, tmp_path / "out", {})
    assert isinstance(row, Row), row
    expected = tmp_path / value if isinstance(value, Path) else value
    assert getattr(row.job, name) == expected


@pytest.mark.parametrize("name", [name for name in EDIT if name not in ("outdir", "overwrite", "device", "force")])
def test_by_a_record_and_from_a_picture(name, tmp_path):
    """Into run.json and the PNG's text, and out again by --from."""
    for file in ("a b.png", "m,1.png", "img.png", "mask.png", "own.yaml", "own.ckpt"):
        (tmp_path / file).write_bytes(b"x")
    paths = {one: tmp_path / NEEDED[one] for one in ("init_image", "mask")}
    value = tmp_path / VALUES[name] if isinstance(VALUES[name], Path) else VALUES[name]
    both = {"config": tmp_path / "own.yaml", "ckpt": tmp_path / "own.ckpt"} if name in ("config", "ckpt") else {}
    job = EditJob(**NEEDED | paths | both | {name: value})
    record = RunRecord(
        prompt=job.prompt,
        model=job.model,
        config=None if job.config is None else str(job.config),
        weights=None if job.ckpt is None else str(job.ckpt),
        precision=job.precision,
        seed=job.seed,
        seeds=(job.seed,),
        size=(job.H or 32, job.W or 32),
        image=str(job.init_image),
        mask=str(job.mask),
        invert_mask=job.invert_mask,
        options=recorded(job),
        window={"left": 0, "top": 0, "width": 32, "height": 32, "image_size": [32, 32]},
        feather=job.feather,
    )
    grey = Image.new("RGB", (32, 32))
    originals = {"original": job.init_image, "original_mask": job.mask}
    samples = write_run(tmp_path / "out", record, grey, [grey], [grey], torch.zeros(1, 4, 4, 4), {}, originals)
    again = EditJob(**options_of(samples / "results" / "0000.png"))
    if name in ("init_image", "mask"):  # the copy that the run keeps
        assert getattr(again, name).read_bytes() == getattr(job, name).read_bytes()
    elif name not in ("n_samples", "n_iter"):  # one prediction is made again, alone
        assert getattr(again, name) == getattr(job, name)


def test_a_prompt_of_bytes_that_are_no_utf_8_is_one_line():
    with pytest.raises(UserError, match=r'`prompt` is "caf\?", which is not UTF-8') as error:
        EditJob(**NEEDED | {"prompt": b"caf\xe9".decode("utf-8", "surrogateescape")})
    str(error.value).encode()  # it can be shown


@pytest.mark.parametrize("text", ["auto", None])
def test_auto_is_what_is_left_to_the_mask(text):
    assert EditJob(**NEEDED, mask_dilation_iterations=text).mask_dilation_iterations is None


@pytest.mark.parametrize(("released", "ours"), [("one", "shared"), ("fresh", "resampled")])
def test_released_names_of_the_noise_are_taken(released, ours):
    assert EditJob(**NEEDED, background_noise=released).background_noise == ours


@pytest.mark.parametrize("seed", [7, "7", "7.0", 7.0])
def test_whole_numbers_as_spreadsheets_write_them(seed):
    assert EditJob(**NEEDED, seed=seed).seed == 7


@pytest.mark.parametrize("text", ["0.2 0.8", "0.2, 0.8", "[0.2, 0.8]", "(0.2, 0.8)"])
def test_an_interval_as_spreadsheets_and_pandas_write_it(text):
    assert EditJob(**NEEDED, guidance_interval=text).guidance_interval == (0.2, 0.8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": -1}, "`seed` is -1: give an integer from 0 to 9223372036854775807"),
        ({"seed": 7.5}, "`seed` is 7.5: give an integer from 0 to 9223372036854775807"),
        ({"n_samples": 0}, "`n_samples` is 0: give an integer from 1 to 1024"),
        ({"n_iter": 10**9}, "`n_iter` is 1000000000: give an integer from 1 to 1024"),
        ({"scale": float("nan")}, "`scale` is nan: give a number of at least 0"),
        ({"soft_mask": "perhaps"}, '`soft_mask` is "perhaps": give true or false'),
        ({"sampler": "euler\n"}, '`sampler` is "euler": give one of ddim, dpmpp_2m, lcm'),
        ({"mask_dilation_iterations": 17}, "`mask_dilation_iterations` is 17: give auto or an integer from 0 to 16"),
        ({"guidance_interval": "0.8 0.2"}, "`guidance_interval` is 0.8 0.2: give the lower noise level first"),
        ({"guidance_interval": (0.0, 1.1)}, f"`guidance_interval` holds 1.1: give {NOISE_LEVELS}"),
        ({"guidance_interval": (-0.1, 1.0)}, f"`guidance_interval` holds -0.1: give {NOISE_LEVELS}"),
        ({"guidance_interval": (float("nan"), 1.0)}, f"`guidance_interval` holds nan: give {NOISE_LEVELS}"),
        ({"promt": "x"}, 'there is no option "promt": `prompt` is one'),
    ],
)
def test_what_does_not_fit_is_one_line_that_says_what_does(given, said):
    with pytest.raises(UserError) as error:
        EditJob(**NEEDED | given)
    assert str(error.value) == said


def test_what_is_given_by_its_place_is_named():
    with pytest.raises(UserError, match="`prompt` is None: give a text"):
        EditRequest(None)
    with pytest.raises(UserError, match="name them"):
        ModelChoice("auto", None, None, "cpu", "float32")


def test_what_is_missing_is_named_with_its_meaning():
    with pytest.raises(UserError, match="`mask` is missing: give the mask: white is edited"):
        EditJob(prompt="p", init_image="x.png")


def test_a_command_line_shows_options_as_its_flags():
    assert as_flags("`seed` is 3, try `H=64` or `x`") == "--seed is 3, try --H 64 or `x`"


def test_docs_list_the_options_as_they_are():
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    for cls, without in (
        (EditJob, ()),
        (ReconstructionJob, ()),
        (GenerationJob, ()),
        (BatchJob, ("rows",)),
        (StudioSettings, ()),
        (BlendedDiffusionJob, ()),
        (GlideJob, ()),
        (PaintByWordJob, ()),
    ):
        assert "\n".join(markdown_rows(cls, without)) in page, "python docs/options.py writes it anew"


def test_a_field_declared_as_another_is_the_same_but_for_its_changes():
    @options
    class Other:
        count: int = same(EditRequest, "n_samples", default=7)

    theirs, own = declared(EditRequest)["n_samples"], declared(Other)["count"]
    assert own.default == 7 and (own.description, own.metadata) == (theirs.description, theirs.metadata)
    with pytest.raises(UserError, match="an integer from 1 to 1024"):
        Other(0)


def test_options_of_places_are_declared_once():
    """Of all that edits: the same range, default and sentence, whatever the command."""
    for name in declared(Place):
        fields = [declared(cls)[name] for cls in (Place, EditJob, BlendedDiffusionJob, GlideJob, PaintByWordJob)]
        assert len({repr((one.default, one.description, one.metadata)) for one in fields}) == 1


def test_a_class_of_options_is_frozen_and_compares_by_value():
    @options
    class One:
        a_number: int = option(1, "a number", low=0)

    assert One(2) == One(a_number="2") != One()
    with pytest.raises(AttributeError):
        One().a_number = 3
