"""Combinations of objectives, penalties, regularizers and update orders, against plain autograd."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gan_fast import ops
from gan_fast.models import DCGANDiscriminator
from gan_fast.train import TrainConfig, Trainer
from tests.train.players import LATENT_DIM, assert_same_state, make_images, make_players

REAL = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2 - 1


class Critic(nn.Module):
    """A critic that keeps samples apart, and returns features."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 8, 2), nn.LeakyReLU(0.2))
        self.last = nn.Linear(72, 1)

    def forward_with_features(self, images):
        features = self.body(images)
        return self.last(features.flatten(1)).flatten(), features

    def forward(self, images):
        return self.forward_with_features(images)[0]


def make_trainer(**options):
    generator, _ = make_players()
    torch.manual_seed(3)
    options = {"latent_dim": LATENT_DIM, "batch_size": 6, "device": "cpu", "precision": "fp32", **options}
    return Trainer(TrainConfig(**options), generator, Critic().double(), make_images())


def d_loss_of(objective, real, fake):
    return {
        "minimax": lambda: F.softplus(-real).mean() + F.softplus(fake).mean(),
        "non_saturating": lambda: F.softplus(-real).mean() + F.softplus(fake).mean(),
        "hinge": lambda: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
        "wasserstein": lambda: fake.mean() - real.mean(),
        "least_squares": lambda: (real - 1).square().mean() / 2 + fake.square().mean() / 2,
        "relativistic": lambda: F.softplus(fake - real).mean(),
        "relativistic_average": lambda: F.softplus(fake.mean() - real).mean() + F.softplus(fake - real.mean()).mean(),
    }[objective]()


def g_loss_of(objective, real, fake):
    return {
        "minimax": lambda: -F.softplus(fake).mean(),
        "non_saturating": lambda: F.softplus(-fake).mean(),
        "hinge": lambda: -fake.mean(),
        "wasserstein": lambda: -fake.mean(),
        "least_squares": lambda: (fake - 1).square().mean() / 2,
        "relativistic": lambda: F.softplus(real - fake).mean(),
        "relativistic_average": lambda: F.softplus(real.mean() - fake).mean() + F.softplus(real - fake.mean()).mean(),
    }[objective]()


