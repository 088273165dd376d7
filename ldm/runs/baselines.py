"""GLIDE and PaintByWord++ from files to a run folder: what scripts/glide_inpaint.py and scripts/paint_by_word.py do."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch

from ldm.backbones import zoo
from ldm.checkpoint import load_model
from ldm.editing.baselines import glide_task, paint_by_word_task
from ldm.editing.clip_encoder import check_clip_words
from ldm.editing.edit import Progress
from ldm.editing.editor import Editor
from ldm.editing.guided_request import GuidanceOptions
from ldm.editing.ranking import find_ranker
from ldm.editing.result import EditResult
from ldm.errors import UserError
from ldm.models.autoencoder import VQModel
from ldm.models.diffusion.glide import Encode, Glide, GlideSampling
from ldm.models.diffusion.respacing import space_timesteps
from ldm.models.paint_by_word import Painter
from ldm.modules.diffusionmodules.glide import InpaintText2ImUNet
from ldm.runs.baseline_jobs import BaselineJob, GlideJob, PaintByWordJob
from ldm.runs.blended_diffusion import require_clip
from ldm.runs.edit import SavedEdit, run_program
from ldm.runs.jobs import EditJob
from ldm.runs.program import Prepared, Program
from ldm.util import choose_device, choose_precision

logger = logging.getLogger(__name__)


def run_glide(job: GlideJob) -> SavedEdit:
    """Fill in by GLIDE, rank, and write the run folder as a whole.

    Raises:
        UserError: bad input, no model, or a folder that cannot be written; then nothing has been written.
    """
    return run_program(GlideProgram, job)


def run_paint_by_word(job: PaintByWordJob) -> SavedEdit:
    """Optimise one picture, and write the run folder as a whole.

    Raises:
        UserError: bad input, no model, or a folder that cannot be written; then nothing has been written.
    """
    return run_program(PaintByWordProgram, job)


class GlideProgram(Program[GlideJob]):
    """GLIDE-filtered's inpainting."""

    method = "glide"
    words: ClassVar[Mapping[str, str]] = {}

    def __init__(self, editor: Editor, above: zoo.ModelFiles, tokenizer: tuple[Encode, int]):
        super().__init__(editor)
        self.above, self.tokenizer = above, tokenizer

    @property
    def model(self) -> Glide:
        """Both networks."""
        return cast(Glide, self.editor.model)

    @classmethod
    def outline(cls, job: GlideJob) -> "GlideProgram":
        """See `Program`."""
        files, above = (zoo.resolve(**one) for one in job.models)
        tokenizer = byte_pairs(job.tokenizer)
        model: Any = load_glide(files, above, torch.device("meta"), torch.float32, tokenizer)
        return cls(Editor(model, None, files), above, tokenizer)

    def load(self, job: GlideJob, device: str) -> "GlideProgram":
        """See `Program`."""
        where = choose_device(device)
        dtype = choose_precision(job.precision, where)
        model: Any = load_glide(self.files, self.above, where, dtype, self.tokenizer)
        return GlideProgram(Editor(model, find_ranker(self.files.clip, where), self.files), self.above, self.tokenizer)

    def prepare(self, job: GlideJob, desk: Path) -> Prepared[GlideJob]:
        """See `Program`."""
        side, most = self.model.image_size, self.model.base.text_ctx
        edit = _edit_job(job, side, n_samples=job.n_samples, n_iter=job.n_iter, scale=job.scale)
        for one in (job.base_respacing, job.upsample_respacing):
            space_timesteps(one)
        if len(self.tokenizer[0](job.prompt)) > most:
            logger.warning("GLIDE reads %d byte pairs: it paints the beginning of the prompt alone", most)
        return Prepared(job, edit, self.editor.prepare(job.init_image, job.mask, edit.request))

    def run(
        self, ready: Sequence[Prepared[GlideJob]], batch_size: int | None = None, on_step: Progress | None = None
    ) -> list[EditResult]:
        """See `Program`."""
        return [
            glide_task(self.model, one.task, _told(one.job), self.editor.ranker, on_step, batch_size) for one in ready
        ]

    def steps(self, one: Prepared[GlideJob]) -> int:
        """See `Program`."""
        job = one.job
        return job.n_iter * sum(len(space_timesteps(told)) for told in (job.base_respacing, job.upsample_respacing))


