"""What the two players minimise, by name."""

from gan_fast.objectives.losses import NAMES, AdversarialLoss
from gan_fast.objectives.registry import Objective, make_objective

__all__ = ["NAMES", "AdversarialLoss", "Objective", "make_objective"]
