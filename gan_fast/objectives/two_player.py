"""The complete losses of D and G: an objective, D's gradient penalties and G's feature matching.

>>> import torch
>>> from gan_fast.objectives import Penalties, TwoPlayerLosses, make_objective
>>> losses = TwoPlayerLosses(make_objective("wasserstein"), Penalties(("r1",)))
>>> critic = torch.nn.Linear(3, 1)
>>> losses.d_loss(critic, torch.randn(4, 3), torch.randn(4, 3)).total.shape
torch.Size([])
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gan_fast import ops
from gan_fast.objectives.penalties import Penalties
from gan_fast.objectives.registry import Objective


class DLoss(NamedTuple):
    """D's loss with penalties (``total``), and without gradient: the loss, the weighted penalty, the means to log."""

    total: Tensor
    loss: Tensor
    penalty: Tensor
    means: Tensor


@dataclass(frozen=True)
class TwoPlayerLosses:
    """The losses of both players on batches of images.

    Args:
        objective: the adversarial losses.
        penalties: the gradient penalties that are added to D's loss.
        feature_matching: weight of the feature matching term in G's loss, 0 for none. If it is not 0, D needs a
            method ``forward_with_features`` that returns logits and features.
    """

    objective: Objective
    penalties: Penalties = field(default_factory=Penalties)
    feature_matching: float = 0.0

    def d_loss(
        self,
        discriminator: nn.Module,
        real: Tensor,
        fake: Tensor,
        *,
        penalty_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> DLoss:
        """Return D's loss on real and generated images, with its penalties; ``fake`` gets no gradient.

        Args:
            penalty_scale: factor on the weight of the penalties; 0 skips them.
            generator: random number generator of the penalties.
        """
        fake, penalties = fake.detach(), self._penalties(penalty_scale)
        real_logits, terms = penalties.at_real(discriminator, real)
        fake_logits, more = penalties.at_fake(discriminator, fake)
        more += penalties.at_random_points(discriminator, real, fake, generator)
        return self._d_loss(real_logits, fake_logits, terms + more, penalty_scale)

    def g_loss(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Return G's loss on generated images; D sees ``real`` only if the loss depends on it."""
        real_logits = None
        if self.feature_matching:
            with torch.no_grad():
                real_logits, real_features = discriminator.forward_with_features(real)  # type: ignore[operator]
            logits, features = discriminator.forward_with_features(fake)  # type: ignore[operator]
            matching = self.feature_matching * ops.feature_matching_loss(real_features, features)
            return self._g_loss(logits, real_logits) + matching
        if self._g_needs_real:
            with torch.no_grad():
                real_logits = discriminator(real)
        return self._g_loss(discriminator(fake), real_logits)

    def losses(
        self,
        discriminator: nn.Module,
        real: Tensor,
        fake: Tensor,
        *,
        penalty_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[DLoss, Tensor]:
        """Return D's loss and G's loss from one shared pass of the generated images through D.

        Backward is to be called once, on the sum of both: D's parameters get the gradient of D's loss and ``fake`` that
        of G's. Arguments are those of :meth:`d_loss`, with ``fake`` attached to G's graph.

        Raises:
            ValueError: D couples the samples of a batch (batch norm does), or feature matching is on, which needs a
                separate pass through D.
        """
        if self.feature_matching:
            raise ValueError(f"TwoPlayerLosses.losses: expected feature_matching 0, got {self.feature_matching}")
        penalties = self._penalties(penalty_scale)
        real_logits, terms = penalties.at_real(discriminator, real)
        for_d, for_g = ops.logits_for_both_players(discriminator, fake)
        terms += penalties.at_random_points(discriminator, real, fake.detach(), generator)
        if "r2" in penalties.names:
            terms.append(ops.r2_penalty(discriminator, fake))
        d_loss = self._d_loss(real_logits, for_d, terms, penalty_scale)
        return d_loss, self._g_loss(for_g, real_logits.detach())

    @property
    def _g_needs_real(self) -> bool:
        return getattr(self.objective, "g_needs_real", False)

    def _g_loss(self, fake_logits: Tensor, real_logits: Tensor | None) -> Tensor:
        return (
            self.objective.g_loss(fake_logits, real_logits)
            if self._g_needs_real
            else self.objective.g_loss(fake_logits)
        )

    def _penalties(self, scale: float) -> Penalties:
        return self.penalties if scale else Penalties()

    def _d_loss(self, real_logits: Tensor, fake_logits: Tensor, terms: list[Tensor], scale: float) -> DLoss:
        loss, means = self.objective.d_loss(real_logits, fake_logits)
        if not terms:
            return DLoss(loss, loss.detach(), torch.zeros_like(loss), means)
        penalty = self.penalties.weight * scale * torch.stack(terms).sum()
        return DLoss(loss + penalty, loss.detach(), penalty.detach(), means)
