"""The tolerance that every test of a kernel uses: a multiple of eager PyTorch's own error against float64."""

from __future__ import annotations

import torch
from torch import Tensor

# Where eager happens to be exact, the bound is this many roundings of the largest value in the result. For float64 the
# reference is eager itself; there, inputs whose mean is 100 times their spread magnify roundings.
_ROUNDINGS = {torch.float64: 4096, torch.float32: 3, torch.bfloat16: 1, torch.float16: 1}


def assert_as_exact(
    actual: Tensor, eager: Tensor, exact: Tensor, what: str, factor: float = 2.0, cancelled: float = 0.0
) -> None:
    """Assert that ``actual`` is at most ``factor`` times as far from ``exact`` (float64) as ``eager`` is.

    Errors are compared by their maximum over all elements. NaN and infinity are expected exactly where eager has them,
    except where eager overflows and the exact value fits into the dtype: there ``actual`` may be finite.

    Args:
        actual: the result under test.
        eager: the result of plain PyTorch in the same dtype.
        exact: the result of plain PyTorch in float64.
        what: the name of the result in the error message.
        factor: use a larger one for random inputs: eager may get a result of few numbers exactly right by luck.
        cancelled: the size of the terms of a sum that nearly cancel; it counts as a value of the result.
    """
    assert actual.dtype == eager.dtype, f"{what}: dtype {actual.dtype}, eager {eager.dtype}"
    assert actual.shape == eager.shape, f"{what}: shape {tuple(actual.shape)}, eager {tuple(eager.shape)}"
    if not actual.numel():
        return
    dtype, actual, eager, exact = actual.dtype, actual.double(), eager.double(), exact.double()
    in_range = exact.abs() <= torch.finfo(dtype).max
    overflowed = ~eager.isfinite() & in_range
    same = (actual == eager) | (actual.isnan() & eager.isnan())
    allowed = torch.where(eager.isfinite() | overflowed, actual.isfinite() | (same & overflowed), same)
    assert bool(allowed.all()), f"{what}: NaN or infinity not where eager has it"
    compared = actual.isfinite() & exact.isfinite()
    if not compared.any():
        return
    comparable = compared & eager.isfinite()
    if not comparable.any():
        return  # eager overflowed everywhere, so its error is no measure
    eager_error = (eager - exact)[comparable].abs().max().item()
    error = (actual - exact)[compared].abs().max().item()
    largest = max(exact[compared].abs().max().item(), cancelled)
    if dtype == torch.float64:
        largest = max(largest, 1.0)  # the inputs are of size 1, and a result may be their cancellation
    floor = _ROUNDINGS[dtype] * torch.finfo(dtype).eps * largest / 2 + torch.finfo(dtype).tiny
    bound = factor * max(eager_error, floor / 2)
    assert error <= bound, f"{what}: error {error:.3g}, eager {eager_error:.3g}, bound {bound:.3g}"


def few_numbers_factor(result: Tensor) -> float:
    """Return the factor for random inputs or a chain of ops: eager may get a few numbers exactly right by luck."""
    return 4.0 if result.numel() >= 8 else 16.0
