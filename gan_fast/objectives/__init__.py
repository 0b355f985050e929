"""What the discriminator D and the generator G minimize, selected by name.

>>> import torch
>>> from gan_fast import objectives
>>> hinge = objectives.make_objective("hinge")
>>> loss, means = hinge.d_loss(torch.tensor([2.0, -1.0]), torch.tensor([-3.0, 0.5]))
>>> loss.item(), means.tolist()  # means: D on real and on generated samples, accuracy
(1.75, [0.5, -1.25, 0.5])
>>> hinge.g_loss(torch.tensor([-3.0, 0.5])).item()
1.25
"""

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
