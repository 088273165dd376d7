"""Write docs/options.md from the declarations of the options: python docs/options.py"""

from pathlib import Path

from ldm.evaluation.jobs import BenchmarkJob, EvaluationJob, ExperimentJob, StudyJob, ThingsJob
from ldm.files import atomic_file
from ldm.options import markdown_rows
from ldm.runs.baseline_jobs import BlendedDiffusionJob, GlideJob, PaintByWordJob
from ldm.runs.jobs import BatchJob, EditJob, GenerationJob, ReconstructionJob
from ldm.studio.settings import StudioSettings

HEAD = """# Options

All options of the commands, as `--help` has them. The Python API takes those of an edit under the same names
(`editor.edit(image, mask, prompt, n_samples=8)`), and so does each row of a [batch](batch.md).

<!-- Written by `python docs/options.py` from the declarations in `ldm/`: change them there. -->
"""

EDIT_MORE = """
`--from PNG` makes the prediction of a picture of a run again, alone, unless other options change it. `--check` is the
mask doctor: it says what is odd about image and mask, draws it, and runs no model ([docs/masks.md](masks.md)).
`--words` lists all words that the model knows; `txt2img.py` has it too. A switch such as `--soft_mask` is turned off
again by `--no-soft_mask`, which is of use with `--from`. `--gpu_id` and `--batch_size` are taken as the released
programs have them ([docs/migration.md](migration.md))."""

BATCH_MORE = """
and all options of `text_editing.py` but `--outdir`, `--overwrite` and `--device`, as defaults of the rows: a row may
give its own, or those of the [method](batch.md#rows-of-other-methods) that it names. `--check` looks at all rows and
their files, and runs no model; `--merge` puts the summaries of the shares of `--shard` together
([cluster.md](cluster.md))."""


BASELINES_MORE = """
What the predecessor and the baselines are is in [baselines.md](baselines.md). `--gpu_id` is taken by all three."""


EVALUATE_MORE = """
`--quick` means 4 inputs, 2 predictions and 10 steps, where they are not given: two minutes
([evaluation.md](evaluation.md))."""


def section(title: str, cls: type, without: tuple[str, ...] = (), more: str = "") -> str:
    """A table under its title."""
    return "\n".join([f"\n## {title}\n", *markdown_rows(cls, without), *([more] if more else [])]) + "\n"


if __name__ == "__main__":
    page = HEAD
    page += section("`scripts/text_editing.py`, `bld-edit`", EditJob, more=EDIT_MORE)
    page += section("`scripts/reconstruct.py`, `bld-reconstruct`", ReconstructionJob)
    page += section("`scripts/batch_editing.py`, `bld-batch`", BatchJob, ("rows",), BATCH_MORE)
    page += section("`scripts/txt2img.py`, `bld-txt2img`", GenerationJob)
    page += section("`scripts/studio.py`, `bld-studio`", StudioSettings)
    page += section("`scripts/blended_diffusion.py`, `bld-blended-diffusion`", BlendedDiffusionJob, more=BASELINES_MORE)
    page += section("`scripts/glide_inpaint.py`, `bld-glide`", GlideJob)
    page += section("`scripts/paint_by_word.py`, `bld-paint-by-word`", PaintByWordJob)
    page += section("`scripts/evaluate.py`", EvaluationJob, more=EVALUATE_MORE)
    page += section("`scripts/evaluate_things.py`", ThingsJob)
    page += section("`scripts/experiments.py`", ExperimentJob, ("experiment",))
    page += section("`scripts/make_benchmark.py`", BenchmarkJob, ("folder",))
    page += section("`scripts/user_study.py make`", StudyJob)
    with atomic_file(Path(__file__).with_suffix(".md")) as file:
        file.write(page.encode())