def penalty_of(name, critic, real, fake, rng):
    points = {
        "gradient_penalty": lambda: ops.interpolate_samples(real, fake, generator=rng),
        "dragan": lambda: ops.perturb(real, generator=rng),
        "r1": lambda: real,
        "r2": lambda: fake,
    }[name]()
    points = points.detach().requires_grad_()
    (grad,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    norms = grad.flatten(1).norm(dim=1)
    return (norms - 1).square().mean() if name in ("gradient_penalty", "dragan") else norms.square().mean() / 2


class PlainTraining:
    """The same training, written with plain autograd and unfused Adam."""

    def __init__(self, trainer):
        self.config = trainer.config
        self.generator, self.critic = copy.deepcopy(trainer.generator), copy.deepcopy(trainer.discriminator)
        self.rng = torch.Generator().manual_seed(self.config.seed)
        self.d_adam, self.g_adam = (
            torch.optim.Adam(m.parameters(), 2e-4, (0.5, 0.999)) for m in (self.critic, self.generator)
        )
        self.updates = 0

    def step(self, real):
        config = self.config
        for _ in range(config.d_steps):
            z = torch.randn(len(real), LATENT_DIM, generator=self.rng, dtype=torch.float64)
            fake = self.generator(z)
            loss = d_loss_of(config.objective, self.critic(real), self.critic(fake.detach()))
            if self.updates % config.penalty_every == 0:
                weight = config.penalty_weight * config.penalty_every
                for name in config.penalty:
                    loss = loss + weight * penalty_of(name, self.critic, real, fake.detach(), self.rng)
            d_grads = torch.autograd.grad(loss, list(self.critic.parameters()))
            if config.update == "alternating":
                self.update(self.d_adam, self.critic, d_grads)
            self.updates += 1
        g_loss = g_loss_of(config.objective, self.critic(real).detach(), self.critic(fake))
        self.update(self.g_adam, self.generator, torch.autograd.grad(g_loss, list(self.generator.parameters())))
        if config.update == "one_stage":
            self.update(self.d_adam, self.critic, d_grads)
        return loss, g_loss

    def update(self, adam, module, grads):
        for p, grad in zip(module.parameters(), grads):
            p.grad = grad
        adam.step()


CASES = [
    *({"objective": name} for name in ("minimax", "hinge", "wasserstein", "least_squares")),
    *({"objective": name, "update": "one_stage"} for name in ("non_saturating", "hinge", "relativistic")),
    {"objective": "wasserstein", "penalty": "gradient_penalty", "d_steps": 3},
    {"objective": "non_saturating", "penalty": "dragan"},
    {"objective": "non_saturating", "penalty": "r1", "d_steps": 2, "penalty_every": 3},
    {"objective": "relativistic", "penalty": ("r1", "r2"), "penalty_weight": 2.0},
    {"objective": "relativistic_average", "penalty": ("gradient_penalty", "r1"), "penalty_every": 2},
    {
        "objective": "non_saturating",
        "penalty": ("r1", "r2", "gradient_penalty"),
        "update": "one_stage",
        "penalty_every": 3,
    },
]


@pytest.mark.parametrize("options", CASES, ids=lambda options: " ".join(map(str, options.values())))
def test_steps_equal_plain_autograd(options):
    trainer = make_trainer(**options)
    plain = PlainTraining(trainer)
    for _ in range(4):
        results = trainer.step(REAL)
        loss, g_loss = plain.step(REAL)
        torch.testing.assert_close(results["d_loss"] + results["penalty"], loss, check_dtype=False)
        torch.testing.assert_close(results["g_loss"], g_loss, check_dtype=False)
    for have, want in ((trainer.generator, plain.generator), (trainer.discriminator, plain.critic)):
        for a, b in zip(have.parameters(), want.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_penalty_is_logged_only_in_updates_that_have_it():
    trainer = make_trainer(penalty="r1", penalty_every=4)
    has_penalty = [trainer.step(REAL)["penalty"].item() > 0 for _ in range(9)]
    assert has_penalty == [i % 4 == 0 for i in range(9)]


def test_weights_are_clipped():
    trainer = make_trainer(objective="wasserstein", regularizers=("weight_clipping",), clip_value=0.03, d_steps=2)
    trainer.step(REAL)
    largest = [p.abs().max().item() for p in trainer.discriminator.parameters()]
    assert max(largest) == 0.03


def test_instance_noise_is_added_to_all_images_and_decays_to_zero():
    trainer = make_trainer(regularizers=("instance_noise",), noise_std=0.5, noise_steps=4, steps=100)
    seen = []
    trainer.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    stds = []
    for _ in range(5):
        seen.clear()
        trainer.step(REAL)
        noise, fake_twice = seen[0] - REAL, seen[1] - seen[2]
        stds.append(noise.std().item())
        # G's step draws new noise for the same images.
        assert abs(fake_twice.std().item() / 2**0.5 - stds[-1]) < 0.1 * stds[0]
    expected = torch.tensor([0.5, 0.375, 0.25, 0.125, 0.0])
    torch.testing.assert_close(torch.tensor(stds), expected, rtol=0.15, atol=0)


def test_feature_matching_is_added_to_the_generator_loss():
    plain, matched = make_trainer(), make_trainer(regularizers=("feature_matching",), feature_weight=3.0)
    for trainer in (plain, matched):
        # D stays fixed, so that both generators have the same one.
        for group in trainer.d_optimizer.param_groups:
            group["lr"] = 0.0
    fake = plain.generator(torch.randn(6, LATENT_DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    features = [plain.discriminator.forward_with_features(images)[1].mean(0) for images in (REAL, fake)]
    term = 3.0 * (features[0] - features[1]).square().mean()
    difference = matched.step(REAL)["g_loss"] - plain.step(REAL)["g_loss"]
    torch.testing.assert_close(difference, term, check_dtype=False)
    with pytest.raises(ValueError, match=r"expected discriminator with a method forward_with_features"):
        Trainer(TrainConfig(regularizers=("feature_matching",), latent_dim=LATENT_DIM), *make_players())


def test_spectral_norm_of_each_discriminator_layer_is_one():
    trainer = make_trainer(regularizers=("spectral_norm",), objective="least_squares", penalty="gradient_penalty")
    for _ in range(30):
        trainer.step(REAL)
    names = set(trainer.discriminator.state_dict())
    assert "last.parametrizations.weight.original" in names
    for layer in (trainer.discriminator.body[0], trainer.discriminator.body[2], trainer.discriminator.last):
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert 0.9 < largest < 1.1


ALL = {
    "objective": "relativistic", "penalty": ("gradient_penalty", "dragan", "r1", "r2"), "penalty_every": 2,
    "d_steps": 2, "regularizers": ("spectral_norm", "weight_clipping", "feature_matching", "instance_noise"),
    "clip_value": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("options", [ALL, {"update": "one_stage", "penalty": "r1", "penalty_every": 3}])
def test_resumed_training_equals_an_uninterrupted_one(options):
    whole, first = make_trainer(**options), make_trainer(**options)
    for _ in range(5):
        whole.step(REAL)
    for _ in range(2):
        first.step(REAL)
    second = make_trainer(**options)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(3):
        second.step(REAL)
    assert_same_state(whole.state_dict(), second.state_dict())


def test_one_stage_refuses_a_discriminator_that_couples_samples():
    generator, critic = make_players()
    config = TrainConfig(update="one_stage", latent_dim=LATENT_DIM, device="cpu")
    with pytest.raises(ValueError, match="expected discriminator without batch norm for update 'one_stage'"):
        Trainer(config, generator, critic)
    critic[3] = nn.GroupNorm(2, 8).double()
    with pytest.raises(ValueError, match="the shared pass does not support group norm"):
        Trainer(config, generator, critic).step(REAL)


def test_bfloat16_training_works_with_every_penalty():
    torch.manual_seed(0)
    generator, _ = make_players(torch.float32)
    upsample = nn.Sequential(nn.Upsample(scale_factor=2), DCGANDiscriminator(1, 16, 8, "none"))
    config = TrainConfig(
        latent_dim=LATENT_DIM, precision="bf16", penalty=("gradient_penalty", "dragan", "r1", "r2"), device="cpu"
    )
    trainer = Trainer(config, generator, upsample)
    for _ in range(3):
        results = trainer.step(REAL.float())
    assert all(value.isfinite() for value in results.values())
    assert results["skipped"] == 0
    assert all(p.dtype == torch.float32 for p in upsample.parameters())
