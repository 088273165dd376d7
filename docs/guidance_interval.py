"""The same predictions, guided at all noise levels and at some of them: python docs/guidance_interval.py OUT.png"""

import sys

from PIL import Image

from ldm.editing import Editor
from ldm.imaging.images import make_grid, to_pil

INTERVALS = (None, (0.2, 0.8), (0.5, 1.0), (0.0, 0.5))
PROMPTS = ("a pink yarn ball", "a blue striped cube")

editor = Editor.load("scenes")
pictures: list[Image.Image] = []
captions: list[str] = []
for prompt in PROMPTS:
    everywhere = None
    for interval in INTERVALS:
        edit = editor.edit("inputs/img.png", "inputs/mask.png", prompt, guidance_interval=interval, n_samples=8)
        order = sorted(range(len(edit.seeds)), key=lambda i: edit.seeds[i])
        x = edit.x[order]
        everywhere = x if everywhere is None else everywhere
        rmse = 127.5 * (x.clamp(-1, 1) - everywhere.clamp(-1, 1)).square().mean().sqrt().item()
        name = "all levels" if interval is None else f"{interval[0]:g} to {interval[1]:g}"
        distance = sum(edit.distances) / len(edit.distances)
        print(f"| {prompt} | {name} | {rmse:.1f} | {distance:.3f} |")
        pictures += [to_pil(one) for one in x[:4]]
        captions += [f"{name} · seed {edit.seeds[i]}" for i in order[:4]]
make_grid(pictures, 8, captions).save(sys.argv[1])
