"""The baselines of the paper as methods: Blended Diffusion, local CLIP-guided diffusion, GLIDE, PaintByWord++.

Each is the method that its command runs, with the command's defaults (docs/baselines.md).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ldm.backbones import zoo
from ldm.checkpoint import load_model
from ldm.editing.baselines import glide_task, paint_by_word_task
from ldm.editing.editor import Editor
from ldm.editing.guided import TRAIN_STEPS, guide_task
from ldm.editing.guided_request import GuidanceOptions
from ldm.editing.ranking import find_ranker
from ldm.editing.request import EditRequest
from ldm.evaluation.jobs import MethodChoice
from ldm.evaluation.methods import Counted, Edited, Known, clip_sha256, count_parameters, edited_of
from ldm.files import weights_hash
from ldm.imaging.images import ImageLike
from ldm.models.diffusion.glide import GlideSampling
from ldm.models.diffusion.respacing import space_timesteps
from ldm.models.paint_by_word import Painter
from ldm.options import declared
from ldm.runs.baseline_jobs import GlideJob, PaintByWordJob
from ldm.runs.baselines import byte_pairs, load_glide
from ldm.runs.blended_diffusion import require_clip, strength_of
from ldm.util import choose_device, choose_precision

GUIDED = {
    "blended_diffusion": GuidanceOptions(),
    "local_clip_guided": GuidanceOptions(local_clip_guided_diffusion=True, background_preservation_loss=True),
}


class Guided:
    """Blended Diffusion, or its own baseline without blending, by any backbone that CLIP may guide.

    place: `region` and `context` of every edit.
    """

    def __init__(self, editor: Editor, files: zoo.ModelFiles, options: GuidanceOptions, place: Mapping[str, Any]):
        self.clip = require_clip(editor, files)
        self.counted = Counted(editor.model)
        self.editor = Editor(self.counted, editor.ranker, files)
        self.options, self.place, self.strength = options, dict(place), strength_of(files)

    @property
    def parameters(self) -> int:
        """See `Method`."""
        return count_parameters(self.counted.backbone)

    def edit(self, photo: ImageLike, mask: ImageLike, prompt: str, n: int, seed: int) -> Edited:
        """See `Method`."""
        before = self.counted.evaluations
        request = EditRequest(
            prompt,
            n_samples=n,
            seed=seed,
            ddim_steps=len(space_timesteps(self.options.timestep_respacing, TRAIN_STEPS)),
            skip_steps=self.options.skip_timesteps,
            ddim_eta=0.0 if self.options.ddim else 1.0,
            scale=1.0,
            mask_dilation_iterations=0,
            force=True,
            **self.place,
        )
        task = self.editor.prepare(photo, mask, request)
        result = guide_task(self.counted, task, self.options, self.clip, self.strength)
        return edited_of(result, task.canvas, self.counted.evaluations - before)


class GlideFilled:
    """GLIDE-filtered's inpainting."""

    def __init__(self, editor: Editor, told: GlideSampling, place: Mapping[str, Any]):
        self.editor, self.told, self.place = editor, told, dict(place)

    @property
    def parameters(self) -> int:
        """See `Method`."""
        return count_parameters(self.editor.model)

    def edit(self, photo: ImageLike, mask: ImageLike, prompt: str, n: int, seed: int) -> Edited:
        """See `Method`."""
        request = EditRequest(prompt, n_samples=n, seed=seed, mask_dilation_iterations=0, force=True, **self.place)
        task = self.editor.prepare(photo, mask, request)
        model: Any = self.editor.model
        result = glide_task(model, task, self.told, self.editor.ranker)
        base, above = (
            len(space_timesteps(one, TRAIN_STEPS)) for one in (self.told.base_respacing, self.told.upsample_respacing)
        )
        return edited_of(result, task.canvas, n * (2 * base + above))  # both halves of guidance, then the prompt's


class PaintedByWord:
    """PaintByWord++, which gives one picture, however many are asked for."""

    def __init__(self, editor: Editor, files: zoo.ModelFiles, job: Mapping[str, Any], place: Mapping[str, Any]):
        self.editor, self.job, self.place = editor, dict(job), dict(place)
        self.clip = require_clip(editor, files)

    @property
    def parameters(self) -> int:
        """See `Method`."""
        return count_parameters(self.editor.model)

    def edit(self, photo: ImageLike, mask: ImageLike, prompt: str, n: int, seed: int) -> Edited:
        """See `Method`."""
        request = EditRequest(prompt, n_samples=1, seed=seed, mask_dilation_iterations=0, force=True, **self.place)
        task = self.editor.prepare(photo, mask, request)
        options = GuidanceOptions(
            background_preservation_loss=True, range_lambda=0.0, **{k: self.job[k] for k in _WEIGHTS}
        )
        model: Any = self.editor.model
        steps, rate, strength = (self.job[name] for name in ("steps", "learning_rate", "clip_guidance_lambda"))
        result = paint_by_word_task(model, task, options, self.clip, steps, rate, strength)
        return edited_of(result, task.canvas, steps)


