"""The minimax game, with the generator's original loss or the non-saturating one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gan_fast.ops import minimax_d_loss_and_means, minimax_g_loss


@dataclass(frozen=True)
class Minimax:
    """The losses of the minimax game on logits; D(x) = sigmoid(logit).

    Args:
        saturating: G minimises log(1 - D(G(z))), the game's own loss; False: -log D(G(z)), whose gradient does not
            vanish while D is sure.
        real_label: D's target for real images, in [0, 1]; below 1 is one-sided label smoothing.
        fake_label: D's target for generated images, in [0, 1].

    Source: Goodfellow et al., Generative Adversarial Nets, 2014 (arXiv 1406.2661), equation 1 and section 3.
    """

    saturating: bool = False
    real_label: float = 1.0
    fake_label: float = 0.0

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return D's loss and, without gradient, (mean D(x), mean D(G(z))).

        At labels 1 and 0 the loss is -(mean log D(x) + mean log(1 - D(G(z)))), so that minimising it ascends the game.
        """
        return minimax_d_loss_and_means(
            real_logits, fake_logits, real_target=self.real_label, fake_target=self.fake_label
        )

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        """Return G's loss, which the labels of D do not touch."""
        return minimax_g_loss(fake_logits, saturating=self.saturating)
