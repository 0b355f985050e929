"""The objectives, each against the formula written out in torch."""

import pytest
import torch

from gan_fast import objectives

REAL, FAKE = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([-3.0, 0.25, 1.0, 0.0])


@pytest.mark.parametrize(
    ("name", "g_loss"),
    [("minimax", lambda p: (1 - p).log().mean()), ("non_saturating", lambda p: -p.log().mean())],
)
def test_losses_are_those_of_the_game(name, g_loss):
    objective = objectives.make_objective(name)
    loss, means = objective.d_loss(REAL, FAKE)
    d_x, d_gz = REAL.sigmoid(), FAKE.sigmoid()
    torch.testing.assert_close(loss, -(d_x.log().mean() + (1 - d_gz).log().mean()))
    torch.testing.assert_close(means, torch.stack((d_x.mean(), d_gz.mean())))
    torch.testing.assert_close(objective.g_loss(FAKE), g_loss(d_gz))


def test_labels_smooth_the_discriminators_loss_only():
    smoothed = objectives.make_objective("non_saturating", real_label=0.9, fake_label=0.1)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    want = bce(REAL, torch.full_like(REAL, 0.9)) + bce(FAKE, torch.full_like(FAKE, 0.1))
    torch.testing.assert_close(smoothed.d_loss(REAL, FAKE)[0], want)
    torch.testing.assert_close(smoothed.g_loss(FAKE), objectives.make_objective("non_saturating").g_loss(FAKE))


def test_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"^make_objective: expected name one of minimax, non_saturating, got 'wgan'$"):
        objectives.make_objective("wgan")
