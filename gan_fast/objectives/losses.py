"""The adversarial losses of both players, by name.

>>> import torch
>>> from gan_fast.objectives import AdversarialLoss
>>> loss = AdversarialLoss("relativistic", real_label=0.9)
>>> round(loss.g_loss(torch.tensor([0.5, -1.0]), real_logits=torch.tensor([1.0, 0.0])).item(), 3)
1.144
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor

from gan_fast import choices, ops
from gan_fast.choices import OBJECTIVES as NAMES
from gan_fast.ops.adversarial_loss import d_loss_and_means


class _Loss(NamedTuple):
    kind: str
    relativistic: str
    g_loss: Callable[..., Tensor]
    """Takes the fake logits; a relativistic one takes the real logits and then the fake ones."""


_LOSSES = {
    "minimax": _Loss("minimax", "none", partial(ops.minimax_g_loss, saturating=True)),
    "non_saturating": _Loss("minimax", "none", ops.minimax_g_loss),
    "hinge": _Loss("hinge", "none", ops.hinge_g_loss),
    "wasserstein": _Loss("wasserstein", "none", ops.wasserstein_g_loss),
    "least_squares": _Loss("least_squares", "none", ops.least_squares_g_loss),
    "relativistic": _Loss("minimax", "paired", ops.relativistic_g_loss),
    "relativistic_average": _Loss("minimax", "average", partial(ops.relativistic_g_loss, average=True)),
}


@dataclass(frozen=True)
class AdversarialLoss:
    """The losses of D and G as functions of D's logits.

    Args:
        name: one of ``NAMES``. "minimax" and "non_saturating" differ in G's loss: log(1 - D(G(z))), that of the minimax
            game, or -log D(G(z)), whose gradient does not vanish while D rejects the samples with confidence.
            "relativistic" compares real and fake logits in pairs, "relativistic_average" compares each logit with the
            mean of the other batch. The functions in :mod:`gan_fast.ops` give the formulas and papers.
        real_label: D's target for real images, from 0 to 1; below 1 is one-sided label smoothing.
        fake_label: D's target for generated images, from 0 to 1; must be 0 for "relativistic".

    Raises:
        ValueError: an unknown name, or a fake_label other than 0 for "relativistic".
    """

    name: str = "non_saturating"
    real_label: float = 1.0
    fake_label: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in _LOSSES:
            raise ValueError(f"AdversarialLoss: expected name one of {', '.join(NAMES)}, got {self.name!r}")
        if _LOSSES[self.name].relativistic == "paired":
            choices.check_paired_target("AdversarialLoss", "fake_label", self.fake_label, "real_label")

    @property
    def g_needs_real(self) -> bool:
        """Whether G's loss also depends on D's logits for real images."""
        return _LOSSES[self.name].relativistic != "none"

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return D's loss and, without gradient, (mean D(x), mean D(G(z)), accuracy).

        D(x) is sigmoid(logit) for "minimax" and "non_saturating" and the logit itself for the others. Accuracy is the
        share of images that D classifies correctly; docs/runs.md gives the threshold of each loss.
        """
        kind, relativistic, _ = _LOSSES[self.name]
        targets = {"real_target": self.real_label, "fake_target": self.fake_label}
        return d_loss_and_means(real_logits, fake_logits, kind=kind, relativistic=relativistic, **targets)

    def g_loss(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        """Return G's loss; ``real_logits`` are required if ``g_needs_real``. D's labels do not affect it."""
        loss = _LOSSES[self.name]
        return loss.g_loss(real_logits, fake_logits) if self.g_needs_real else loss.g_loss(fake_logits)
