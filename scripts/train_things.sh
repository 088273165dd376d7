#!/bin/sh
# The data, the first stage and the denoiser of everyday things, one after another; resumes wherever it was stopped.
#   OMP_NUM_THREADS=1 nice -n 19 sh scripts/train_things.sh [python] [composites]
set -e
here=$(dirname "$0")
"${1:-python}" "$here/make_things.py" --count "${2:-24000}"
"${1:-python}" "$here/train.py" "$here/../configs/things/autoencoder.yaml" --rundir runs/things-autoencoder
"${1:-python}" "$here/train.py" "$here/../configs/things/diffusion.yaml" --rundir runs/things-diffusion
