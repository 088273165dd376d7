"""What is measured: a model, and the ways in which it, or `diffusers` with its weights, can be run."""

import copy
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.backbones import zoo
from ldm.benchmark.theirs import TheirModel
from ldm.editing.edit import edit_image
from ldm.editing.ranking import CLIPRanker, find_ranker
from ldm.editing.reconstruct import ReconstructionTask, reconstruct
from ldm.editing.request import EditRequest, ReconstructionOptions
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import PRECISIONS, has_fast_bfloat16, instantiate_from_config

FULL = "full"
FULL_CONFIG = zoo.REPOSITORY / "configs/latent-diffusion/txt2img-1p4B-eval.yaml"
PROMPT, SCALE = "a pink yarn ball", 5.0


@dataclass(frozen=True)
class Way:
    """How a model is run.

    Attributes:
        precision: a name of `PRECISIONS`.
        library: `ldm` or `diffusers`.
        prepared: the context's keys and values are computed once for all steps, not at every step.
        channels_last: the layout of the UNet's and the autoencoder's weights.
        compiled: a mode of `LatentDiffusion.compile_denoiser`; for diffusers any mode is its documented one.
    """

    name: str
    precision: str = "float32"
    library: str = "ldm"
    prepared: bool = True
    channels_last: bool = False
    compiled: str | None = None


PLAIN = Way("plain float32", prepared=False)


def ways(device: torch.device, precision: str, compare: bool, compiled: bool) -> list[Way]:
    """The plain way first, which all others are held against.

    Args:
        precision: `auto` is bfloat16 on a GPU; on a CPU float32, and bfloat16 where it is quicker.
        compare: run diffusers too.
        compiled: run compiled forms too.
    """
    if precision != "auto":
        precisions = [precision]
    elif device.type == "cpu":
        precisions = ["float32", "bfloat16"] if has_fast_bfloat16() else ["float32"]
    else:
        precisions = ["bfloat16"] if device.type == "cuda" and torch.cuda.is_bf16_supported() else ["float16"]
    found = [PLAIN]
    for p in precisions:
        found += [Way(p, p), Way(f"{p} channels-last", p, channels_last=True)]
        if compiled:
            found.append(Way(f"{p} compiled", p, channels_last=device.type == "cuda", compiled="regions"))
        if compiled and device.type == "cuda":
            found.append(Way(f"{p} graphs", p, channels_last=True, compiled="graphs"))
        if compare:
            found.append(Way(f"diffusers {p}", p, "diffusers"))
        if compare and compiled:
            found.append(Way(f"diffusers {p} compiled", p, "diffusers", channels_last=True, compiled="graphs"))
    return found


@dataclass(frozen=True)
class Base:
    """A model as it is before any way is chosen: float32 on the CPU, and what ranks its predictions.

    params: what the model was built from. files: None for random weights.
    """

    model: LatentDiffusion
    params: Mapping[str, Any]
    ranker: CLIPRanker | None
    files: zoo.ModelFiles | None


def load_base(name: str, device: torch.device) -> Base:
    """`full` is the public architecture with random weights, and so is its ViT-B/16; else see `zoo.resolve`."""
    if name == FULL:
        params = zoo.read_config(FULL_CONFIG)["model"]["params"]
        return Base(random_model(params), params, _random_ranker(device), None)
    files = zoo.resolve(name)
    params = zoo.read_config(files.config)["model"]["params"]
    model = zoo.load_ours(files, torch.device("cpu"), torch.float32)
    return Base(model, params, find_ranker(files.clip, device), files)


def random_model(params: Mapping[str, Any], seed: int = 0) -> LatentDiffusion:
    """A LatentDiffusion in eval mode, with weights that leave no branch at zero; it reads the words of `scenes`."""
    text = dict(params["cond_stage_config"])
    text["params"] = dict(text["params"]) | {"tokenizer": str(zoo.REPOSITORY / "models/ldm/scenes/tokenizer")}
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = instantiate_from_config({"target": target, "params": dict(params) | {"cond_stage_config": text}})
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return model.eval().requires_grad_(False)


def _random_ranker(device: torch.device, name: str = "ViT-B-16-quickgelu") -> CLIPRanker:
    import open_clip

    # open_clip warns of random weights on the root logger, which would give that one a handler of its own.
    logging.getLogger().addHandler(logging.NullHandler())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(name)
    return CLIPRanker(model, open_clip.get_tokenizer(name), device)


