"""Train a generator against a discriminator."""

from typing import TYPE_CHECKING

from gan_fast.train.config import TrainConfig

if TYPE_CHECKING:
    from gan_fast.train.loop import Trainer, TrainingDivergedError

__all__ = ["TrainConfig", "Trainer", "TrainingDivergedError"]


def __getattr__(name: str) -> object:
    # On first use: the command line reads options, which are in this package too, without loading torch.
    if name in ("Trainer", "TrainingDivergedError"):
        from gan_fast.train import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
