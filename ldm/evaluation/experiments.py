"""The paper's figures as experiments: each a row of `EXPERIMENTS`, one command that ends in a table and a figure."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError
from ldm.evaluation import reconstructions, sensitivity, session, settings_grid, thin_masks, unfolding
from ldm.evaluation.evaluate import evaluate_methods
from ldm.evaluation.jobs import EvaluationJob, ExperimentJob
from ldm.evaluation.report import require_plot
from ldm.evaluation.summaries import fifths_table, plot_fifths
from ldm.evaluation.trial import Trial
from ldm.runs.folder import check_writable


@dataclass(frozen=True)
class Experiment:
    """about: a line. run: writes tables and figures into the trial's folder and returns the table. count, n_samples:
    where the user says nothing."""

    about: str
    run: Callable[[Trial], str]
    count: int
    n_samples: int = 1


def _reconstruction(trial: Trial) -> str:
    job, inputs = trial.job, trial.inputs if trial.job.benchmark else ()
    return reconstructions.table(
        reconstructions.compare(trial.editor(), trial.count, job.seed, job.ddim_steps, trial.outdir, job.ways, inputs)
    )


def _shrinking(trial: Trial) -> str:
    editor, job = trial.editor(), trial.job
    return thin_masks.table(
        thin_masks.compare(editor.model, trial.count, job.seed, job.ddim_steps, 10, trial.outdir, editor.defaults)
    )


def _ranking(trial: Trial) -> str:
    require_plot()
    job = trial.job
    told = {name: getattr(job, name) for name in ("model", "ddim_steps", "region", "context", "device", "precision")}
    told |= {name: getattr(job, name) for name in ("methods", "classifier", "framing", "lpips", "seed", "workers")}
    told |= {name: getattr(job, name) for name in ("benchmark", "labels")}
    outcome = evaluate_methods(
        EvaluationJob(**told, count=trial.count, n_samples=trial.n_samples, cost=False, outdir=trial.outdir)
    )
    plot_fifths(outcome.answers, trial.outdir / "ranking.png")
    return fifths_table(outcome.answers).lstrip()


EXPERIMENTS = {
    "reconstruction": Experiment("figures 4 and 20: ways to restore the background, and lambda", _reconstruction, 20),
    "shrinking": Experiment("figures 6 and 7: thin masks with and without progressive shrinking", _shrinking, 30),
    "ranking": Experiment("figures 22 and 23: precision by fifths of the ranking, of each method", _ranking, 20, 24),
    "sensitivity": Experiment("appendix D: small changes of prompt, mask and image", sensitivity.run, 12),
    "session": Experiment("figure 17: edits of edits, with the exact background and without", session.run, 5),
    "estimates": Experiment("figure 15: what each step takes the picture for", unfolding.run, 12),
    "steps_guidance": Experiment("precision and CLIP score by steps and guidance", settings_grid.run, 8, 2),
}
"""Name -> the experiment."""


def run_experiment(job: ExperimentJob) -> tuple[str, Path]:
    """The table of an experiment, and the folder that holds it and the figure.

    Raises:
        UserError: no such experiment, or a folder that cannot be written.
    """
    if job.experiment not in EXPERIMENTS:
        raise UserError(f'there is no experiment "{job.experiment}": give one of {", ".join(EXPERIMENTS)}')
    one = EXPERIMENTS[job.experiment]
    outdir = job.outdir or Path("outputs/experiments") / job.experiment
    check_writable(outdir)
    trial = Trial(job, outdir, job.count or one.count, job.n_samples or one.n_samples)
    return one.run(trial), outdir


def listing() -> str:
    """The experiments, a line each."""
    width = max(map(len, EXPERIMENTS))
    return "\n".join(f"{name:{width}}  {one.about}" for name, one in EXPERIMENTS.items())
