from __future__ import annotations

import pytest
import torch

from gan_fast import nn as fused
from gan_fast import ops


def test_stddev_is_the_op() -> None:
    module = fused.MinibatchStdDev(group_size=2, num_channels=3)
    x = torch.randn(4, 6, 3, 3)
    assert torch.equal(module(x), ops.minibatch_stddev(x, 2, 3))
    assert not module.state_dict()
    assert "group_size=2, num_channels=3" in repr(module)
    with pytest.raises(ValueError, match="MinibatchStdDev: expected num_channels at least 1, got 0"):
        fused.MinibatchStdDev(num_channels=0)
