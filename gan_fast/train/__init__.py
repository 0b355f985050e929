"""Train a generator against a discriminator."""

from gan_fast.train.config import TrainConfig
from gan_fast.train.loop import Trainer, TrainingDivergedError

__all__ = ["TrainConfig", "Trainer", "TrainingDivergedError"]
