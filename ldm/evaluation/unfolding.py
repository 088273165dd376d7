"""Figure 15: the estimates of x0 along the steps. When is the picture decided?"""

import torch
from PIL import Image
from tqdm import tqdm

from ldm.evaluation.measures import clip_score, estimate
from ldm.evaluation.paintings import silent
from ldm.evaluation.tables import OF, Measure, shown
from ldm.evaluation.trial import Trial, markdown_table
from ldm.imaging.images import make_grid, to_pil

PLACES = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
ROWS = 6
DISTANCE = Measure("distance", "", "", digits=3)


@torch.no_grad()
def run(trial: Trial) -> str:
    """Edit each input and decode its estimates at `PLACES` of the steps; write estimates.md, .json and .png."""
    numbers: dict[str, list[dict[str, float | None]]] = {}
    cells: list[Image.Image] = []
    captions: list[str] = []
    for index, one in enumerate(tqdm(trial.inputs, desc="estimates", unit="input", disable=None)):
        with silent():
            result = trial.method.result(
                one.image, one.mask, one.prompt, keep_steps=True, n_samples=1, seed=trial.job.seed + 1000 * index
            )
        canvas, model = result.task.canvas, trial.method.editor.model
        mask, steps = canvas.x_mask, result.z0_steps[0]
        final = torch.where(mask > 0, result.x, -torch.ones(1))
        for place in PLACES:
            step = round(place * (len(steps) - 1))
            x = model.decode(steps[step : step + 1].to(model.device)).float().cpu().clamp(-1, 1)
            seen = torch.where(mask > 0, x, -torch.ones(1))
            score = None
            if trial.eyes.ranker is not None:
                score = clip_score(float(trial.eyes.ranker.distances(x, mask, one.prompt)))
            numbers.setdefault(f"step {step + 1} of {len(steps)}", []).append(
                {
                    "distance": float(trial.eyes.perceptual.between(seen, final)[0]),
                    "right": trial.right(canvas, x, one),
                    "clip": score,
                }
            )
            if index < ROWS:
                cells.append(to_pil(x))
                captions.append(f"{one.prompt}" if place == 0 else f"step {step + 1}")
    rows = [
        [name, *(shown(estimate([one[key] for one in of]), measure) for key, measure in MEASURES.items())]
        for name, of in numbers.items()
    ]
    table = markdown_table(["", "distance to the result, inside the mask", "right", "CLIP score"], rows)
    return trial.write("estimates", table, numbers, make_grid(cells, len(PLACES), captions))


MEASURES = {"distance": DISTANCE, "right": OF["precision"], "clip": OF["clip"]}
