"""A training short enough for a test, long enough to learn the digits."""

import pytest
import torch

from gan_fast.data import load_images
from gan_fast.metrics import class_coverage
from gan_fast.models import DCGANDiscriminator, DCGANGenerator
from gan_fast.train import TrainConfig, Trainer


@pytest.fixture
def _one_thread():
    # Networks this small gain little from a second thread, and lose much where the cores are shared.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_digits_are_learnt():
    digits = load_images("digits", image_size=16)
    config = TrainConfig(steps=400, latent_dim=16, g_lr=1e-3, device="cpu")
    torch.manual_seed(0)
    trainer = Trainer(config, DCGANGenerator(16, 1, 16, 24), DCGANDiscriminator(1, 16, 24), digits)

    def coverage():
        return class_coverage(digits.images, digits.labels, trainer.sample(1000), digits.class_names)

    untrained = coverage()
    trainer.fit()
    trained = coverage()
    assert untrained.least_class_fraction == 0
    assert trained.least_class_fraction > 0.02
    assert trained.mean_top_probability > 0.77
    # The samples spread as real digits do, no less: not one good digit of each class over and over.
    assert trainer.sample(1000).std(0).mean() > 0.7 * (digits.images / 127.5 - 1).std(0).mean()
