"""Load a trained generator and draw samples from it.

>>> import tempfile
>>> from pathlib import Path
>>> import gan_fast
>>> from gan_fast.train.checkpoint import save_generator
>>> model = {"latent_dim": 8, "channels": 1, "image_size": 16, "width": 4}
>>> with tempfile.TemporaryDirectory() as run:
...     # gan-fast train writes this file.
...     save_generator(Path(run, "generator_ema.safetensors"), gan_fast.models.DCGANGenerator(**model), model)
...     images = gan_fast.load(run).sample(4, seed=1)
>>> images.shape
torch.Size([4, 1, 16, 16])
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor

from gan_fast.models import DCGANGenerator
from gan_fast.train.checkpoint import load_generator
from gan_fast.train.loop import draw_latents, generate, usable_device


class TrainedGenerator:
    """A generator with trained weights, in evaluation mode; returned by :func:`load`.

    Attributes:
        generator: the module; maps latents (N, latent_dim) to images (N, C, H, W) in [-1, 1].
        path: the file that the weights were read from.
    """

    def __init__(self, generator: DCGANGenerator, path: Path) -> None:
        self.generator, self.path = generator, path

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{name}={getattr(self.generator, name)}" for name in ("image_size", "channels", "latent_dim")
        )
        return f"TrainedGenerator({sizes}, path={os.fspath(self.path)!r})"

    def sample(self, n: int, *, label: int | None = None, seed: int = 0, truncation: float = 1.0) -> Tensor:
        """Draw images G(truncation * z) with z ~ N(0, I).

        Args:
            n: number of images, at least 1.
            label: must be None; the generators that gan_fast trains today have no classes.
            seed: seed of the latents, in [0, 2**63).
            truncation: finite factor of the latent vectors. Below 1, images are more typical and less varied; at 0, all
                are the image at the center of the latent space.

        Returns:
            float32 (n, C, H, W) in [-1, 1], on the generator's device, without gradient.

        Raises:
            TypeError, ValueError: an argument has the wrong type or is out of its range.

        Notes:
            Latents are drawn on the CPU, so that a seed gives the same latents on every device. Equal calls give
            bit-identical images on a CPU.
        """
        for name, value in (("n", n), ("seed", seed)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"sample: expected {name} type int, got {type(value).__name__}")
        if not isinstance(truncation, (int, float)) or isinstance(truncation, bool):
            raise TypeError(f"sample: expected truncation type float, got {type(truncation).__name__}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"sample: expected seed at least 0 and below 2**63, got {seed}")
        if not math.isfinite(truncation):
            raise ValueError(f"sample: expected truncation a finite number, got {truncation}")
        if label is not None:
            raise ValueError(f"sample: expected label None, because this generator has no classes, got {label!r}")
        z = draw_latents(n, self.generator.latent_dim, seed)
        device = next(self.generator.parameters()).device
        # In float32 under autocast too.
        return generate(self.generator, truncation * z.to(device)).float()


def load(run: str | os.PathLike[str], *, ema: bool = True, device: str | torch.device = "cpu") -> TrainedGenerator:
    """Load the generator of a run.

    Args:
        run: the folder of a run, or a generator's .safetensors file.
        ema: load the averaged generator, which usually draws better images; False: the last one. Ignored if ``run`` is
            a file.
        device: where to put the generator.

    Raises:
        ValueError: there is no generator at ``run``, the file is of another kind, or the device is not available.
        CheckpointError: the file is damaged or was not written by gan_fast.
    """
    path = generator_path(run, ema=ema)
    found = usable_device(device, lambda want, have: ValueError(f"load: expected device one of {want}, got {have}"))
    return TrainedGenerator(load_generator(path).to(found), path)


def generator_path(run: str | os.PathLike[str], *, ema: bool = True) -> Path:
    """Return the path of a run's generator file, or ``run`` if it is a file."""
    if not isinstance(run, (str, os.PathLike)):
        raise TypeError(f"load: expected run type str or Path, got {type(run).__name__}")
    given = path = Path(run)
    want = "load: expected run to be the folder of a run or a generator's .safetensors file"
    if path.is_dir():
        path = path / ("generator_ema.safetensors" if ema else "generator.safetensors")
        if not path.exists():
            reason = "the run has not saved a checkpoint yet" if (given / "config.json").exists() else "it holds no run"
            raise ValueError(f"{want}, got the folder {given} without {path.name}; {reason}")
    elif not path.exists():
        raise ValueError(f"{want}, got {given}, which does not exist")
    elif path.suffix != ".safetensors":
        kind = "a training checkpoint; give its folder instead" if path.suffix == ".pt" else "a file of another kind"
        raise ValueError(f"{want}, got {given}, {kind}")
    return path
