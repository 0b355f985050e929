"""Each objective equals its published formula, written in plain torch."""

import pytest
import torch
from torch.nn.functional import softplus

from gan_fast import objectives, ops
from gan_fast.train import TrainConfig

REAL, FAKE = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([-3.0, 0.25, 1.0, 0.0])


@pytest.mark.parametrize(
    ("name", "g_loss"),
    [("minimax", lambda p: (1 - p).log().mean()), ("non_saturating", lambda p: -p.log().mean())],
)
def test_minimax_losses_equal_the_formulas(name, g_loss):
    objective = objectives.make_objective(name)
    loss, means = objective.d_loss(REAL, FAKE)
    d_x, d_gz = REAL.sigmoid(), FAKE.sigmoid()
    torch.testing.assert_close(loss, -(d_x.log().mean() + (1 - d_gz).log().mean()))
    accuracy = torch.cat((d_x > 0.5, d_gz < 0.5)).float().mean()
    torch.testing.assert_close(means, torch.stack((d_x.mean(), d_gz.mean(), accuracy)))
    torch.testing.assert_close(objective.g_loss(FAKE), g_loss(d_gz))


def test_labels_affect_only_the_discriminator_loss():
    smoothed = objectives.make_objective("non_saturating", real_label=0.9, fake_label=0.1)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    want = bce(REAL, torch.full_like(REAL, 0.9)) + bce(FAKE, torch.full_like(FAKE, 0.1))
    torch.testing.assert_close(smoothed.d_loss(REAL, FAKE)[0], want)
    torch.testing.assert_close(smoothed.g_loss(FAKE), objectives.make_objective("non_saturating").g_loss(FAKE))


relu, square = torch.relu, torch.square
PAIRED = FAKE[:3]


@pytest.mark.parametrize(
    ("name", "fake", "d_loss", "g_loss"),
    [
        ("hinge", FAKE, lambda r, f: relu(1 - r).mean() + relu(1 + f).mean(), lambda r, f: -f.mean()),
        ("wasserstein", FAKE, lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean()),
        (
            "least_squares",
            FAKE,
            lambda r, f: (square(r - 1).mean() + square(f).mean()) / 2,
            lambda r, f: square(f - 1).mean() / 2,
        ),
        ("relativistic", PAIRED, lambda r, f: softplus(f - r).mean(), lambda r, f: softplus(r - f).mean()),
        (
            "relativistic_average",
            FAKE,
            lambda r, f: softplus(f.mean() - r).mean() + softplus(f - r.mean()).mean(),
            lambda r, f: softplus(r.mean() - f).mean() + softplus(r - f.mean()).mean(),
        ),
    ],
)
def test_losses_equal_the_published_formulas(name, fake, d_loss, g_loss):
    objective = objectives.make_objective(name)
    assert objective.g_needs_real == name.startswith("relativistic")
    loss, means = objective.d_loss(REAL, fake)
    torch.testing.assert_close(loss, d_loss(REAL, fake))
    torch.testing.assert_close(means[:2], torch.stack((REAL.mean(), fake.mean())))
    torch.testing.assert_close(objective.g_loss(fake, REAL), g_loss(REAL, fake))


def test_relativistic_rejects_fake_label():
    objectives.make_objective("relativistic", real_label=0.9)
    objectives.make_objective("relativistic_average", fake_label=0.1)
    message = "expected fake_label 0 for a relativistic loss, which uses only real_label, got 0.1"
    with pytest.raises(ValueError, match=f"^AdversarialLoss: {message}$"):
        objectives.make_objective("relativistic", fake_label=0.1)
    with pytest.raises(ValueError, match=f"^TrainConfig: {message}$"):
        TrainConfig(objective="relativistic", fake_label=0.1)


def test_unknown_name_lists_the_valid_ones():
    names = "minimax, non_saturating, hinge, wasserstein, least_squares, relativistic, relativistic_average"
    with pytest.raises(ValueError, match=f"^make_objective: expected name one of {names}, got 'wgan'$"):
        objectives.make_objective("wgan")


def test_relativistic_least_squares_pulls_differences_to_plus_and_minus_one():
    """RaLSGAN (Jolicoeur-Martineau 2018, appendix), with the factor 1/2 of the least-squares loss."""
    loss = ops.relativistic_d_loss(REAL, FAKE, average=True, kind="least_squares")
    want = (square(REAL - FAKE.mean() - 1).mean() + square(FAKE - REAL.mean() + 1).mean()) / 2
    torch.testing.assert_close(loss, want)
    loss = ops.relativistic_g_loss(REAL, FAKE, average=True, kind="least_squares")
    want = (square(FAKE - REAL.mean() - 1).mean() + square(REAL - FAKE.mean() + 1).mean()) / 2
    torch.testing.assert_close(loss, want)
    loss = ops.relativistic_d_loss(REAL, PAIRED, kind="least_squares")
    torch.testing.assert_close(loss, square(REAL - PAIRED - 1).mean() / 2)
