"""What the two players minimise, put together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gan_fast import ops
from gan_fast.objectives.penalties import Penalties
from gan_fast.objectives.registry import Objective


class DLoss(NamedTuple):
    """What D minimises, and its parts and means to log, without gradient."""

    total: Tensor
    loss: Tensor
    penalty: Tensor
    means: Tensor


@dataclass(frozen=True)
class TwoPlayerLosses:
    """An objective, the penalties that D pays beside it, and what G is asked for besides.

    Args:
        objective: the losses.
        penalties: of D.
        feature_matching: weight of G's squared distance between the mean features of real and of generated images; D
            has a method ``forward_with_features`` then. 0 leaves it out.
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
        """Return D's loss on real and on generated images, whose graph is not followed, and its penalties.

        Args:
            penalty_scale: times the penalties' weight; 0 leaves them out.
            generator: of the penalties' random numbers.
        """
        fake, penalties = fake.detach(), self._penalties(penalty_scale)
        real_logits, terms = penalties.of_real(discriminator, real)
        fake_logits, more = penalties.of_fake(discriminator, fake)
        more += penalties.elsewhere(discriminator, real, fake, generator)
        return self._d_loss(real_logits, fake_logits, terms + more, penalty_scale)

    def g_loss(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """Return G's loss on generated images; real ones are looked at where it takes them."""
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
        """Return D's losses as :meth:`d_loss`, and G's, for one backward pass of both on their sum.

        Raises:
            ValueError: D couples the samples of a batch; features are to be matched, which takes a pass of G's own.
        """
        if self.feature_matching:
            raise ValueError(f"TwoPlayerLosses.losses: expected feature_matching 0, got {self.feature_matching}")
        penalties = self._penalties(penalty_scale)
        real_logits, terms = penalties.of_real(discriminator, real)
        for_d, for_g = ops.logits_for_both(discriminator, fake)
        terms += penalties.elsewhere(discriminator, real, fake.detach(), generator)
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