def _told(job: GlideJob) -> GlideSampling:
    return GlideSampling(job.scale, job.base_respacing, job.upsample_respacing)


class PaintByWordProgram(Program[PaintByWordJob]):
    """PaintByWord++."""

    method = "paint-by-word"
    words: ClassVar[Mapping[str, str]] = {"H": "size"}

    @classmethod
    def outline(cls, job: PaintByWordJob) -> "PaintByWordProgram":
        """See `Program`."""
        files = zoo.resolve(**job.named)
        model: Any = Painter(_load(files, VQModel, torch.device("meta"), torch.float32), job.size).eval()
        return cls(Editor(model, None, files))

    def load(self, job: PaintByWordJob, device: str) -> "PaintByWordProgram":
        """See `Program`."""
        where = choose_device(device)
        vq = _load(self.files, VQModel, where, choose_precision(job.precision, where))
        model: Any = Painter(vq, job.size).eval()
        editor = Editor(model, find_ranker(self.files.clip, where), self.files)
        require_clip(editor, self.files)
        return PaintByWordProgram(editor)

    def prepare(self, job: PaintByWordJob, desk: Path) -> Prepared[PaintByWordJob]:
        """See `Program`."""
        edit = _edit_job(job, job.size, n_samples=1, n_iter=1)
        return Prepared(job, edit, self.editor.prepare(job.init_image, job.mask, edit.request))

    def run(
        self, ready: Sequence[Prepared[PaintByWordJob]], batch_size: int | None = None, on_step: Progress | None = None
    ) -> list[EditResult]:
        """See `Program`."""
        return [self._run(one, on_step) for one in ready]

    def _run(self, one: Prepared[PaintByWordJob], on_step: Progress | None) -> EditResult:
        job, clip = one.job, require_clip(self.editor, self.files)
        check_clip_words(clip, job.prompt)
        options = GuidanceOptions(
            aug_num=job.aug_num,
            background_preservation_loss=True,
            lpips_sim_lambda=job.lpips_sim_lambda,
            l2_sim_lambda=job.l2_sim_lambda,
            range_lambda=0.0,
        )
        model, strength = cast(Painter, self.editor.model), job.clip_guidance_lambda
        return paint_by_word_task(model, one.task, options, clip, job.steps, job.learning_rate, strength, on_step)

    def steps(self, one: Prepared[PaintByWordJob]) -> int:
        """See `Program`."""
        return one.job.steps


def load_glide(
    files: zoo.ModelFiles, above: zoo.ModelFiles, device: torch.device, dtype: torch.dtype, encode: tuple[Encode, int]
) -> Glide:
    """Both networks of GLIDE, in eval mode and without gradients, and their tokenizer with its last token.

    device: "meta" is without weights.

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
        return tokenizer.backend_tokenizer.encode(prompt).ids  # which threads may share, unlike the tokenizer

    return encode, int(tokenizer.eos_token_id)


def _load(files: zoo.ModelFiles, kind: type, device: torch.device, dtype: torch.dtype) -> Any:
    if device.type == "meta":
        model: Any = zoo.outline(files)
    else:
        model = load_model(zoo.read_config(files.config), files.weights, device=device, dtype=dtype)
    if not isinstance(model, kind):
        raise UserError(f"{files.config} is of a {type(model).__name__}: this command takes {kind.__name__}")
    return model


def _edit_job(job: BaselineJob, size: int, **more: Any) -> EditJob:
    """The job in the words of all edits: what the window, the folder and the record are made of."""
    names = ("prompt", "init_image", "mask", "invert_mask", "region", "context", "feather", "seed", "outdir")
    same = {name: getattr(job, name) for name in (*names, "overwrite")}
    return EditJob(**same, H=size, W=size, mask_dilation_iterations=0, fit_mask="off", **more)
