"""Short trainings that learn the digits."""

import copy

import pytest
import torch

from benchmarks.networks import eager_critic, eager_models
from gan_fast import use_backend
from gan_fast.data import DeviceLoader, load_images
from gan_fast.metrics import class_coverage
from gan_fast.models import DCGANDiscriminator, DCGANGenerator
from gan_fast.train import TrainConfig, Trainer


@pytest.fixture
def _one_thread():
    # Networks this small gain little from a second thread, and lose much if other programs use the cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_generator_learns_all_digits():
    digits = load_images("digits", image_size=16)
    config = TrainConfig(steps=200, latent_dim=16, g_lr=2e-3, d_lr=5e-4, device="cpu")
    torch.manual_seed(0)
    trainer = Trainer(config, DCGANGenerator(16, 1, 16, 16), DCGANDiscriminator(1, 16, 16), digits)

    def coverage():
        return class_coverage(digits.images, digits.labels, trainer.sample(1000), digits.class_names)

    untrained = coverage()
    trainer.fit()
    trained = coverage()
    assert untrained.least_class_fraction == 0
    assert trained.least_class_fraction > 0.02
    assert trained.mean_top_probability > 0.76
    # Samples vary about as much as real digits: the generator has not collapsed to one image of each class.
    assert trainer.sample(1000).std(0).mean() > 0.7 * (digits.images / 127.5 - 1).std(0).mean()


def eager_losses(models, dtype, loader, steps):
    """Return the losses of the alternating algorithm with R1, on torch.nn, autograd and torch's Adam."""
    generator, critic = (copy.deepcopy(model).to(dtype) for model in models)
    d_adam, g_adam = (torch.optim.Adam(m.parameters(), 2e-4, (0.5, 0.999)) for m in (critic, generator))
    rng = torch.Generator().manual_seed(0)
    bce, losses = torch.nn.functional.binary_cross_entropy_with_logits, []
    for step in range(steps):
        real = loader.batch(step).to(dtype)
        z = torch.randn(len(real), 100, generator=rng)[:, :, None, None].to(dtype)
        fake = generator(z)
        points = real.clone().requires_grad_()
        logits = critic(points)
        (grad,) = torch.autograd.grad(logits.sum(), points, create_graph=True)
        fake_logits = critic(fake.detach())
        d_loss = bce(logits, torch.ones_like(logits)) + bce(fake_logits, torch.zeros_like(fake_logits))
        d_adam.zero_grad()
        (d_loss + grad.square().sum(dim=(1, 2, 3)).mean() / 2).backward()
        d_adam.step()
        fake_logits = critic(fake)
        g_loss = bce(fake_logits, torch.ones_like(fake_logits))
        g_adam.zero_grad()
        g_loss.backward()
        g_adam.step()
        losses.append(torch.stack((d_loss.detach(), g_loss.detach())).double())
    return torch.stack(losses)


@pytest.mark.usefixtures("_one_thread")
def test_losses_of_fused_ops_are_as_accurate_as_eager_ones():
    """Over 50 steps, in which rounding errors grow, fused ops stay as close to float64 as eager float32 does."""
    digits = load_images("digits", image_size=16)
    # With this seed no value comes near the kink of a rectifier, where one rounding changes the curve of eager too.
    torch.manual_seed(2)
    generator, critic = eager_models(16, 1, 8)[0], eager_critic(16, 1, 8)
    loader = DeviceLoader(digits.images, 32, seed=2, device="cpu")
    config = TrainConfig(batch_size=32, penalty="r1", penalty_weight=1.0, precision="fp32", device="cpu")
    fused = DCGANGenerator(100, 1, 16, 8), DCGANDiscriminator(1, 16, 8, "none")
    for model, source in zip(fused, (generator, critic)):
        for parameter, value in zip(model.parameters(), source.parameters(), strict=True):
            parameter.data.copy_(value)
    exact, eager = (eager_losses((generator, critic), dtype, loader, 50) for dtype in (torch.float64, torch.float32))
    with use_backend("cpu"):
        trainer = Trainer(config, *fused)
        results = [trainer.step(loader.batch(step)) for step in range(50)]
    losses = torch.stack([torch.stack((r["d_loss"], r["g_loss"])).double() for r in results])
    assert exact[0, 0] - exact[-1, 0] > 0.05
    error, eager_error = ((curve - exact).abs().amax(1) for curve in (losses, eager))
    assert error[:10].max() < 1e-5
    assert error.max() < 10 * eager_error.max() + 1e-6
