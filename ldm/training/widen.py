"""A first stage's weights for the same network with more channels of latents, computing what they computed."""

from collections.abc import Mapping

from torch import Tensor

LOG_VARIANCE = -6.0
"""What new channels of latents begin with."""

ENCODER, QUANT, POST, DECODER = "encoder.conv_out", "quant_conv", "post_quant_conv", "decoder.conv_in"


def widened(state: Mapping[str, Tensor], own: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """`state` for an `AutoencoderKL` whose latents have more channels (as in Net2Net, Chen et al. 2016).

    The first channels are what they were. The others start as they are in `own`, and the decoder does not look at them
    yet: its weights for them are zero, and learn. They have little noise: with what fresh weights give them, they
    would teach the decoder to leave them alone. As it was where `own` has no more channels, or has no first stage.

    Args:
        state: has the first stage under `prefix`; own: the state dict of the new one.
    """
    names = [f"{layer}.{kind}" for layer in (ENCODER, QUANT, POST, DECODER) for kind in ("weight", "bias")]
    if not all(prefix + name in state and name in own for name in names):
        return dict(state)
    old = {name: state[prefix + name] for name in names}
    (z, e), (more_z, more_e) = (w[f"{POST}.weight"].shape[:2] for w in (old, own))  # z_channels, embed_dim
    if (more_z, more_e) == (z, e) or more_z < z or more_e < e:
        return dict(state)
    new = {name: own[name].clone() for name in names}
    for kind in ("weight", "bias"):
        new[f"{ENCODER}.{kind}"][: 2 * z] = old[f"{ENCODER}.{kind}"]
        new[f"{POST}.{kind}"][:z] = 0  # of the channels that are new
        for half in range(2):  # the means, then the log-variances
            rows = slice(half * more_e, half * more_e + e)
            new[f"{QUANT}.{kind}"][rows] = 0
            kept = old[f"{QUANT}.{kind}"][half * e : (half + 1) * e]
            new[f"{QUANT}.{kind}"][(rows, slice(2 * z)) if kind == "weight" else rows] = kept
    new[f"{QUANT}.weight"][more_e + e :] = 0
    new[f"{QUANT}.bias"][more_e + e :] = LOG_VARIANCE
    new[f"{POST}.weight"][:z, :e], new[f"{POST}.bias"][:z] = old[f"{POST}.weight"], old[f"{POST}.bias"]
    new[f"{DECODER}.weight"][:, z:] = 0
    new[f"{DECODER}.weight"][:, :z], new[f"{DECODER}.bias"] = old[f"{DECODER}.weight"], old[f"{DECODER}.bias"]
    return {**state, **{prefix + name: value for name, value in new.items()}}
