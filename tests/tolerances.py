"""The one table of tolerances: how far a result may be from float64's."""

from __future__ import annotations

import torch
from torch import Tensor

# Where eager happens to be exact the bound falls back on this many roundings of the largest value in the result; for
# float64 eager stands for the truth, and what counts is how inputs of a mean 100 times their spread magnify roundings.
_ROUNDINGS = {torch.float64: 4096, torch.float32: 3, torch.bfloat16: 1, torch.float16: 1}


def assert_as_exact(
    ours: Tensor, eager: Tensor, exact: Tensor, what: str, factor: float = 2.0, cancelled: float = 0.0
) -> None:
    """Assert ours is at most ``factor`` times as far from ``exact`` (float64) as eager is, element by maximum.

    Where inputs are drawn a result may be a single number that eager got right by luck: a larger factor there, which
    the roundings below are scaled by as well. ``cancelled`` is the size of the terms of a sum that may leave next to
    nothing: it counts as a value of the result's.

    NaN and infinity must stand where eager has them, but for eager's own overflows: there ours may be right.
    """
    assert ours.dtype == eager.dtype, f"{what}: dtype {ours.dtype}, eager {eager.dtype}"
    assert ours.shape == eager.shape, f"{what}: shape {tuple(ours.shape)}, eager {tuple(eager.shape)}"
    if not ours.numel():
        return
    dtype, ours, eager, exact = ours.dtype, ours.double(), eager.double(), exact.double()
    in_range = exact.abs() <= torch.finfo(dtype).max
    overflowed = ~eager.isfinite() & in_range
    same = (ours == eager) | (ours.isnan() & eager.isnan())
    allowed = torch.where(eager.isfinite() | overflowed, ours.isfinite() | (same & overflowed), same)
    assert bool(allowed.all()), f"{what}: NaN or infinity not where eager has it"
    compared = ours.isfinite() & exact.isfinite()
    if not compared.any():
        return
    by_eager = compared & eager.isfinite()
    if not by_eager.any():
        return  # eager overflowed everywhere: nothing to measure by
    eager_error = (eager - exact)[by_eager].abs().max().item()
    our_error = (ours - exact)[compared].abs().max().item()
    largest = max(exact[compared].abs().max().item(), cancelled)
    if dtype == torch.float64:
        largest = max(largest, 1.0)  # what the tests' values are made of, where a result is their cancellation
    floor = _ROUNDINGS[dtype] * torch.finfo(dtype).eps * largest / 2 + torch.finfo(dtype).tiny
    bound = factor * max(eager_error, floor / 2)
    assert our_error <= bound, f"{what}: error {our_error:.3g}, eager {eager_error:.3g}, bound {bound:.3g}"


def few_numbers_factor(result: Tensor) -> float:
    """The factor where inputs are drawn, or of a chain of ops: of a few numbers that cancel eager may get all right."""
    return 4.0 if result.numel() >= 8 else 16.0
