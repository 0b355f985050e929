"""Providers of networks and steps: all four take part, and the tuned ones compute what the plain network computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from benchmarks import (
    bench_batch_norm_act,
    bench_conv,
    bench_conv_bn_act,
    bench_fuse,
    bench_penalties,
    bench_step,
    harness,
    providers,
)
from benchmarks.harness import COMPILED, EAGER, GAN_FAST, TUNED, Case
from tests.zoo import ZOO

TINY = "tiny 3x3 block 16 -> 16 channels"
NETWORKS = {entry.name: entry for entry in ZOO}

BENCHMARKS: dict[str, Callable[[Callable[[Case], None]], None]] = {
    "training step": lambda compare: bench_step.bench_iteration(compare, 16, 1, 64),
    "block": lambda compare: bench_conv_bn_act.bench_block(compare, TINY),
    "block, evaluation": lambda compare: bench_conv_bn_act.bench_block_sampling(compare, TINY),
    "norm": lambda compare: bench_batch_norm_act.run(compare, "forward + backward", (2, 8, 4, 4)),
    "network": lambda compare: bench_conv_bn_act.bench_network(compare, "generator", torch.float32),
    "fused network": lambda compare: bench_fuse.bench_network(NETWORKS["mlp_generator"], compare),
    "penalty of convolutions": bench_conv.bench_penalty,
    "penalty": lambda compare: bench_penalties.bench_loss(compare, "WGAN-GP critic iteration"),
}
QUICK = ("training step", "block", "block, evaluation", "norm")


class BuiltError(Exception):
    """Ends a benchmark once it has built its case."""


def built(name: str) -> Case:
    cases: list[Case] = []

    def compare(case: Case) -> None:
        cases.append(case)
        raise BuiltError

    with pytest.raises(BuiltError):
        BENCHMARKS[name](compare)
    return cases[0]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_all_four_providers_take_part(name: str) -> None:
    case = built(name)
    assert {EAGER, TUNED, COMPILED, GAN_FAST} <= {*case.providers, *(case.unavailable or {})}
    assert next(iter(case.providers)) == EAGER
    variants = case.providers[EAGER]
    assert isinstance(variants, dict)
    assert any("channels_last" in variant for variant in variants)
    assert any("contiguous" in variant for variant in variants)


@pytest.mark.parametrize("name", QUICK)
def test_results_of_all_but_compiled_providers_agree(name: str) -> None:
    case = built(name)
    others = {provider: work for provider, work in case.providers.items() if provider != COMPILED}
    checked = harness.check(dataclasses.replace(case, providers=others))
    assert {*checked.variants} == {*others}


def block() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(5, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, 1, 1),
        nn.InstanceNorm2d(4, affine=True), nn.LeakyReLU(0.2), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.Tanh(),
    )  # fmt: skip
    model(torch.randn(4, 5, 6, 6))  # running statistics that are not 0 and 1
    return model


def test_functions_of_a_network_equal_its_modules() -> None:
    x = torch.randn(4, 5, 6, 6)
    expected, model = block(), block()
    torch.testing.assert_close(providers.without_modules(model)(x), expected(x))
    for own, want in zip(model.buffers(), expected.buffers()):
        if want.is_floating_point():
            torch.testing.assert_close(own, want)


def test_folded_network_equals_the_network_in_evaluation_mode() -> None:
    x = torch.randn(4, 5, 6, 6)
    expected = block().eval()(x)
    torch.testing.assert_close(providers.folded(block())(x), expected)


def test_only_activations_after_convolutions_and_norms_become_in_place() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Sigmoid(), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
    providers.in_place_in_sequentials(model)
    assert [layer.inplace for layer in model if isinstance(layer, nn.ReLU)] == [True, False, True]


def test_networks_of_the_fuse_benchmark_exist() -> None:
    assert {*bench_fuse.NETWORKS} <= {*NETWORKS}
    assert any(NETWORKS[name].conv_blocks for name in bench_fuse.NETWORKS)
    assert not all(NETWORKS[name].conv_blocks for name in bench_fuse.NETWORKS)
