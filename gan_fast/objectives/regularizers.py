"""Regularizers that act on D's images and weights.

Of the other names in ``REGULARIZERS``, "spectral_norm" is :func:`gan_fast.nn.spectral_norm` and "feature_matching" is a
term of :class:`gan_fast.objectives.TwoPlayerLosses`.

>>> from gan_fast.objectives import InstanceNoise
>>> [InstanceNoise(std=0.1, steps=100).std_at(step) for step in (0, 50, 100)]
[0.1, 0.05, 0.0]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InstanceNoise:
    """Standard deviation of Gaussian noise on all images that D sees, std (1 - step / steps), and 0 from ``steps`` on.

    Args:
        std: standard deviation at step 0, for images in [-1, 1].
        steps: number of steps until the noise is gone.

    Source: Sonderby et al., 2016 (arXiv 1610.04490), section 4; Arjovsky and Bottou, 2017 (arXiv 1701.04862).
    """

    std: float
    steps: int

    def std_at(self, step: int) -> float:
        """Return the standard deviation at ``step``, counted from 0."""
        return self.std * max(0.0, 1.0 - step / self.steps)


@torch.no_grad()
def clip_weights(parameters: list[Tensor], value: float) -> None:
    """Clip parameters to [-value, value] in place.

    Source: Arjovsky, Chintala and Bottou, Wasserstein GAN, 2017 (arXiv 1701.07875), algorithm 1.
    """
    torch._foreach_clamp_min_(parameters, -value)
    torch._foreach_clamp_max_(parameters, value)
