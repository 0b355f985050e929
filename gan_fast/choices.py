"""The names that options accept. Imports only typing, so that the command line can read its options without torch."""

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
