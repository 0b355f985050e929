"""Serve batches from a data set that lives on the training device."""

from __future__ import annotations

import math
from functools import lru_cache, partial

import numpy as np
import torch

from gan_fast.data.errors import require_int


class DeviceLoader:
    """Shuffled float batches of a uint8 data set, each a pure function of the seed and the step.

    There is no state to save: a run that resumes at step k asks for `batch(k)` and sees what it would have seen.
    Every epoch is a fresh permutation of all N images. Batches run on across epochs, so none is short, no image is
    dropped, and one batch may hold the end of one epoch and the start of the next.

    Args:
        images_uint8: uint8 (N, C, H, W), N >= batch_size; copied to `device` whole, not copied if already there.
        batch_size: Images in a batch, >= 1.
        seed: Of the permutations, >= 0; equal seeds give equal batches on every device.
        device: Where the images are kept and the batches are made.

    Attributes:
        steps_per_epoch: Steps after which every image was served at least once, ceil(N / batch_size).

    Raises:
        TypeError: An argument has the wrong type, or the images are not uint8.
        ValueError: The images are not 4-d, are fewer than `batch_size`, or a number is out of range.
    """

    def __init__(
        self, images_uint8: torch.Tensor, batch_size: int, *, seed: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        if not isinstance(images_uint8, torch.Tensor):
            raise TypeError(f"DeviceLoader: expected images type torch.Tensor, got {type(images_uint8).__name__}")
        if images_uint8.dtype != torch.uint8:
            raise TypeError(f"DeviceLoader: expected images dtype torch.uint8, got {images_uint8.dtype}")
        if images_uint8.dim() != 4:
            raise ValueError(f"DeviceLoader: expected images shape (N, C, H, W), got {tuple(images_uint8.shape)}")
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
        # Two: a batch needs at most two epochs. A partial of a function, not a method: a cache that refers back to
        # the loader would keep its images on the device until the garbage collector runs.
        self._permutation = lru_cache(maxsize=2)(partial(_permutation, len(self.images), seed, self.images.device))

    def batch(self, step: int) -> torch.Tensor:
        """Return the batch of a step: x / 127.5 - 1 of each image.

        Args:
            step: >= 0, in any order.

        Returns:
            float32 (batch_size, C, H, W) in [-1, 1] on the loader's device; a new tensor on every call.

        Raises:
            TypeError, ValueError: `step` is not an integer, or is negative.

        Notes:
            Does not synchronise host and device.
        """
        require_int("DeviceLoader.batch", "step", step, minimum=0)
        epoch, start = divmod(step * self.batch_size, len(self.images))
        indices = self._permutation(epoch)[start : start + self.batch_size]
        missing = self.batch_size - len(indices)
        if missing:
            indices = torch.cat((indices, self._permutation(epoch + 1)[:missing]))
        return self.images.index_select(0, indices).to(torch.float32).div_(127.5).sub_(1.0)


def _permutation(count: int, seed: int, device: torch.device, epoch: int) -> torch.Tensor:
    """Return the order of one epoch, made on the CPU so that it is the same on every device."""
    # SeedSequence hashes the pair; seed + epoch would make epoch 1 of seed 0 and epoch 0 of seed 1 the same order.
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(int(mixed[0])))
    return order.to(device, non_blocking=True)
