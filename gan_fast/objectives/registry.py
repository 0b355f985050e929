"""The objectives by the name that a configuration gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import Tensor

from gan_fast.objectives.minimax import Minimax


class Objective(Protocol):
    """What a training step asks of an objective."""

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return D's scalar loss and, without gradient, two means to log: of D on real and on generated images."""
        ...

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        """Return G's scalar loss."""
        ...


_MAKERS: dict[str, Callable[[float, float], Objective]] = {
    "minimax": partial(Minimax, True),
    "non_saturating": partial(Minimax, False),
}
NAMES = tuple(_MAKERS)


def make_objective(name: str, *, real_label: float = 1.0, fake_label: float = 0.0) -> Objective:
    """Make the objective called ``name``.

    Args:
        name: one of ``NAMES``.
        real_label: D's target for real images, in [0, 1].
        fake_label: D's target for generated images, in [0, 1].

    Raises:
        ValueError: another name; the message lists the names there are.
    """
    if name not in _MAKERS:
        raise ValueError(f"make_objective: expected name one of {', '.join(NAMES)}, got {name!r}")
    return _MAKERS[name](real_label, fake_label)
