"""One DCGAN training iteration: an update of the discriminator D and one of the generator G."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness import COMPILED, EAGER, GAN_FAST, TUNED, Case, Work, compiled, default_device
from benchmarks.networks import LATENT_DIM, Pair, eager_critic, eager_models
from benchmarks.providers import LAYOUTS, in_layouts
from benchmarks.steps import example_loop, same_latents, tuned
from gan_fast.models import DCGANDiscriminator, DCGANGenerator
from gan_fast.train import TrainConfig, Trainer

# Applies to the losses of the first iteration. G's loss follows D's first Adam step, which moves each weight by about
# the sign of its gradient: where that is near 0, two correct computations can move the weight in opposite directions.
TOLERANCE = 1e-3


def trainer(models: Pair, real: Tensor, results: tuple[str, ...], **options: Any) -> Work:
    """Return Trainer.step, which also averages G's weights and checks for NaN."""
    made = Trainer(TrainConfig(batch_size=len(real), precision="fp32", **options), *models, None)
    # Draw the same latents in each call, as the other providers do, so that losses can be compared.
    made.generator.register_forward_pre_hook(lambda module, args: made.latent_rng.manual_seed(0) and None)

    def work() -> dict[str, Tensor]:
        losses = made.step(real)
        return {name: losses[name] for name in results}

    return work


def run(
    compare: Callable[[Case], None], name: str, image_size: int, channels: int, batch_size: int, norm: str = "batch"
) -> None:
    """Measure an iteration; without norm gan_fast updates both players from one pass (``one_stage``)."""
    device = default_device()
    torch.manual_seed(0)
    width = 64
    sizes = {"channels": channels, "image_size": image_size, "width": width}
    weights = DCGANGenerator(LATENT_DIM, **sizes), DCGANDiscriminator(**sizes, norm=norm)
    real = torch.rand(batch_size, channels, image_size, image_size, device=device) * 2 - 1
    draw = same_latents(batch_size, device)
    one_stage = norm == "none"
    # In the one-stage update G's loss is from before D's update.
    results = ("d_loss",) if one_stage else ("d_loss", "g_loss")

    def with_weights(models: Pair, layout: torch.memory_format) -> Pair:
        for model, source in zip(models, weights):
            for parameter, value in zip(model.parameters(), source.parameters(), strict=True):
                parameter.data.copy_(value)
        generator, discriminator = (model.to(device, memory_format=layout) for model in models)
        return generator, discriminator

    def eager(layout: torch.memory_format, inplace: bool = True) -> Pair:
        generator, discriminator = eager_models(image_size, channels, width, inplace)
        if one_stage:
            discriminator = eager_critic(image_size, channels, width, inplace)
        return with_weights((generator, discriminator), layout)

    def images(layout: torch.memory_format) -> Tensor:
        return real.contiguous(memory_format=layout)

    def chosen(work: Work) -> Work:
        return lambda: {key: value for key, value in work().items() if key in results}

    def gan_fast(layout: torch.memory_format, **options: Any) -> Work:
        models = DCGANGenerator(LATENT_DIM, **sizes), DCGANDiscriminator(**sizes, norm=norm)
        return trainer(with_weights(models, layout), images(layout), results, **options)

    providers = {
        EAGER: {
            f"{layout_name}{', in place' * inplace}{', one loss of D' * one_d_loss}": chosen(
                example_loop(eager(layout, inplace), images(layout), draw, one_d_loss)
            )
            for layout_name, layout in LAYOUTS.items()
            for inplace, one_d_loss in ((True, False), (True, True), (False, True))
        },
        TUNED: in_layouts(lambda layout: chosen(tuned(eager(layout), images(layout), draw))),
        COMPILED: chosen(
            tuned(eager(torch.channels_last, inplace=False), images(torch.channels_last), draw, wrap=compiled)
        ),
        GAN_FAST: in_layouts(gan_fast),
    }
    if one_stage:
        providers[GAN_FAST] = in_layouts(lambda layout: gan_fast(layout, update="one_stage"))
        providers[f"{GAN_FAST}, alternating"] = in_layouts(lambda layout: gan_fast(layout, update="alternating"))
    compare(Case(name, providers, TOLERANCE, device))


@pytest.mark.parametrize(
    ("image_size", "channels", "batch_size"), [(16, 1, 64), (64, 3, 32)], ids=["digits-16px", "dcgan-64px"]
)
def bench_iteration(compare: Callable[[Case], None], image_size: int, channels: int, batch_size: int) -> None:
    """The loop of PyTorch's DCGAN example against Trainer.step.

    Eager: activations in place or not, a backward pass for each of D's losses or one for both. Tuned by hand: fused
    Adam, gradients reset to None, one backward pass for D, no gradients of D's weights in G's update, activations in
    place, contiguous or channels-last. torch.compile: the forward functions of the tuned loop, channels-last.
    """
    name = f"DCGAN iteration {image_size} px, {channels} channels, width 64, batch {batch_size} float32"
    run(compare, name, image_size, channels, batch_size)


def bench_one_stage(compare: Callable[[Case], None]) -> None:
    """Trainer's update of both players from one pass through D, against updates one after the other.

    Two algorithms with the same loss of D. Eager, tuned by hand and torch.compile alternate, as in bench_iteration.
    """
    run(compare, "one-stage DCGAN iteration, 64 px, batch 16, no norm in D, float32", 64, 3, 16, norm="none")