_WEIGHTS = ("aug_num", "lpips_sim_lambda", "l2_sim_lambda")


def _defaults(job: type) -> dict[str, Any]:
    """What a command does where it is told nothing."""
    return {name: field.default for name, field in declared(job).items() if not field.is_required()}


def _settings(choice: MethodChoice, *models: str, **how: Any) -> dict[str, Any]:
    """What the pictures of a method depend on; raises UserError where one of its models is not here."""
    every: dict[str, Any] = {}
    for name in models:
        files = zoo.resolve(name)
        every[f"{name}_sha256"] = weights_hash(files.weights)
        every |= clip_sha256(files)
    precision = str(choose_precision(choice.precision, choose_device(choice.device))).removeprefix("torch.")
    return {**every, **how, "region": choice.region, "context": choice.context, "precision": precision}


def _place(choice: MethodChoice) -> dict[str, Any]:
    return {"region": choice.region, "context": choice.context}


def pixel_model(choice: MethodChoice) -> str:
    """Blended Diffusion's model beside ours: the small one of pixels beside our own, else the public one."""
    return "pixels" if choice.model in ("things", "scenes") else "blended-diffusion-256"


def guidance(name: str, choice: MethodChoice) -> GuidanceOptions:
    """Of a method of `GUIDED`: twice as many steps as ours, a quarter of them left out, as 100 and 25 are there.

    Beside the small model of pixels, which needs no download, the background is kept by L2 alone: LPIPS needs one.
    """
    steps = min(2 * choice.ddim_steps, TRAIN_STEPS)
    told = replace(GUIDED[name], timestep_respacing=str(steps), skip_timesteps=steps // 4)
    return replace(told, lpips_sim_lambda=0.0) if _without_lpips(name, choice) else told


def _without_lpips(name: str, choice: MethodChoice) -> bool:
    return GUIDED[name].background_preservation_loss and pixel_model(choice) == "pixels"


def _guided(name: str) -> Known:
    def find(choice: MethodChoice) -> dict[str, Any]:
        options = guidance(name, choice)
        return _settings(choice, pixel_model(choice), **{k: getattr(options, k) for k in declared(GuidanceOptions)})

    def load(choice: MethodChoice) -> Guided:
        files = zoo.resolve(pixel_model(choice))
        editor = Editor.load(pixel_model(choice), device=choice.device, precision=choice.precision)
        return Guided(editor, files, guidance(name, choice), _place(choice))

    about = "Blended Diffusion" if name == "blended_diffusion" else "local CLIP-guided diffusion, without blending"

    def note(choice: MethodChoice) -> str:
        if not GUIDED[name].local_clip_guided_diffusion:
            return ""
        told = f"{name} delivers all of its window: its seam is that at the window's border."
        why = "without the term of LPIPS, which needs weights of VGG"
        return told + (f" It keeps the background by its L2 loss alone, {why}." if _without_lpips(name, choice) else "")

    return Known(about, find, load, note)


def _glide() -> Known:
    job = _defaults(GlideJob)
    told = GlideSampling(job["scale"], job["base_respacing"], job["upsample_respacing"])
    how = {name: job[name] for name in ("scale", "base_respacing", "upsample_respacing")}

    def find(choice: MethodChoice) -> dict[str, Any]:
        return _settings(choice, job["model"], job["upsampler"], **how)

    def load(choice: MethodChoice) -> GlideFilled:
        files, above = zoo.resolve(job["model"]), zoo.resolve(job["upsampler"])
        device = choose_device(choice.device)
        dtype = choose_precision(choice.precision, device)
        model = load_glide(files, above, device, dtype, byte_pairs(job["tokenizer"]))
        return GlideFilled(Editor(model, find_ranker(files.clip, device), files), told, _place(choice))

    return Known("GLIDE-filtered, inpainting", find, load)


def _paint_by_word() -> Known:
    job = _defaults(PaintByWordJob)
    how = {name: job[name] for name in ("size", "steps", "learning_rate", "clip_guidance_lambda", *_WEIGHTS)}

    def find(choice: MethodChoice) -> dict[str, Any]:
        return _settings(choice, job["model"], **how)

    def load(choice: MethodChoice) -> PaintedByWord:
        files, device = zoo.resolve(job["model"]), choose_device(choice.device)
        dtype = choose_precision(choice.precision, device)
        vq = load_model(zoo.read_config(files.config), files.weights, device=device, dtype=dtype)
        model: Any = Painter(vq, job["size"]).eval()
        return PaintedByWord(Editor(model, find_ranker(files.clip, device), files), files, how, _place(choice))

    return Known("PaintByWord++", find, load)


BASELINES: dict[str, Known] = {
    **{name: _guided(name) for name in GUIDED},
    "glide": _glide(),
    "paint_by_word": _paint_by_word(),
}
"""Name -> the baseline."""