def _apply_to_every_row(model: LatentDiffusion, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """`apply_model` with the context repeated for all rows of z, as plain code has it."""
    return LatentDiffusion.apply_model(model, z, t, context.repeat_interleave(len(z) // len(context), dim=0))


class Subject:
    """A model in one way, on one device. Pictures and latents go in as float32 on the CPU.

    Args:
        base: is left as it is; where weights can be shared with it, they are.
    """

    def __init__(self, base: Base, way: Way, device: torch.device):
        dtype = PRECISIONS[way.precision]
        shared = device.type == "cpu" and dtype == torch.float32 and not (way.channels_last or way.compiled)
        model = copy.copy(base.model) if shared else copy.deepcopy(base.model).to(device, dtype)
        if not way.prepared:
            model.prepare_context = lambda context: context  # type: ignore[method-assign, assignment, return-value]
            model.apply_model = functools.partial(_apply_to_every_row, model)  # type: ignore[method-assign]
        for name, buffer in base.model.named_buffers(recurse=False):  # the schedule stays float32
            setattr(model, name, buffer.to(device))
        self.way, self.model, self.ranker, self.device, self.dtype = way, model, base.ranker, device, dtype
        self.theirs = TheirModel(model, base.params) if way.library == "diffusers" else None
        if way.channels_last:
            for network in (self.unet, self.theirs.vae if self.theirs else model.first_stage_model):
                network.to(memory_format=torch.channels_last)
        if way.compiled and self.theirs:
            self.theirs.unet.compile(mode="reduce-overhead" if device.type == "cuda" else None, fullgraph=True)
        elif way.compiled:
            model.compile_denoiser(way.compiled)

    @property
    def unet(self) -> torch.nn.Module:
        """The denoiser of the library in question."""
        return self.theirs.unet if self.theirs else self.model.model.diffusion_model

    def text(self) -> Tensor:
        """The empty prompt and the prompt -> (2, m, d), in the precision of the way."""
        prompts = ["", PROMPT]
        return self.theirs.context(prompts) if self.theirs else self.model.get_learned_conditioning(prompts)

    def step(self, z: Tensor) -> "functools.partial[Tensor]":
        """One call of the network under guidance, for z (2b, c, h, w): what sampling does once is done before."""
        t = torch.full((len(z),), 500, device=self.device)
        context = self.text()
        if self.theirs:
            rows = context.repeat_interleave(len(z) // 2, dim=0)
            return functools.partial(self.theirs.step, z.to(self.device, self.dtype), t, rows)
        return functools.partial(self.model.apply_model, z.to(self.device), t, self.model.prepare_context(context))

    def encode(self, x: Tensor) -> Tensor:
        """Pictures x (n, 3, H, W) in [-1, 1] -> scaled latents (n, c, h, w)."""
        x = x.to(self.device)
        return self.theirs.encode(x) * self.model.scale_factor if self.theirs else self.model.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """Latents z (n, c, h, w) -> pictures (n, 3, H, W) in about [-1, 1]."""
        z = z.to(self.device)
        if self.theirs:
            return self.theirs.decode((z / self.model.scale_factor).to(self.dtype))
        return self.model.decode(z)

    def rank(self, x: Tensor, mask: Tensor) -> Tensor:
        """CLIP's distances of pictures; a model that has a part for it has a ranker."""
        assert self.ranker is not None
        return self.ranker.distances(x, mask, PROMPT)

    def edit(self, x: Tensor, mask: Tensor, samples: int, steps: int) -> Tensor:
        """Ranked predictions in the order of their seeds; of diffusers, which has no blending, as many pictures."""
        if self.theirs:
            size = x.shape[2] // self.model.factor
            pictures = self.theirs.generate(PROMPT, range(42, 42 + samples), steps, SCALE, size)
            if self.ranker is not None:
                self.rank(pictures, mask)
            return pictures
        request = EditRequest(PROMPT, n_samples=samples, ddim_steps=steps, scale=SCALE, fit_mask="off")
        edit = edit_image(self.model, x, mask, request, self.ranker)
        return edit.x[sorted(range(samples), key=edit.seeds.__getitem__)]

    def tune(self, x: Tensor, mask: Tensor, z0: Tensor, steps: int) -> Tensor:
        """The paper's reconstruction; the plain way in float32."""
        options = ReconstructionOptions(
            optimization_steps=steps, precision="float32" if self.dtype == torch.float32 else "bfloat16"
        )
        x_hat = self.decode(z0).float().cpu()
        return reconstruct(ReconstructionTask(x, x_hat, mask, z0, self.model), options).x
