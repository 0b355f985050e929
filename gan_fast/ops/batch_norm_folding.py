"""Batch norm in evaluation mode, folded into the convolution or linear layer before it."""

from __future__ import annotations

from torch import Tensor


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    eps: float,
    transposed: bool = False,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of the layer that computes the given layer and the norm after it.

    Per output channel: scale = bn_weight / sqrt(running_var + eps); weight * scale and
    (bias - running_mean) * scale + bn_bias.

    Args:
        weight: (C_out, C_in / groups, *kernel) or, if ``transposed``, (C_in, C_out / groups, *kernel).
        bias, running_mean, running_var, bn_weight, bn_bias: (C_out,).
    """
    scale = (running_var + eps).rsqrt()
    if bn_weight is not None:
        scale = scale * bn_weight
    shift = -running_mean * scale if bias is None else (bias - running_mean) * scale
    if bn_bias is not None:
        shift = shift + bn_bias
    if not transposed:
        return weight * scale.view(-1, *[1] * (weight.dim() - 1)), shift
    # (groups, C_in / groups, C_out / groups, *kernel)
    grouped = weight.unflatten(0, (groups, -1)) * scale.view(groups, 1, -1, *[1] * (weight.dim() - 2))
    return grouped.flatten(0, 1), shift
