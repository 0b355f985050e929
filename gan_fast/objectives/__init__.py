"""What the two players minimise, by name."""

from gan_fast.choices import OBJECTIVES as NAMES
from gan_fast.choices import PENALTIES, REGULARIZERS
from gan_fast.objectives.losses import AdversarialLoss
from gan_fast.objectives.penalties import Penalties
from gan_fast.objectives.registry import Objective, make_objective
from gan_fast.objectives.regularizers import InstanceNoise, clip_weights
from gan_fast.objectives.two_player import DLoss, TwoPlayerLosses

__all__ = [
    "NAMES",
    "PENALTIES",
    "REGULARIZERS",
    "AdversarialLoss",
    "DLoss",
    "InstanceNoise",
    "Objective",
    "Penalties",
    "TwoPlayerLosses",
    "clip_weights",
    "make_objective",
]
