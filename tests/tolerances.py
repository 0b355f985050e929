"""The one table of tolerances: how far a result may be from float64's."""

from __future__ import annotations

import torch
from torch import Tensor

# Where eager happens to be exact the bound falls back on this many roundings of the largest value in the result; for
# float64 eager stands for the truth, and what counts is how inputs of a mean 100 times their spread magnify roundings.
_ROUNDINGS = {torch.float64: 4096, torch.float32: 3, torch.bfloat16: 1, torch.float16: 1}


def assert_as_exact(ours: Tensor, eager: Tensor, exact: Tensor, what: str, factor: float = 2.0) -> None:
    """Assert ours is at most ``factor`` times as far from ``exact`` (float64) as eager is, element by maximum.

    NaN and infinity must stand where eager has them.
    """
    assert ours.dtype == eager.dtype, f"{what}: dtype {ours.dtype}, eager {eager.dtype}"
    assert ours.shape == eager.shape, f"{what}: shape {tuple(ours.shape)}, eager {tuple(eager.shape)}"
    if not ours.numel():
        return
    ours, dtype, eager, exact = ours.double(), ours.dtype, eager.double(), exact.double()
    finite = eager.isfinite()
    same = (ours == eager) | (ours.isnan() & eager.isnan())
    assert bool(torch.where(finite, ours.isfinite(), same).all()), f"{what}: NaN or infinity not where eager has it"
    if not finite.any():
        return
    eager_error = (eager - exact)[finite].abs().max().item()
    our_error = (ours - exact)[finite].abs().max().item()
    largest = exact[finite & exact.isfinite()].abs().max().item() if (finite & exact.isfinite()).any() else 0.0
    floor = _ROUNDINGS[dtype] * torch.finfo(dtype).eps * largest / 2 + torch.finfo(dtype).tiny
    bound = max(factor * eager_error, floor)
    assert our_error <= bound, f"{what}: error {our_error:.3g}, eager {eager_error:.3g}, bound {bound:.3g}"
