"""The other baselines at the model's size: GLIDE and PaintByWord++, from a task to ranked predictions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.data.epochs import seeded
from ldm.editing.clip_encoder import Losses, find_lpips, guiding_precision
from ldm.editing.edit import Progress, Sampled, check_size, ranked, sample_all
from ldm.editing.guided_request import GuidanceOptions
from ldm.editing.mask_fit import MaskFit
from ldm.editing.ranking import CLIPRanker
from ldm.editing.result import EditResult, EditTask
from ldm.models.diffusion.glide import Glide, GlideSampling
from ldm.models.diffusion.sampling import NoiseSource, StepInfo
from ldm.models.paint_by_word import CLEAN, Painter, paint_by_word
from ldm.util import told_out_of_memory


@told_out_of_memory()
def glide_task(
    model: Glide,
    task: EditTask,
    told: GlideSampling,
    ranker: CLIPRanker | None = None,
    on_step: Progress | None = None,
    batch_size: int | None = None,
) -> EditResult:
    """Fill a mask in by GLIDE, `task.request.n_samples` predictions at a time, and rank.

    Args:
        batch_size: the most predictions at a time, if these are to be fewer.

    Raises:
        OutOfMemory: smaller batches may fit.
        UserError: a size that is not the network's, or steps that there are not.
    """
    check_size(model, *task.canvas.size)
    canvas, request = task.canvas, task.request
    x_source, mask = canvas.x_source.to(model.device), canvas.x_mask.to(model.device)

    def paint(_: Sequence[int], noise: NoiseSource, see: Progress) -> Sampled:
        x0 = model.paint(x_source, mask, request.prompt, noise, told, see)
        return Sampled(x0, canvas.x_mask.expand(len(x0), -1, -1, -1), [(None, False)] * len(x0))

    batch = min(request.n_samples, batch_size or request.n_samples)
    (made,) = sample_all(model, [request.seeds], batch, paint, on_step, False)
    return ranked(_result(task, torch.cat(made.x), tuple(request.seeds), canvas.x_source), ranker, canvas.x_mask)


@told_out_of_memory()
def paint_by_word_task(
    model: Painter,
    task: EditTask,
    options: GuidanceOptions,
    clip: CLIPRanker,
    steps: int,
    learning_rate: float,
    strength: float,
    on_step: Progress | None = None,
) -> EditResult:
    """Optimise one picture inside a mask: one prediction, whose background is held by losses alone.

    Args:
        options: its copies, and the weights of the background's losses. strength: of CLIP's.

    Raises:
        OutOfMemory: a smaller size may fit.
        UserError: a size that does not fit the network.
    """
    check_size(model, *task.canvas.size)
    canvas, request = task.canvas, task.request
    x_source = canvas.x_source.to(model.device)
    lpips, precision = find_lpips(options, model.device), guiding_precision(model.dtype)
    losses = Losses(clip, request.prompt, canvas.x_source, canvas.x_mask, options, strength, lpips, precision)
    loss = losses.total([seeded(request.seed, 1)])

    def see(step: int, x: Tensor) -> None:
        if on_step is not None:
            on_step(StepInfo(step, steps, CLEAN.t, x, x))

    with torch.no_grad():
        x_reference = model.vq(x_source.to(model.dtype))[0].float()
    # An empty prompt asks for nothing.
    x = x_reference if loss is None else paint_by_word(model.vq, x_source, loss, steps, learning_rate, see)
    result = _result(task, x.cpu(), (request.seed,), x_reference.cpu())
    return ranked(result, clip, canvas.x_mask)


def _result(task: EditTask, x: Tensor, seeds: tuple[int, ...], x_reference: Tensor) -> EditResult:
    """The result of what paints pictures, whose latents are these."""
    x_mask = task.canvas.x_mask
    return EditResult(
        task.request.prompt,
        x,
        x,
        seeds,
        task=task,
        latent_masks=x_mask,
        fits=[MaskFit(False, "this method fits none", x_mask[0], x_mask[0]) for _ in seeds],
        x_reference=x_reference,
    )
