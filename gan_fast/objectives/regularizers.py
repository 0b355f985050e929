"""What else keeps the game in balance, by the names that a configuration gives.

"spectral_norm" is :func:`gan_fast.nn.spectral_norm`, "feature_matching" a term of
:class:`gan_fast.objectives.TwoPlayerLosses`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InstanceNoise:
    """Gaussian noise on all images that D sees: of standard deviation std (1 - t / steps) at step t from 0, then none.

    Args:
        std: at the first step, on images in [-1, 1].
        steps: until it is gone.

    Source: Sonderby et al., 2016 (arXiv 1610.04490), section 4; Arjovsky and Bottou, 2017 (arXiv 1701.04862).
    """

    std: float
    steps: int

    def std_at(self, step: int) -> float:
        return self.std * max(0.0, 1.0 - step / self.steps)


@torch.no_grad()
def clip_weights(parameters: list[Tensor], value: float) -> None:
    """Clip parameters to [-value, value] in place.

    Source: Arjovsky, Chintala and Bottou, Wasserstein GAN, 2017 (arXiv 1701.07875), algorithm 1.
    """
    torch._foreach_clamp_min_(parameters, -value)
    torch._foreach_clamp_max_(parameters, value)
