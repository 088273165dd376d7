"""Configs as the original latent diffusion publishes them: what of them is of training alone, and read by nothing here.

The classes that build networks list only what inference reads, so that a misspelt key is an error. These keys are
taken out of a user's yaml as it is read.
"""

from collections.abc import Mapping
from typing import Any

TRAINING_KEYS = {
    "ldm.models.diffusion.ddpm.LatentDiffusion": {
        *("ckpt_path", "clip_denoised", "cond_stage_key", "cond_stage_trainable", "cosine_s", "first_stage_key"),
        *("ignore_keys", "l_simple_weight", "log_every_t", "loss_type", "monitor", "num_timesteps_cond"),
        *("original_elbo_weight", "scale_by_std", "scheduler_config", "use_ema", "v_posterior"),
    },
    "ldm.models.autoencoder.AutoencoderKL": {
        *("ckpt_path", "colorize_nlabels", "ignore_keys", "image_key", "lossconfig", "monitor"),
    },
}
"""Class path -> the keys of its `params` that only training reads."""


def without_training_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config, however deeply nested, without `TRAINING_KEYS` in the params of any `{target, params}` within it."""
    plain = {k: without_training_keys(v) if isinstance(v, Mapping) else v for k, v in config.items()}
    if isinstance(plain.get("params"), dict):
        dropped = TRAINING_KEYS.get(str(plain.get("target")), set())
        plain["params"] = {key: value for key, value in plain["params"].items() if key not in dropped}
    return plain
