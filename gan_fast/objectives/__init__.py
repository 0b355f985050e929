"""What the two players minimise, by name."""

from gan_fast.objectives.minimax import Minimax
from gan_fast.objectives.registry import NAMES, Objective, make_objective

__all__ = ["NAMES", "Minimax", "Objective", "make_objective"]
