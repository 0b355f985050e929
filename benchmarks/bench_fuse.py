"""Networks as people write them (tests/zoo), as they are and fused: forward and backward at their papers' widths."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import gan_fast
from benchmarks.harness import OURS, Case, Work, default_device
from benchmarks.table import FUSED_KINDS
from tests.zoo import ZOO, Entry

# Float32 sums in another order; a value at a kink may fall to either side of it.
TOLERANCE = 5e-3


def _work(model: nn.Module, inputs: tuple[Tensor, ...]) -> Work:
    parameters = dict(model.named_parameters())

    def run() -> Mapping[str, Tensor]:
        random.seed(0)  # some networks draw by Python, and both shall the same
        for parameter in parameters.values():
            parameter.grad = None
        outputs = [t for t in _pytree.tree_leaves(model(*inputs)) if isinstance(t, Tensor) and t.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
        return {f"output {i}": t for i, t in enumerate(outputs)}

    return run


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def bench_network(entry: Entry, compare: Callable[[Case], None]) -> None:
    torch.manual_seed(0)
    model, inputs = entry.workload()
    device = default_device()
    inputs = tuple(t.to(device) for t in inputs)
    providers = {"eager": _work(model.to(device), inputs), OURS: _work(gan_fast.fuse(model), inputs)}
    kind = FUSED_KINDS[0 if entry.conv_blocks else 1]
    compare(Case(f"fuse: {entry.name}, {kind}, float32", providers, TOLERANCE, device))
