"""Install with `pip install -e .` (or `make`): the package is `ldm`, the commands are in `scripts/`."""

from setuptools import find_packages, setup

EXTRAS = {
    "poisson": ["opencv-python-headless"],  # reconstruct.py --reconstruction_type poisson
    "video": ["imageio", "imageio-ffmpeg"],  # text_editing.py --save_video
    "train": ["tensorboard", "scikit-image", "scikit-learn", "matplotlib"],  # logs, photographs of scenes, plots
}

setup(
    name="blended-latent-diffusion",
    version="0.1.0",
    description="Text-driven local image editing: Blended Latent Diffusion",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["ldm", "ldm.*"]),
    install_requires=[
        "torch>=2.6",  # the first whose weights-only loading ldm/checkpoint.py can rely on
        "torchvision",
        "pytorch-lightning>=2.6",
        "omegaconf>=2.3",
        "transformers>=4.45",
        "tokenizers>=0.20",
        "open_clip_torch>=2.30",
        "safetensors>=0.4",
        "numpy",
        "scipy",
        "pillow>=10.1",
        "tqdm",
        "einops",
    ],
    extras_require={
        **EXTRAS,
        "dev": ["pytest", "ruff", "diffusers", *(package for extra in EXTRAS.values() for package in extra)],
    },
)
