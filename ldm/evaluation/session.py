"""Figure 17: edits of edits. What a session leaves of the photograph, with the exact background and without it."""

import numpy as np
import torch
from PIL import Image
from torch import Generator
from tqdm import tqdm

from ldm.evaluation.inputs import rectangle
from ldm.evaluation.measures import EXACT, background_psnr
from ldm.evaluation.paintings import silent
from ldm.evaluation.trial import Trial, markdown_table
from ldm.imaging.finish import feather_alpha
from ldm.imaging.images import load_image, make_grid, to_pil, to_tensor
from ldm.imaging.region import resize_back

ENDS = ("as delivered", "as painted")


def run(trial: Trial) -> str:
    """Edit one photograph `count` times, each edit on the result of the last; write session.md, .json and .png.

    As delivered, each result has the exact background. As painted, the next edit begins from the model's own picture of
    all of it, as the released program's users would have to.
    """
    photo = load_image(trial.inputs[0].image).rgb
    generator = Generator().manual_seed(trial.job.seed)
    masks = [rectangle(generator, photo.height, photo.width) for _ in range(trial.count)]
    source = to_tensor(photo)
    touched = np.zeros((photo.height, photo.width), bool)  # masks and their bands
    now = dict.fromkeys(ENDS, photo)
    cells: dict[str, list[Image.Image]] = {name: [photo] for name in ENDS}
    numbers: list[dict[str, float | None]] = []
    prompts = [trial.inputs[i % len(trial.inputs)].prompt for i in range(trial.count)]
    for index, mask in enumerate(tqdm(masks, desc="session", unit="edit", disable=None)):
        asked, seed = prompts[index], trial.job.seed + index
        with silent():
            own = trial.method.edit(now["as delivered"], mask, asked, 1, seed)
            whole = trial.method.edit(now["as painted"], mask, asked, 1, seed, region="whole")
        now["as delivered"] = own.delivered[0].convert("RGB")
        now["as painted"] = to_pil(resize_back(whole.x.clamp(-1, 1), whole.canvas.window))
        touched |= feather_alpha(mask > 0, own.measures[0].feather) > 0
        beyond = torch.from_numpy(touched).float()[None, None]
        numbers.append({name: background_psnr(to_tensor(now[name]), source, beyond) for name in ENDS})
        for name in ENDS:
            cells[name].append(now[name])
    rows = [
        [f"{i + 1}: {prompt}", *(_shown(one[name]) for name in ENDS)]
        for i, (prompt, one) in enumerate(zip(prompts, numbers, strict=True))
    ]
    table = markdown_table(["after edit", *(f"{name}, PSNR of what no edit touched" for name in ENDS)], rows)
    for cell in (pictures := [cell.copy() for name in ENDS for cell in cells[name]]):
        cell.thumbnail((240, 240))
    captions = [text for name in ENDS for text in (name, *prompts)]
    return trial.write("session", table, {"edits": numbers}, make_grid(pictures, trial.count + 1, captions))


def _shown(value: float | None) -> str:
    return "–" if value is None else "exact" if value >= EXACT else f"{value:.1f} dB"
