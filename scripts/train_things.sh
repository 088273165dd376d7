#!/bin/sh
# The first stage of everyday things on some of its data, then all data and the denoiser; run it again to resume wherever
# it was stopped. In the repository's folder, on one core:
#   OMP_NUM_THREADS=1 nice -n 19 sh scripts/train_things.sh [python] [composites]
set -e
here=$(dirname "$0")
python=${1:-python}
"$python" "$here/make_things.py" --count 8000
"$python" "$here/train.py" "$here/../configs/things/autoencoder.yaml" --rundir runs/things-autoencoder
"$python" "$here/make_things.py" --count "${2:-24000}"
"$python" "$here/train.py" "$here/../configs/things/diffusion.yaml" --rundir runs/things-diffusion
