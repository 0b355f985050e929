"""Linear layers, as convolutions of no dims: their nodes know what those of convolutions know."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import checks, dispatch, per_sample
from gan_fast.ops.conv import Convolution
from gan_fast.ops.conv_kernels import ConvGeometry

OP = "linear"
backends.register(OP, None, aten_when_small=True)

_GEOMETRY = ConvGeometry((), (), (), False, (), 1)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``input @ weight.T + bias`` as ``F.linear``, with a lean double backward.

    Args:
        input: (N, *, C_in) or (C_in,), float64, float32, bfloat16 or float16.
        weight: (C_out, C_in), same dtype and device.
        bias: (C_out,) or None, same dtype and device.

    Returns:
        (N, *, C_out) or (C_out,).

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape or device.

    Notes:
        Derivatives: of any order, by products of ATen's; the first backward of a gradient penalty takes none of the
        weight. Under autocast: in its dtype, as ``F.linear``.
    """
    if checks.is_for_torch(OP, input, weight, bias):
        return F.linear(input, weight, bias)
    if backends.is_small(input, weight, bias) and per_sample.recording() is None:
        try:
            return F.linear(input, weight, bias)
        except (RuntimeError, TypeError):
            pass  # the checks below say what is wrong in words of ours
    checks.floating(OP, "input", input)
    checks.tensor(OP, "weight", weight)
    device = input.device.type
    if dispatch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        input, weight = (t if t.dtype == torch.float64 else t.to(dtype) for t in (input, weight))
        bias = bias if bias is None or bias.dtype == torch.float64 else bias.to(dtype)
    if dispatch.is_traced():
        return F.linear(input, weight, bias)
    _check(input, weight, bias)
    if input.dim() < 2 or not backends.uses_kernel(OP, device, input.dtype):
        return F.linear(input, weight, bias)
    rows = input.flatten(0, -2)
    output: Tensor = Convolution.apply(rows, weight, bias, _GEOMETRY, None)
    return output if input.dim() == 2 else output.view(*input.shape[:-1], output.size(1))


def _check(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        checks.tensor(OP, name, value)
        checks.same_device(OP, name, value, "input", input)
        checks.dtype(OP, name, value, input.dtype)
    if weight.dim() != 2:
        raise ValueError(f"{OP}: expected weight dimensions 2, got shape {tuple(weight.shape)}")
    if input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{OP}: expected input last dim {weight.shape[1]} as weight {tuple(weight.shape)} has it, "
            f"got shape {tuple(input.shape)}"
        )
    if bias is not None:
        checks.shape(OP, "bias", bias, (weight.shape[0],))
