"""The video of an edit: what the model believes the result to be, step after step."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.backbones.contract import Backbone
from ldm.errors import MissingExtra
from ldm.imaging.images import to_pil


def require_video_writer(option: str = "save_video") -> None:
    """Raise MissingExtra where no library can write mp4; to be called before the work is done.

    option: what asks for it.
    """
    try:
        import imageio.v3  # noqa: F401
        import imageio_ffmpeg  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "imageio").replace("_", "-"), "video", f"`{option}`") from error


@torch.no_grad()
def decode_steps(model: Backbone, z0_steps: Tensor) -> Iterable[np.ndarray]:
    """The z0 estimates of one prediction (steps, c, h, w) -> frames (H, W, 3) of uint8."""
    for z0 in z0_steps.split(1):
        yield np.asarray(to_pil(model.decode(z0.to(model.device))))


def write_video(frames: Iterable[np.ndarray], path: Path, fps: int = 10, hold: int = 10) -> None:
    """Write an mp4 (H.264, 4:2:0, which every player shows); the last frame stands for `hold` frames more.

    Raises:
        MissingExtra: the library for it is not installed.
    """
    require_video_writer()
    import imageio.v3 as iio

    frames = list(frames)
    frames += [frames[-1]] * hold
    iio.imwrite(path, np.stack(frames), plugin="FFMPEG", fps=fps, codec="libx264", macro_block_size=2)
