"""Feature matching: the distance between the mean features of real and generated samples.

>>> import torch
>>> from gan_fast import ops
>>> real_features, fake_features = torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([[1.0, 5.0]])
>>> ops.feature_matching_loss(real_features, fake_features, reduction="none")
tensor([1., 9.])
>>> ops.feature_matching_loss(real_features, fake_features)
tensor(5.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from gan_fast.ops import checks, dispatch
from gan_fast.ops.adversarial_loss import REDUCTIONS, reduce

OP = "feature_matching_loss"


def feature_matching_loss(real_features: Tensor, fake_features: Tensor, *, reduction: str = "mean") -> Tensor:
    """Return the mean squared difference between the mean features of two batches.

    loss = mean over features of (mean_n real_features - mean_n fake_features)^2, that is ||E f(x) - E f(G(z))||_2^2
    divided by the number of features, so that its weight does not depend on the layer.

    Args:
        real_features: D's features of real samples, (N, *features), float64, float32, bfloat16 or float16.
        fake_features: D's features of generated samples, (M, *features), of the same dtype and device.
        reduction: "mean" over the features, "sum" (the paper's squared norm) or "none" (one value per feature).

    Returns:
        Scalar, or for "none" a tensor of shape ``features``, in the features' dtype (float32 under autocast).

    Raises:
        TypeError: a wrong type or dtype, or two dtypes.
        ValueError: no batch dimension, two shapes of features, two devices, or an unknown reduction.

    Notes:
        Derivatives: of any order, with respect to both arguments. For G's step compute ``real_features`` under
            ``torch.no_grad()``.
        Accumulation: float32 for the half types.
        No samples or, for "mean", no features: NaN, a mean over nothing, as in torch.
        Backends: ATen on every device.

    Source: Salimans et al., Improved Techniques for Training GANs, 2016 (arXiv 1606.03498), section 3.1.
    """
    checks.one_of(OP, "reduction", reduction, REDUCTIONS)
    for name, features in (("real_features", real_features), ("fake_features", fake_features)):
        checks.floating(OP, name, features)
        if features.dim() < 2:
            raise ValueError(f"{OP}: expected {name} dimensions at least 2 (N, ...), got shape {tuple(features.shape)}")
    checks.same_device(OP, "fake_features", fake_features, "real_features", real_features)
    if fake_features.dtype != real_features.dtype:
        have, want = checks.name_of(fake_features.dtype), checks.name_of(real_features.dtype)
        raise TypeError(f"{OP}: expected fake_features dtype {want} to match real_features, got {have}")
    checks.shape(OP, "fake_features", fake_features, (fake_features.size(0), *real_features.shape[1:]))
    compute = torch.float64 if real_features.dtype == torch.float64 else torch.float32
    difference = real_features.mean(0, dtype=compute) - fake_features.mean(0, dtype=compute)
    loss = reduce(difference.square(), reduction)
    return loss if dispatch.is_autocast_enabled(real_features.device.type) else loss.to(real_features.dtype)
