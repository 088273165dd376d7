#!/bin/sh
# Makes the pictures of docs/gallery.md again: make gallery (the commands of that page, one after the other).
set -e
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
out=outputs/gallery

edit() {
    name=$1
    shift
    "$python" scripts/text_editing.py --model scenes --outdir "$out/$name" "$@"
    "$python" -c "import sys; from PIL import Image; Image.open(sys.argv[1]).convert('RGB').save(sys.argv[2], quality=90)" \
        "$out/$name"/*.png "docs/gallery/$name.jpg"
}

mkdir -p docs/gallery
edit add -p "a yellow star" -i inputs/rocket.jpg --mask inputs/rocket_mask.png
edit alter -p "a blue striped mug" -i inputs/img.png --mask inputs/mug_mask.png
edit background -p "grass" -i inputs/cat.png --mask inputs/cat_mask.png --invert_mask
edit scribble -p "a blue ball" -i inputs/scribble.png --mask inputs/scribble_mask.png --skip_steps 20
edit thin -p "a green cylinder" -i inputs/img.png --mask inputs/mask_thin.png
edit many -p "a red checkered cube" -i inputs/img.png --mask inputs/mask.png --n_samples 8 --n_iter 3
edit walk -p "a purple donut" -i inputs/img.png --mask inputs/mask.png --n_samples 1 --save_video
"$python" -c "import sys; import imageio.v3 as iio; iio.imwrite(sys.argv[2], iio.imread(sys.argv[1]), duration=100, loop=0)" \
    "$out/walk/samples/videos/0000.mp4" docs/gallery/walk.gif
rm docs/gallery/walk.jpg
"$python" docs/ten_edits.py docs/gallery/ten.jpg
