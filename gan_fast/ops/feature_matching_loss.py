"""Feature matching: the distance between the mean features of real and of generated samples."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_fast.ops import checks, dispatch

OP = "feature_matching_loss"


def feature_matching_loss(real_features: Tensor, fake_features: Tensor) -> Tensor:
    """Return the mean squared difference between the mean features of two batches.

    loss = sum((mean_n real_features - mean_n fake_features)^2) / number of features,
    ||E f(x) - E f(G(z))||_2^2 divided by the number of features, so that its weight does not depend on the layer.

    Args:
        real_features: D's features of real samples, (N, *features), float64, float32, bfloat16 or float16.
        fake_features: D's features of generated samples, (M, *features), same dtype and device; M need not be N.

    Returns:
        Scalar tensor of the features' dtype; float32 under autocast.

    Raises:
        TypeError: wrong type or dtype, or two dtypes.
        ValueError: no batch, two shapes of features, or two devices.

    Notes:
        Derivatives: of any order, by both arguments where they require it. G's step wants ``real_features`` without a
            gradient: take them under ``torch.no_grad()``.
        Accumulation: float32 for the half types.
        No samples or no features: NaN, a mean over nothing, as in torch.
        Backends: plain ATen on every device.

    Source: Salimans et al., Improved Techniques for Training GANs, 2016 (arXiv 1606.03498), section 3.1.
    """
    for name, features in (("real_features", real_features), ("fake_features", fake_features)):
        checks.floating(OP, name, features)
        if features.dim() < 2:
            raise ValueError(f"{OP}: expected {name} dimensions at least 2 (N, ...), got shape {tuple(features.shape)}")
    checks.same_device(OP, "fake_features", fake_features, "real_features", real_features)
    if fake_features.dtype != real_features.dtype:
        have, want = checks.name_of(fake_features.dtype), checks.name_of(real_features.dtype)
        raise TypeError(f"{OP}: expected fake_features dtype {want} as real_features, got {have}")
    checks.shape(OP, "fake_features", fake_features, (fake_features.size(0), *real_features.shape[1:]))
    compute = torch.float64 if real_features.dtype == torch.float64 else torch.float32
    difference = real_features.mean(0, dtype=compute) - fake_features.mean(0, dtype=compute)
    loss = difference.square().mean()
    return loss if dispatch.is_autocast_enabled(real_features.device.type) else loss.to(real_features.dtype)
