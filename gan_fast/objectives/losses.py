"""The adversarial losses of both players, by the name that a configuration gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor

from gan_fast import ops
from gan_fast.choices import OBJECTIVES as NAMES
from gan_fast.ops.adversarial_loss import d_loss_and_means


class _Loss(NamedTuple):
    kind: str
    relation: str
    g_loss: Callable[..., Tensor]
    """Of the fake logits; a relativistic one of the real and the fake logits."""


_LOSSES = {
    "minimax": _Loss("bce", "none", partial(ops.minimax_g_loss, saturating=True)),
    "non_saturating": _Loss("bce", "none", ops.minimax_g_loss),
    "hinge": _Loss("hinge", "none", ops.hinge_g_loss),
    "wasserstein": _Loss("linear", "none", ops.wasserstein_g_loss),
    "least_squares": _Loss("squared", "none", ops.least_squares_g_loss),
    "relativistic": _Loss("bce", "paired", ops.relativistic_g_loss),
    "relativistic_average": _Loss("bce", "average", partial(ops.relativistic_g_loss, average=True)),
}


@dataclass(frozen=True)
class AdversarialLoss:
    """The losses of a game on logits.

    Args:
        name: one of ``NAMES``. "minimax" and "non_saturating" differ in G's loss: log(1 - D(G(z))), the game's own, or
            -log D(G(z)), whose gradient does not vanish while D is sure. "relativistic" pairs real and fake logits,
            "relativistic_average" holds each batch against the other's mean. gan_fast.ops has the formulas and papers.
        real_label: D's target for real images, in [0, 1]; below 1 is one-sided label smoothing.
        fake_label: D's target for generated images, in [0, 1]; pairs have none, and it must be 0.

    Raises:
        ValueError: a fake label beside pairs.
    """

    name: str = "non_saturating"
    real_label: float = 1.0
    fake_label: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in _LOSSES:
            raise ValueError(f"AdversarialLoss: expected name one of {', '.join(NAMES)}, got {self.name!r}")
        if _LOSSES[self.name].relation == "paired" and self.fake_label != 0:
            raise ValueError(
                f"AdversarialLoss: expected fake_label 0 for objective {self.name}, got {self.fake_label}; "
                "pairs have one target, real_label"
            )

    @property
    def g_needs_real(self) -> bool:
        """Whether G's loss is of D's logits for real images too."""
        return _LOSSES[self.name].relation != "none"

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return D's loss and, without gradient, (mean D(x), mean D(G(z)), accuracy).

        D(x) is sigmoid(logit) for "minimax" and "non_saturating", the logit itself for the others; accuracy is the
        share of images that D places rightly, as :func:`gan_fast.ops.adversarial_loss.d_loss_and_means` has it.
        """
        kind, relation, _ = _LOSSES[self.name]
        targets = {"real_target": self.real_label, "fake_target": self.fake_label}
        return d_loss_and_means(real_logits, fake_logits, kind=kind, relation=relation, **targets)

    def g_loss(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        """Return G's loss, which the labels of D do not touch; ``real_logits`` where ``g_needs_real``."""
        loss = _LOSSES[self.name]
        return loss.g_loss(real_logits, fake_logits) if self.g_needs_real else loss.g_loss(fake_logits)
