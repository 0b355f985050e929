"""The names that options accept. Must not import torch: the command line reads its options here."""

from collections.abc import Callable
from typing import Literal, get_args

Objective = Literal[
    "minimax",
    "non_saturating",
    "hinge",
    "wasserstein",
    "least_squares",
    "relativistic",
    "relativistic_average",
]
Penalty = Literal["gradient_penalty", "dragan", "r1", "r2"]
PenaltyOrNone = Literal["none", Penalty]
Regularizer = Literal["spectral_norm", "weight_clipping", "feature_matching", "instance_noise"]
Update = Literal["alternating", "one_stage"]
Precision = Literal["fp32", "bf16", "auto"]
CudaGraph = Literal["auto", "on", "off"]
ImageSize = Literal[16, 32, 64, 128]
Channels = Literal[1, 3]
Norm = Literal["batch", "none"]
BadFiles = Literal["raise", "skip"]

OBJECTIVES = get_args(Objective)
PENALTIES = get_args(Penalty)
REGULARIZERS = get_args(Regularizer)
IMAGE_SIZES = get_args(ImageSize)
NORMS = get_args(Norm)
# An activation's position is its code in the kernels: csrc/common/activation.h lists them in this order.
ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "sigmoid")


def _error(owner: str, argument: str, want: str, have: object) -> ValueError:
    return ValueError(f"{owner}: expected {argument} {want}, got {have!r}")


def check_paired_target(
    owner: str,
    argument: str,
    value: float,
    real_argument: str,
    error: Callable[[str, str, str, object], ValueError] = _error,
) -> None:
    """Check that a loss of logit pairs gets no target for generated images.

    Raises:
        ValueError: ``value`` is not 0; ``error`` makes it from owner, argument, and what is expected and given.
    """
    if value != 0:
        raise error(owner, argument, f"0 for a relativistic loss, which uses only {real_argument}", value)
