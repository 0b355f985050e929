from __future__ import annotations

import pytest
import torch

from gan_fast import nn as fused
from gan_fast import ops


def test_stddev_matches_the_op() -> None:
    module = fused.MinibatchStdDev(group_size=2, num_channels=3, eps=1e-4)
    x = torch.randn(4, 6, 3, 3)
    assert torch.equal(module(x), ops.minibatch_stddev(x, group_size=2, num_channels=3, eps=1e-4))
    assert not module.state_dict()
    assert "group_size=2, num_channels=3, eps=0.0001" in repr(module)
    with pytest.raises(ValueError, match="MinibatchStdDev: expected num_channels at least 1, got 0"):
        fused.MinibatchStdDev(num_channels=0)
    with pytest.raises(ValueError, match="MinibatchStdDev: expected eps above 0, got 0"):
        fused.MinibatchStdDev(eps=0)


def test_discrimination_matches_the_op() -> None:
    module = fused.MinibatchDiscrimination(6, 5, 4, dtype=torch.float64)
    x = torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(module(x), ops.minibatch_discrimination(x, module.weight))
    assert {name: tuple(t.shape) for name, t in module.state_dict().items()} == {"weight": (6, 5, 4)}
    assert "in_features=6, out_features=5, kernel_dims=4" in repr(module)
    assert fused.MinibatchDiscrimination(6, 5, device="meta")(x.to("meta", torch.float32)).shape == (3, 11)
    with pytest.raises(ValueError, match="MinibatchDiscrimination: expected kernel_dims at least 1, got 0"):
        fused.MinibatchDiscrimination(6, 5, 0)


def test_minibatch_discrimination_learns_to_detect_similar_samples() -> None:
    torch.manual_seed(0)
    discriminator = torch.nn.Sequential(fused.MinibatchDiscrimination(4, 8, 2), torch.nn.Linear(12, 1))
    optimizer = torch.optim.Adam(discriminator.parameters(), 0.01)
    for _ in range(200):
        varied, alike = torch.randn(16, 4), torch.randn(1, 4).expand(16, 4) + 0.05 * torch.randn(16, 4)
        loss = ops.minimax_d_loss(discriminator(varied), discriminator(alike))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
