#!/bin/sh
# The data of everyday things, then denoiser, decoder and ranker, and the exported model; run it again to resume wherever
# it was stopped. In the repository's folder, on one core:
#   OMP_NUM_THREADS=1 nice -n 19 sh scripts/train_things.sh [python] [composites]
set -e
here=$(dirname "$0")
python=${1:-python}
"$python" "$here/make_things.py" --count "${2:-24000}"
for stage in diffusion decoder clip; do
    "$python" "$here/train.py" "$here/../configs/things/$stage.yaml" --rundir "runs/things-$stage"
done
mkdir -p runs/things-model/clip
"$python" "$here/export_model.py" runs/things-diffusion/last.ckpt runs/things-model
"$python" "$here/export_model.py" runs/things-decoder/last.ckpt runs/things-model
"$python" "$here/export_model.py" runs/things-clip/last.ckpt runs/things-model/clip
