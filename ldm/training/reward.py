"""A reward for what the prompt says, beside the denoising loss: the denoiser edits scenes, a reader says what it sees.

The squared error counts every detail of a texture alike, and a small denoiser spends itself on them; whether the wood
looks like wood is a small part of it. So some scenes are edited as `blended_sample` does it, in few steps and with
guidance, and at some of those steps the estimate z0 is read by a `LatentReader`. The gradient of its cross-entropy goes
through that one step (ReFL, Xu et al. 2023, algorithm 1; DRaFT-1, Clark et al. 2024), not through the steps before it.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Generator, Tensor

from ldm.backbones.guidance import guided_denoiser
from ldm.data.object_crops import VALUES, encode, said, write_caption
from ldm.data.scenes.draw import chance
from ldm.data.scenes.scenes import draw_look
from ldm.errors import UserError
from ldm.models.diffusion.ddpm import LatentDiffusion, TextConditioning
from ldm.models.diffusion.sampling import ddim_step, noised
from ldm.training.data import check_emphasis
from ldm.training.reader import READ, LatentReader, ReaderTrainer, draw_regions


class Reward:
    """What a `LatentReader` has to say against the edits of a denoiser in training.

    Args:
        reader: a checkpoint of `ReaderTrainer`.
        weight: of this loss, beside that of the denoising.
        every: it is asked at every so many steps of the training.
        batch: edits at a time.
        steps: of an edit; read: how many of them are read, drawn from those `between` two noise levels, in parts of
            the model's timesteps. What is noisier shows no texture yet; what is cleaner changes no answer any more,
            and is left out of the edit where nothing cleaner is read.
        scale: of guidance.
        emphasis: a shape, material or colour -> how many times as often prompts say it as others of its kind.

    Raises:
        UserError: there is no such checkpoint, or `emphasis` is none.
    """

    def __init__(
        self,
        reader: str,
        weight: float,
        every: int = 1,
        batch: int = 8,
        steps: int = 8,
        read: int = 3,
        between: tuple[float, float] = (0.2, 0.8),
        scale: float = 4.0,
        emphasis: Mapping[str, float] | None = None,
    ):
        if not Path(reader).is_file():
            raise UserError(f"there is no reader at {reader}: train configs/scenes/reader.yaml first")
        trained = ReaderTrainer.load_from_checkpoint(reader, map_location="cpu").reader
        self.reader: LatentReader = trained.eval().requires_grad_(False)
        self.weight, self.every, self.batch = weight, every, batch
        self.steps, self.read, self.between, self.scale = steps, read, between, scale
        self.emphasis = {name: 1.0 for kind in READ for name in VALUES[kind]} | dict(emphasis or {})
        check_emphasis(self.emphasis, READ)

    def loss(self, ldm: LatentDiffusion, batch: Mapping[str, Tensor], generator: Generator) -> Tensor:
        """The mean cross-entropy, a scalar, of what the reader is to see in edits of the first scenes of a batch.

        The parameters' gradient comes from the half with the prompt alone: the other half could make any prompt seem
        well followed by forgetting how pictures look without one.

        Args:
            ldm: the model in training.
            batch: "z" (b, c, h, w), scaled, and "box" (b, 4), as `LatentScenes` has them.
            generator: of prompts, regions, noise and the steps that are read.

        Raises:
            UserError: there are fewer steps between the two levels than are to be read.
        """
        z_source = batch["z"][: self.batch].float()
        texts, labels = self.prompts(generator, len(z_source))
        region = draw_regions(generator, batch["box"][: self.batch].cpu(), z_source.shape[-1], (0, 2)).to(z_source)
        noise = torch.randn(z_source.shape, generator=generator).to(z_source)
        reader, labels, encoder = self.reader.to(z_source.device), labels.to(z_source.device), ldm.cond_stage_model
        context, empty = (encoder.transformer(encoder.tokenize(some).to(z_source.device)) for some in (texts, [""]))
        conditioning = TextConditioning(ldm, torch.cat([context, empty]))
        n = len(context)
        prompted, unprompted = conditioning.select(range(n)), conditioning.select([n])
        denoise = guided_denoiser(ldm, conditioning, range(n), [n], self.scale)
        schedule = ldm.levels.schedule(self.steps)
        low, high = (level * len(ldm.alphas_cumprod) for level in self.between)
        readable = [i for i, t in enumerate(schedule.timesteps) if low < t < high]
        if len(readable) < self.read:
            raise UserError(
                f"the reward is to read {self.read} of {self.steps} steps, and {len(readable)} of them lie between "
                f"the noise levels {self.between[0]:g} and {self.between[1]:g}: give fewer, or more steps"
            )
        read = {readable[i] for i in torch.randperm(len(readable), generator=generator)[: self.read].tolist()}
        losses, z = [], noised(z_source, schedule.levels[0], noise)
        for i, (begin, end) in enumerate(pairwise(schedule.levels[: max(read) + 2])):
            if i in read:
                with torch.no_grad():
                    made_empty = ldm.predict(z, begin, unprompted)
                made = made_empty.guided(ldm.predict(z, begin, prompted), self.scale)
                losses.append(reader.loss(torch.where(region.bool(), made.z0, z_source), region, labels).mean())
            else:
                with torch.no_grad():
                    made = denoise(z, begin)
            z = ddim_step(made, end)
            z = torch.where(region.bool(), z.detach(), noised(z_source, end, noise))
        return torch.stack(losses).mean()

    def prompts(self, generator: Generator, count: int) -> tuple[list[str], Tensor]:
        """Captions of random objects, and what each of them names: (count, 3) labels, as the reader has them."""
        texts: list[str] = []
        labels: list[list[int]] = []
        most = math.prod(max(self.emphasis[name] for name in VALUES[kind]) for kind in READ)
        while len(texts) < count:
            look = dict(zip(READ, draw_look(generator), strict=True)) | {"background": None}
            if not chance(generator, math.prod(self.emphasis[name] for name in look.values() if name) / most):
                continue
            texts.append(write_caption(generator, look))
            labels.append(encode(said(texts[-1], look))[:3])
        return texts, torch.tensor(labels)
