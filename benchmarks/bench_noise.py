"""Random changes of images, forward. On a CPU the random generator takes most of the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.harness import COMPILED, EAGER, GAN_FAST, TUNED, Case, Work, compiled, default_device
from gan_fast import ops

SHAPE = (32, 3, 64, 64)
# On a CPU all providers draw the same numbers in the same order; on a GPU gan_fast draws others.
TOLERANCE = 1e-6 if default_device().type == "cpu" else 2.0


def interpolate(real: Tensor, fake: Tensor) -> Tensor:
    u = torch.rand(len(real), 1, 1, 1, device=real.device)
    return real + u * (fake - real)


def interpolate_tuned(real: Tensor, fake: Tensor) -> Tensor:
    return torch.lerp(real, fake, torch.rand(len(real), 1, 1, 1, device=real.device))


def perturb(real: Tensor, fake: Tensor) -> Tensor:
    u = torch.rand(len(real), 1, 1, 1, device=real.device)
    return real + u * 0.5 * real.std() * torch.rand_like(real)


def perturb_tuned(real: Tensor, fake: Tensor) -> Tensor:
    u = torch.rand(len(real), 1, 1, 1, device=real.device)
    return torch.addcmul(real, torch.rand_like(real), u.mul_(0.5 * real.std()))


def add_noise(real: Tensor, fake: Tensor) -> Tensor:
    return real + 0.1 * torch.randn_like(real)


def add_noise_tuned(real: Tensor, fake: Tensor) -> Tensor:
    return torch.add(real, torch.randn_like(real), alpha=0.1)


OPS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], ...]] = {
    "interpolate": (interpolate, interpolate_tuned, ops.interpolate_samples),
    "perturb": (perturb, perturb_tuned, lambda real, fake: ops.perturb(real)),
    "add_noise": (add_noise, add_noise_tuned, lambda real, fake: ops.add_noise(real, 0.1)),
}


@pytest.mark.parametrize("op", OPS)
def bench_noise(compare: Callable[[Case], None], op: str) -> None:
    """Tuned by hand: one ATen op (lerp, addcmul or add) instead of several.

    torch.compile draws with ATen's generator (``fallback_random``), or its results could not be compared.
    """
    device = default_device()
    torch.manual_seed(0)
    real, fake = torch.randn(2, *SHAPE, device=device)
    eager, tuned, gan_fast = OPS[op]

    def work(function: Callable[[Tensor, Tensor], Tensor]) -> Work:
        return lambda: {"output": function(real, fake)}

    functions = {
        EAGER: eager,
        TUNED: tuned,
        COMPILED: compiled(eager, options={"fallback_random": True}),
        GAN_FAST: gan_fast,
    }
    title = f"{op} forward ({'x'.join(map(str, SHAPE))}) float32"
    compare(Case(title, {provider: work(function) for provider, function in functions.items()}, TOLERANCE, device))
