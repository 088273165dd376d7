"""Ten edits in a row on one photograph, the result of each the input of the next: python docs/ten_edits.py OUT.jpg"""

import sys

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from ldm.editing import Editor

EDITS = [  # prompt, and the middle and the radius of its disc in pixels
    ("an apple", (330, 60), 34),
    ("a lemon", (255, 42), 30),
    ("a strawberry", (360, 135), 34),
    ("a cookie", (350, 350), 38),
    ("an orange", (305, 190), 38),
    ("a ladybug", (362, 225), 30),
    ("a mushroom", (285, 290), 36),
    ("a soccer ball", (345, 285), 28),
    ("a cupcake", (270, 360), 32),
    ("a tomato", (210, 368), 28),
]

source = picture = Image.open("inputs/img.png").convert("RGB")
covered = Image.new("L", source.size)
editor = Editor.load("things")
for prompt, (x, y), radius in EDITS:
    mask = Image.new("L", source.size)
    ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    edited = editor.edit(picture, mask, prompt)
    picture = edited.results[0]
    reach = radius + edited.task.canvas.feather + 1  # the mask and its band: all that this edit may have changed
    ImageDraw.Draw(covered).ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)

difference = np.asarray(ImageChops.difference(source, picture)).max(axis=2)
print("largest difference to the photograph outside all masks and bands:", difference[np.asarray(covered) == 0].max())
both = Image.new("RGB", (2 * source.width, source.height))
both.paste(source)
both.paste(picture, (source.width, 0))
both.save(sys.argv[1], quality=90)
