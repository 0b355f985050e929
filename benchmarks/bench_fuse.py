"""Networks as people write them (tests/zoo), before and after ``gan_fast.fuse``, at the widths of their papers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import gan_fast
from benchmarks.harness import COMPILED, EAGER, GAN_FAST, TUNED, Case, Work, compiled, default_device
from benchmarks.providers import channels_last, in_place_in_sequentials
from benchmarks.table import FUSED_KINDS
from tests.zoo import ZOO, Entry

# Fused ops add in another order, so a value near an activation's kink may fall on either side of it.
TOLERANCE = 5e-3
# Strided blocks, a U-Net, residual blocks with instance norm, blocks without norm, PReLU and pixel shuffle, 1-d, 3-d.
# ``--all-networks`` measures every network of tests/zoo instead.
NETWORKS = (
    "handwritten_discriminator",
    "pix2pix_unet",
    "cyclegan_generator",
    "stargan_discriminator",
    "srgan_generator",
    "wavegan_generator",
    "vgan_discriminator",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    everything = metafunc.config.getoption("--all-networks")
    chosen = [entry for entry in ZOO if everything or entry.name in NETWORKS]
    metafunc.parametrize("entry", chosen, ids=lambda entry: entry.name)


def _work(model: nn.Module, inputs: tuple[Tensor, ...], forward: Callable[..., object]) -> Work:
    parameters = dict(model.named_parameters())

    def run() -> Mapping[str, Tensor]:
        random.seed(0)  # some networks use Python's generator
        for parameter in parameters.values():
            parameter.grad = None
        outputs = [t for t in _pytree.tree_leaves(forward(*inputs)) if isinstance(t, Tensor) and t.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
        return {f"output {i}": t for i, t in enumerate(outputs)}

    return run


def _runs(work: Work) -> bool:
    """Whether the network runs; one that flattens with ``view`` does not run in channels-last."""
    try:
        work()
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
        return False
    return True


def _as_it_is(value: Any) -> Any:
    return value


def bench_network(entry: Entry, compare: Callable[[Case], None]) -> None:
    """Forward and backward, without dropout.

    Eager: as written, contiguous or channels-last. Tuned by hand: activations that follow a convolution or a norm in a
    Sequential work in place, contiguous or channels-last. torch.compile: channels-last. gan_fast: the network as
    written after ``fuse``, contiguous or channels-last. Networks that cannot run in channels-last are contiguous.
    """
    device = default_device()

    def work(convert: Callable[[Any], Any], change: Callable[..., nn.Module], wrap: Callable[..., Any]) -> Work:
        torch.manual_seed(0)
        model, inputs = entry.workload()
        # Dropout draws in the order of memory, so that results in two memory formats could not be compared.
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        model = convert(change(model.to(device)))
        return _work(model, tuple(convert(t.to(device)) for t in inputs), wrap(model))

    layouts = {"contiguous": _as_it_is, "channels_last": channels_last}
    if not _runs(work(channels_last, _as_it_is, _as_it_is)):
        del layouts["channels_last"]

    def variants(change: Callable[..., nn.Module]) -> dict[str, Work]:
        return {name: work(convert, change, _as_it_is) for name, convert in layouts.items()}

    providers = {
        EAGER: variants(_as_it_is),
        TUNED: variants(in_place_in_sequentials),
        COMPILED: work([*layouts.values()][-1], _as_it_is, compiled),
        GAN_FAST: variants(gan_fast.fuse),
    }
    kind = FUSED_KINDS[0 if entry.conv_blocks else 1]
    compare(Case(f"fuse: {entry.name}, {kind}, float32", providers, TOLERANCE, device))
