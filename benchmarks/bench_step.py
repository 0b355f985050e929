"""One DCGAN training iteration, an update of the discriminator D and one of the generator G."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.harness import OURS, Case, Work, default_device
from benchmarks.networks import LATENT_DIM, Pair, eager_models
from benchmarks.steps import classic, same_latents, tuned
from gan_fast import ops
from gan_fast.models import DCGANDiscriminator, DCGANGenerator
from gan_fast.train import TrainConfig, Trainer

# image_size, channels, width, batch_size: scikit-learn's digits, and the paper's network.
SIZES = ((16, 1, 64, 64), (64, 3, 64, 32))
# The losses of the first iteration. G's comes after an Adam step of D, which is near to the sign of the gradient:
# where that is near 0, two correct gradients can move a weight to opposite sides.
TOLERANCE = 1e-3


def trainer(models: Pair, real: Tensor, results: tuple[str, ...] = ("d_loss", "g_loss"), **options: Any) -> Work:
    """Trainer.step: beside the updates it averages G and guards against NaN."""
    made = Trainer(TrainConfig(batch_size=len(real), precision="fp32", **options), *models, None)
    # The same latents at each call, as the other providers have them: else losses could not be compared.
    made.generator.register_forward_pre_hook(lambda module, args: made.latent_rng.manual_seed(0) and None)

    def work() -> dict[str, Tensor]:
        losses = made.step(real)
        return {name: losses[name] for name in results}

    return work


@pytest.mark.parametrize(
    ("image_size", "channels", "width", "batch_size"), SIZES, ids=[f"{size[0]}px" for size in SIZES]
)
def bench_iteration(
    compare: Callable[[Case], None], image_size: int, channels: int, width: int, batch_size: int
) -> None:
    device = default_device()
    torch.manual_seed(0)
    sizes = {"channels": channels, "image_size": image_size, "width": width}
    weights = DCGANGenerator(LATENT_DIM, **sizes), DCGANDiscriminator(**sizes)
    real = torch.rand(batch_size, channels, image_size, image_size, device=device) * 2 - 1

    def with_weights(*models: nn.Module) -> Pair:
        for model, source in zip(models, weights):
            for parameter, value in zip(model.parameters(), source.parameters(), strict=True):
                parameter.data.copy_(value)
        generator, discriminator = (model.to(device) for model in models)
        return generator, discriminator

    def eager() -> Pair:
        return with_weights(*eager_models(image_size, channels, width))

    def ours() -> Pair:
        return with_weights(DCGANGenerator(LATENT_DIM, **sizes), DCGANDiscriminator(**sizes))

    draw = same_latents(batch_size, device)
    channels_last = tuple(model.to(memory_format=torch.channels_last) for model in eager())
    providers = {
        "eager": classic(eager(), real, draw),
        "eager tuned": tuned(eager(), real, draw),
        "eager tuned, channels_last": tuned(channels_last, real.contiguous(memory_format=torch.channels_last), draw),
        "eager tuned, our modules": tuned(ours(), real, draw, ops.minimax_d_loss, ops.minimax_g_loss),
        OURS: trainer(ours(), real),
    }
    name = f"DCGAN iteration {image_size} px, {channels} channels, width {width}, batch {batch_size} float32"
    compare(Case(name, providers, TOLERANCE, device))


def bench_one_stage(compare: Callable[[Case], None]) -> None:
    """Both players from one pass through D, against our own alternating step: other algorithms, equal in D's loss."""
    device = default_device()
    torch.manual_seed(0)
    real = torch.rand(32, 3, 64, 64, device=device) * 2 - 1

    def provider(update: str) -> Work:
        torch.manual_seed(0)
        models = DCGANGenerator(LATENT_DIM), DCGANDiscriminator(norm="none")
        return trainer(models, real, ("d_loss",), update=update)

    providers = {f"{OURS}, alternating": provider("alternating"), OURS: provider("one_stage")}
    name = "one-stage DCGAN iteration against our alternating one, 64 px, batch 32, no norm in D, float32"
    compare(Case(name, providers, TOLERANCE, device))
