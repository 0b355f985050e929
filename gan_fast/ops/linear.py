"""Linear layers on the autograd nodes of convolutions, with no spatial dims.

>>> import torch
>>> from gan_fast import ops
>>> ops.linear(torch.ones(2, 3), torch.ones(4, 3), torch.zeros(4)).shape
torch.Size([2, 4])
"""

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
    """Return ``input @ weight.T + bias``, like ``F.linear``, with a cheaper double backward.

    Args:
        input: (N, *, C_in) or (C_in,), float64, float32, bfloat16 or float16.
        weight: (C_out, C_in), same dtype and device; also (C_in,), like ``F.linear``.
        bias: (C_out,) or None, same dtype and device.

    Returns:
        (N, *, C_out) or (C_out,).

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not supported or not the input's.
        RuntimeError: wrong shape (from ``F.linear``), device or dtype.

    Notes:
        Derivatives: of any order, with ATen's matrix products. A backward pass computes only the gradients that it was
            called for: the first one of a gradient penalty skips the weight's gradient.
        Autocast: computes in the autocast dtype, like ``F.linear``.
        Backends: ATen's kernels on every device.
    """
    if checks.is_for_torch(OP, input, weight, bias):
        return F.linear(input, weight, bias)
    if backends.is_small(input, weight, bias) and per_sample.recording() is None:
        try:
            return F.linear(input, weight, bias)
        except (RuntimeError, TypeError):
            pass  # the checks below raise a clearer error
    checks.floating(OP, "input", input)
    checks.tensor(OP, "weight", weight)
    device = input.device.type
    if dispatch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        input, weight = (t if t.dtype == torch.float64 else t.to(dtype) for t in (input, weight))
        bias = bias if bias is None or bias.dtype == torch.float64 else bias.to(dtype)
    if dispatch.is_traced():
        return F.linear(input, weight, bias)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            checks.tensor(OP, name, value)
            checks.same_device(OP, name, value, "input", input)
            checks.dtype(OP, name, value, input.dtype)
    # F.linear raises on wrong shapes; some of the others broadcast.
    usual = input.dim() >= 2 and weight.dim() == 2 and input.size(-1) == weight.size(1)
    if not usual or (bias is not None and bias.shape != weight.shape[:1]):
        return F.linear(input, weight, bias)
    if not backends.uses_kernel(OP, device, input.dtype):
        return F.linear(input, weight, bias)
    rows = input.flatten(0, -2)
    output: Tensor = Convolution.apply(rows, weight, bias, _GEOMETRY, None)
    return output if input.dim() == 2 else output.view(*input.shape[:-1], output.size(1))
