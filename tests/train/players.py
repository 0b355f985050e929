"""Small networks of plain torch.nn, and images for them."""

import torch
from torch import nn

from gan_fast.train import TrainConfig, Trainer

LATENT_DIM = 5
REAL = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


def make_players(dtype=torch.float64, seed=0):
    """Return a generator and a discriminator of 1 x 8 x 8 images, both with batch norm."""
    torch.manual_seed(seed)
    generator = nn.Sequential(
        nn.Unflatten(1, (LATENT_DIM, 1, 1)),
        nn.ConvTranspose2d(LATENT_DIM, 8, 4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 4, 2, 1),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(1, 6, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(6, 8, 2),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 1, 3),
        nn.Flatten(0),
    )
    return generator.to(dtype), discriminator.to(dtype)


def make_images(count=40):
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def make_trainer(data=True, dtype=torch.float32, **options):
    options = {"latent_dim": LATENT_DIM, "batch_size": 8, "device": "cpu", **options}
    return Trainer(TrainConfig(**options), *make_players(dtype), make_images() if data else None)


class NaNObjective:
    """An objective whose losses are NaN."""

    g_needs_real = False

    def __init__(self, objective):
        self.objective = objective

    def d_loss(self, real, fake):
        loss, means = self.objective.d_loss(real, fake)
        return loss * float("nan"), means

    def g_loss(self, fake, real=None):
        return self.objective.g_loss(fake) * float("nan")


def assert_same_state(a, b):
    """Assert that nested dicts of tensors are equal to the last bit, where NaN equals NaN."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_state(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    else:
        assert a == b
