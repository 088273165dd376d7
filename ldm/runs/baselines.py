"""GLIDE and PaintByWord++ from files to a run folder: what scripts/glide_inpaint.py and scripts/paint_by_word.py do."""

import logging
from pathlib import Path
from typing import Any

import torch

from ldm.backbones import zoo
from ldm.checkpoint import load_model
from ldm.editing.baselines import glide_task, paint_by_word_task
from ldm.editing.clip_encoder import check_clip_words
from ldm.editing.editor import Editor, denoising_bar
from ldm.editing.guided_request import GuidanceOptions
from ldm.editing.ranking import find_ranker
from ldm.errors import UserError
from ldm.imaging.images import as_picture
from ldm.imaging.masks import mask_from
from ldm.models.autoencoder import VQModel
from ldm.models.diffusion.glide import Encode, Glide, GlideSampling
from ldm.models.diffusion.respacing import space_timesteps
from ldm.models.paint_by_word import Painter
from ldm.modules.diffusionmodules.glide import InpaintText2ImUNet
from ldm.runs.baseline_jobs import BaselineJob, GlideJob, PaintByWordJob
from ldm.runs.blended_diffusion import in_words_of, method_notes, quiet, require_clip
from ldm.runs.edit import SavedEdit, write_result
from ldm.runs.folder import check_run
from ldm.runs.jobs import EditJob
from ldm.util import choose_device, choose_precision

logger = logging.getLogger(__name__)


def run_glide(job: GlideJob) -> SavedEdit:
    """Fill in by GLIDE, rank, and write the run folder as a whole.

    Raises:
        UserError: bad input, no model, or a folder that cannot be written; then nothing has been written.
    """
    with in_words_of({}):
        return _run_glide(job)


def _run_glide(job: GlideJob) -> SavedEdit:
    _check_input(job)
    files, above = zoo.resolve(**job.named), zoo.resolve(job.upsampler)
    told = GlideSampling(job.scale, job.base_respacing, job.upsample_respacing)
    steps = sum(len(space_timesteps(one)) for one in (job.base_respacing, job.upsample_respacing))
    tokenizer = byte_pairs(job.tokenizer)
    device = choose_device(job.device)
    model = load_glide(files, above, device, choose_precision(job.precision, device), tokenizer)
    if len(tokenizer[0](job.prompt)) > model.base.text_ctx:
        logger.warning("GLIDE reads %d byte pairs: it paints the beginning of the prompt alone", model.base.text_ctx)
    edit = _edit_job(job, model.image_size, n_samples=job.n_samples, n_iter=job.n_iter, scale=job.scale)
    editor = Editor(model, find_ranker(files.clip, device), files)
    task = editor.prepare(job.init_image, job.mask, edit.request)
    editor.begin_identity()
    with denoising_bar(steps * job.n_iter) as see:
        result = glide_task(model, task, told, editor.ranker, see)
    return write_result(edit, editor, result, method_notes("glide", job))


def run_paint_by_word(job: PaintByWordJob) -> SavedEdit:
    """Optimise one picture, and write the run folder as a whole.

    Raises:
        UserError: bad input, no model, or a folder that cannot be written; then nothing has been written.
    """
    with in_words_of({"H": "size"}):
        return _run_paint_by_word(job)


def _run_paint_by_word(job: PaintByWordJob) -> SavedEdit:
    _check_input(job)
    files = zoo.resolve(**job.named)
    device = choose_device(job.device)
    vq = _load(files, VQModel, device, choose_precision(job.precision, device))
    model: Any = Painter(vq, job.size).eval()
    edit = _edit_job(job, job.size, n_samples=1, n_iter=1)
    editor = Editor(model, find_ranker(files.clip, device), files)
    task = editor.prepare(job.init_image, job.mask, edit.request)
    clip = require_clip(editor, files)
    check_clip_words(clip, job.prompt)
    editor.begin_identity()
    options = GuidanceOptions(
        aug_num=job.aug_num,
        background_preservation_loss=True,
        lpips_sim_lambda=job.lpips_sim_lambda,
        l2_sim_lambda=job.l2_sim_lambda,
        range_lambda=0.0,
    )
    with denoising_bar(job.steps) as see:
        strength = job.clip_guidance_lambda
        result = paint_by_word_task(model, task, options, clip, job.steps, job.learning_rate, strength, see)
    return write_result(edit, editor, result, method_notes("paint-by-word", job))


