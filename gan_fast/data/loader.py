"""Draw shuffled batches from images that are kept on the training device.

>>> import torch
>>> from gan_fast.data import DeviceLoader
>>> images = torch.randint(0, 256, (100, 3, 32, 32), dtype=torch.uint8)
>>> loader = DeviceLoader(images, batch_size=16, seed=0)
>>> batch = loader.batch(0)
>>> batch.shape, batch.dtype, bool(batch.abs().max() <= 1)
(torch.Size([16, 3, 32, 32]), torch.float32, True)
>>> torch.equal(loader.batch(0), batch)  # a step always gives the same batch
True
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import numpy as np
import torch

from gan_fast.data.errors import require_int


class DeviceLoader:
    """Return shuffled float batches of uint8 images, each determined by the seed and the step alone.

    The whole data set is copied to the device once, and batches are made there. There is no state to save: a training
    that resumes at step k calls `batch(k)` and gets the batch that an uninterrupted training would get.

    Each epoch is a new permutation of all N images. Batches continue across epochs: all have `batch_size` images, no
    image is dropped, and one batch may hold the end of one epoch and the start of the next.

    Args:
        images_uint8: uint8 (N, C, H, W) with N at least `batch_size`. Not copied if already on `device`.
        batch_size: images in a batch, at least 1.
        seed: seed of the permutations, at least 0. Equal seeds give equal batches on every device.
        device: where the images are kept and the batches are made.

    Attributes:
        steps_per_epoch: steps in which every image is used at least once, ceil(N / batch_size).

    Raises:
        TypeError: an argument has the wrong type, or the images are not uint8.
        ValueError: the images do not have four dims or are fewer than `batch_size`, or a number is out of range.
    """

    def __init__(
        self, images_uint8: torch.Tensor, batch_size: int, *, seed: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        if not isinstance(images_uint8, torch.Tensor):
            raise TypeError(f"DeviceLoader: expected images_uint8 type torch.Tensor, got {type(images_uint8).__name__}")
        if images_uint8.dtype != torch.uint8:
            raise TypeError(
                "DeviceLoader: expected images_uint8 dtype torch.uint8, with values from 0 to 255, got "
                f"{images_uint8.dtype}; convert images in [-1, 1] with ((images + 1) * 127.5).round().to(torch.uint8)"
            )
        if images_uint8.dim() != 4:
            raise ValueError(f"DeviceLoader: expected images_uint8 shape (N, C, H, W), got {tuple(images_uint8.shape)}")
        require_int("DeviceLoader", "batch_size", batch_size, minimum=1)
        require_int("DeviceLoader", "seed", seed, minimum=0)
        if len(images_uint8) < batch_size:
            raise ValueError(
                f"DeviceLoader: expected at least batch_size = {batch_size} images, got {len(images_uint8)}; "
                "lower batch_size or add images"
            )
        self.images = images_uint8.to(device)
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = math.ceil(len(self.images) / batch_size)
        # A batch needs at most two epochs. The cache wraps a partial and not a method: a method would refer to the
        # loader, and that cycle would keep the images on the device until the garbage collector runs.
        self._permutation = lru_cache(maxsize=2)(partial(_permutation, len(self.images), seed, self.images.device))

    def batch(self, step: int) -> torch.Tensor:
        """Return the batch of a step, with pixels scaled as x / 127.5 - 1.

        Args:
            step: at least 0. Steps may be requested in any order.

        Returns:
            New float32 tensor (batch_size, C, H, W) in [-1, 1], on the loader's device.

        Raises:
            TypeError: `step` is not an integer.
            ValueError: `step` is negative.

        Notes:
            Does not synchronize host and device.
        """
        require_int("DeviceLoader.batch", "step", step, minimum=0)
        epoch, start = divmod(step * self.batch_size, len(self.images))
        indices = self._permutation(epoch)[start : start + self.batch_size]
        missing = self.batch_size - len(indices)
        if missing:
            indices = torch.cat((indices, self._permutation(epoch + 1)[:missing]))
        return self.images.index_select(0, indices).to(torch.float32).div_(127.5).sub_(1.0)


def _permutation(count: int, seed: int, device: torch.device, epoch: int) -> torch.Tensor:
    """Return the order of the images in an epoch, drawn on the CPU so that it is the same on every device."""
    # SeedSequence hashes the pair. With seed + epoch, epoch 1 of seed 0 would equal epoch 0 of seed 1.
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(int(mixed[0])))
    return order.to(device, non_blocking=True)
