"""One DCGAN training iteration, an update of the discriminator D and one of the generator G."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import OURS, Case, Work, default_device
from benchmarks.networks import LATENT_DIM, Pair, eager_models
from gan_fast import ops
from gan_fast.models import DCGANDiscriminator, DCGANGenerator
from gan_fast.train import TrainConfig, Trainer

# image_size, channels, width, batch_size: scikit-learn's digits, and the paper's network.
SIZES = ((16, 1, 64, 64), (64, 3, 64, 32))
# The losses of the first iteration. G's comes after an Adam step of D, which is near to the sign of the gradient:
# where that is near 0, two correct gradients can move a weight to opposite sides.
TOLERANCE = 1e-3
ADAM = {"lr": 2e-4, "betas": (0.5, 0.999)}


def latents(batch_size: int, device: torch.device) -> Callable[[], Tensor]:
    """Draw the same latents at each call, at the full cost of a draw: losses of all providers stay comparable."""
    rng = torch.Generator(device)
    return lambda: torch.randn(batch_size, LATENT_DIM, 1, 1, generator=rng.manual_seed(0), device=device)


def d_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    bce = F.binary_cross_entropy_with_logits
    return bce(real_logits, torch.ones_like(real_logits)) + bce(fake_logits, torch.zeros_like(fake_logits))


def classic(models: Pair, real: Tensor) -> Work:
    """The loop of PyTorch's DCGAN example: two backward passes for D, whose images then serve G again."""
    generator, discriminator = models
    criterion = nn.BCEWithLogitsLoss()
    d_adam = torch.optim.Adam(discriminator.parameters(), **ADAM)
    g_adam = torch.optim.Adam(generator.parameters(), **ADAM)
    draw = latents(len(real), real.device)
    label = torch.empty(len(real), device=real.device)

    def work() -> dict[str, Tensor]:
        d_adam.zero_grad()
        real_loss = criterion(discriminator(real), label.fill_(1))
        real_loss.backward()
        fake = generator(draw())
        fake_loss = criterion(discriminator(fake.detach()), label.fill_(0))
        fake_loss.backward()
        d_adam.step()
        g_adam.zero_grad()
        g_loss = criterion(discriminator(fake), label.fill_(1))
        g_loss.backward()
        g_adam.step()
        return {"d_loss": (real_loss + fake_loss).detach(), "g_loss": g_loss.detach()}

    return work


def tuned(
    models: Pair,
    real: Tensor,
    d_loss: Callable[[Tensor, Tensor], Tensor] = d_loss,
    g_loss: Callable[[Tensor], Tensor] = lambda fake: F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake)),
) -> Work:
    """The same by hand: fused Adam, one backward pass for D, no weight gradients of D in G's step."""
    generator, discriminator = models
    d_adam = torch.optim.Adam(discriminator.parameters(), **ADAM, fused=True)
    g_adam = torch.optim.Adam(generator.parameters(), **ADAM, fused=True)
    draw = latents(len(real), real.device)

    def work() -> dict[str, Tensor]:
        fake = generator(draw())
        loss = d_loss(discriminator(real), discriminator(fake.detach()))
        d_adam.zero_grad()
        loss.backward()
        d_adam.step()
        discriminator.requires_grad_(False)
        answer = g_loss(discriminator(fake))
        g_adam.zero_grad()
        answer.backward()
        discriminator.requires_grad_(True)
        g_adam.step()
        return {"d_loss": loss.detach(), "g_loss": answer.detach()}

    return work


def trainer(models: Pair, real: Tensor) -> Work:
    """Trainer.step: beside the updates it averages G and guards against NaN."""
    made = Trainer(TrainConfig(batch_size=len(real), precision="fp32"), *models, None)
    # The same latents at each call, as the other providers have them: else losses could not be compared.
    made.generator.register_forward_pre_hook(lambda module, args: made.latent_rng.manual_seed(0) and None)

    def work() -> dict[str, Tensor]:
        losses = made.step(real)
        return {name: losses[name] for name in ("d_loss", "g_loss")}

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

    channels_last = tuple(model.to(memory_format=torch.channels_last) for model in eager())
    providers = {
        "eager": classic(eager(), real),
        "eager tuned": tuned(eager(), real),
        "eager tuned, channels_last": tuned(channels_last, real.contiguous(memory_format=torch.channels_last)),
        "eager tuned, our modules": tuned(ours(), real, ops.minimax_d_loss, ops.minimax_g_loss),
        OURS: trainer(ours(), real),
    }
    name = f"DCGAN iteration {image_size} px, {channels} channels, width {width}, batch {batch_size} float32"
    compare(Case(name, providers, TOLERANCE, device))
