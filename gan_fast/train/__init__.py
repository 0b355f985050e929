"""Train a generator against a discriminator.

>>> import torch
>>> from gan_fast.models import DCGANDiscriminator, DCGANGenerator
>>> from gan_fast.train import TrainConfig, Trainer
>>> config = TrainConfig(steps=2, batch_size=4, device="cpu")
>>> images = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8)
>>> generator = DCGANGenerator(latent_dim=8, channels=1, image_size=16, width=4)
>>> trainer = Trainer(config, generator, DCGANDiscriminator(channels=1, image_size=16, width=4), images)
>>> [row["step"] for row in trainer.fit()]
[2]
>>> trainer.sample(3).shape
torch.Size([3, 1, 16, 16])
"""

from typing import TYPE_CHECKING

from gan_fast.train.config import ConfigError, RunConfig, RunError, TrainConfig

if TYPE_CHECKING:
    from gan_fast.train.checkpoint import CheckpointError
    from gan_fast.train.loop import Trainer, TrainingDivergedError

__all__ = [
    "CheckpointError",
    "ConfigError",
    "RunConfig",
    "RunError",
    "TrainConfig",
    "Trainer",
    "TrainingDivergedError",
]


def __getattr__(name: str) -> object:
    # Imported on first use, because the command line reads its options from this package without loading torch.
    if name in ("Trainer", "TrainingDivergedError"):
        from gan_fast.train import loop

        return getattr(loop, name)
    if name == "CheckpointError":
        from gan_fast.train.checkpoint import CheckpointError

        return CheckpointError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
