"""What the two players minimise, by name."""

from gan_fast.objectives.game import DLoss, Game
from gan_fast.objectives.losses import NAMES, AdversarialLoss
from gan_fast.objectives.penalties import PENALTIES, Penalties, parse_penalties
from gan_fast.objectives.registry import Objective, make_objective
from gan_fast.objectives.regularizers import REGULARIZERS, InstanceNoise, clip_weights

__all__ = [
    "NAMES",
    "PENALTIES",
    "REGULARIZERS",
    "AdversarialLoss",
    "DLoss",
    "Game",
    "InstanceNoise",
    "Objective",
    "Penalties",
    "clip_weights",
    "make_objective",
    "parse_penalties",
]
