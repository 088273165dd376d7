#!/bin/sh
# Makes the pictures of docs/gallery.md and docs/demo.jpg again: make gallery (the commands of that page, in its order).
set -e
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
out=outputs/gallery
model=things

edit() {
    name=$1
    shift
    "$python" scripts/text_editing.py --model "$model" --outdir "$out/$name" "$@"
}

grid() { # of a run, as a JPEG that is not wider than a page of text
    "$python" -c "
import sys
from PIL import Image
grid = Image.open(sys.argv[1]).convert('RGB')
grid.thumbnail((1280, 10000), Image.Resampling.LANCZOS)
grid.save(sys.argv[2], quality=85)" "$out/$1"/*.png "docs/gallery/$1.jpg"
}

mkdir -p docs/gallery
edit demo -p "a cookie" -i inputs/img.png --mask inputs/mask.png
"$python" -c "
import sys
from PIL import Image
before, after = (Image.open(path).convert('RGB') for path in sys.argv[1:3])
both = Image.new('RGB', (2 * before.width + 8, before.height), 'white')
both.paste(before)
both.paste(after, (before.width + 8, 0))
both.save(sys.argv[3], quality=92)" inputs/img.png "$out/demo/samples/results/0000.png" docs/demo.jpg
edit add -p "a star" -i inputs/rocket.jpg --mask inputs/rocket_mask.png
edit alter -p "a strawberry" -i inputs/img.png --mask inputs/spoon_mask.png
edit many -p "a lemon" -i inputs/img.png --mask inputs/spoon_mask.png --n_samples 8 --n_iter 3
model=scenes
edit background -p "grass" -i inputs/cat.png --mask inputs/cat_mask.png --invert_mask
edit scribble -p "a pink donut" -i inputs/scribble.png --mask inputs/scribble_mask.png --skip_steps 20
model=things
for name in demo add alter background scribble many; do
    grid "$name"
done
edit trajectory -p "a mushroom" -i inputs/img.png --mask inputs/mask.png --n_samples 1 --save_video
"$python" -c "
import sys
import imageio.v3 as iio
from PIL import Image
frames = [Image.fromarray(frame).quantize(128, dither=Image.Dither.NONE) for frame in iio.imread(sys.argv[1])]
frames[0].save(sys.argv[2], save_all=True, append_images=frames[1:], duration=100, loop=0)" \
    "$out/trajectory/samples/videos/0000.mp4" docs/gallery/trajectory.gif
"$python" docs/ten_edits.py docs/gallery/ten.jpg