def _check_input(job: BaselineJob) -> None:
    """Find what is wrong with the files before large weights are read."""
    check_run(job.outdir, job.prompt, job.overwrite)
    with quiet("ldm.imaging"):  # what there is to say is said when they are prepared
        picture = as_picture(job.init_image).rgb
        mask_from(job.mask, (picture.height, picture.width), job.invert_mask)


def load_glide(
    files: zoo.ModelFiles, above: zoo.ModelFiles, device: torch.device, dtype: torch.dtype, encode: tuple[Encode, int]
) -> Glide:
    """Both networks of GLIDE, in eval mode and without gradients, and their tokenizer with its last token.

    Raises:
        UserError: a config or weights that are not theirs.
    """
    nets = [_load(one, InpaintText2ImUNet, device, dtype) for one in (files, above)]
    if nets[0].low_res or not nets[1].low_res:
        wrong, option, other = (files, "model", "upsampler") if nets[0].low_res else (above, "upsampler", "model")
        raise UserError(f"{wrong.config} is of GLIDE's other network: give it by `{other}`, and not by `{option}`")
    configs = [zoo.read_config(one.config) for one in (files, above)]
    sizes, schedules = [], []
    for one, config in zip((files, above), configs, strict=True):
        name = (config.get("diffusion") or {}).get("beta_schedule")
        if not name:
            raise UserError(f"{one.config} says no diffusion.beta_schedule: see configs/glide")
        sizes.append(int(config["model"]["params"]["image_size"]))
        schedules.append(name)
        if encode[1] >= config["model"]["params"]["n_vocab"]:
            raise UserError(f"`tokenizer` has {encode[1] + 1} byte pairs, more than {one.name} knows: take gpt2")
    base, upsampler = nets
    return Glide(base, upsampler, (sizes[0], sizes[1]), (schedules[0], schedules[1]), *encode).eval()


def byte_pairs(name: str) -> tuple[Encode, int]:
    """GPT-2's tokenizer, by a name on the hub or a folder, and the number of its end of a text, which pads.

    Raises:
        UserError: it is neither here nor to be had.
    """
    from transformers import GPT2TokenizerFast

    folder = Path(name).expanduser()
    try:
        tokenizer: Any = GPT2TokenizerFast.from_pretrained(str(folder) if folder.is_dir() else name)
        if len(tokenizer) < 256:  # the library makes an empty one where it finds no files
            raise FileNotFoundError("it has no vocabulary")
    except Exception as error:  # the hub's errors share no base class
        raise UserError(
            f'the byte pairs "{name}" cannot be had ({" ".join(str(error).split())[:80]}): give a folder of GPT-2\'s '
            "vocab.json and merges.txt by `tokenizer`"
        ) from error

    def encode(prompt: str) -> list[int]:
        return tokenizer(prompt)["input_ids"]

    return encode, int(tokenizer.eos_token_id)


def _load(files: zoo.ModelFiles, kind: type, device: torch.device, dtype: torch.dtype) -> Any:
    config = zoo.read_config(files.config)
    model = load_model(config, files.weights, device=device, dtype=dtype)
    if not isinstance(model, kind):
        raise UserError(f"{files.config} is of a {type(model).__name__}: this command takes {kind.__name__}")
    return model


def _edit_job(job: BaselineJob, size: int, **more: Any) -> EditJob:
    """The job in the words of all edits: what the window, the folder and the record are made of."""
    names = ("prompt", "init_image", "mask", "invert_mask", "region", "context", "feather", "seed", "outdir")
    same = {name: getattr(job, name) for name in (*names, "overwrite")}
    return EditJob(**same, H=size, W=size, mask_dilation_iterations=0, **more)
