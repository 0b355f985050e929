"""Measure the memory that a network keeps between forward and backward, in its own process.

Usage: python -m benchmarks.saved_memory generator|discriminator eager|gan_fast [--batch-size 32]

Prints three figures in MiB as JSON, taken while the output exists, after two warm-up iterations:
    process_mib    increase of the process's resident memory during a forward pass
    allocated_mib  memory that torch's allocator has given out during the pass and not got back
    saved_mib      tensors that autograd nodes save, without parameters and buffers
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory import allocated_mib
from benchmarks.networks import LATENT_DIM, eager_models
from gan_fast.models import DCGANDiscriminator, DCGANGenerator
from gan_fast.ops.recompute import _Slot

NETWORKS = ("generator", "discriminator")
PROVIDERS = ("eager", "gan_fast")
IMAGE_SIZE, CHANNELS, WIDTH = 64, 3, 64


def network(name: str, provider: str) -> nn.Module:
    if provider == "eager":
        return eager_models(IMAGE_SIZE, CHANNELS, WIDTH)[NETWORKS.index(name)]
    return DCGANGenerator(LATENT_DIM) if name == "generator" else DCGANDiscriminator()


def network_input(name: str, batch_size: int) -> Tensor:
    shape = (LATENT_DIM, 1, 1) if name == "generator" else (CHANNELS, IMAGE_SIZE, IMAGE_SIZE)
    return torch.randn(batch_size, *shape)


def saved_tensors(output: Tensor) -> Iterator[Tensor]:
    """Yield every tensor that the nodes of the output's graph save, once for each time it is saved."""
    seen: set[Any] = set()
    left = [output.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        left += [function for function, _ in node.next_functions]
        for name in dir(node):
            if not name.startswith("_raw_saved_"):
                continue
            saved = getattr(node, name)
            for slot in saved if isinstance(saved, (tuple, list)) else (saved,):
                if isinstance(slot.data, _Slot):
                    yield from (t for t in slot.data.recipe.inputs if t is not None)
                elif slot.data is not None:
                    yield slot.data


def saved_mib(output: Tensor, model: nn.Module) -> float:
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved_tensors(output)}
    return sum(size for pointer, size in storages.items() if pointer not in own) / 2**20


def resident_mib() -> float:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(name: str, provider: str, batch_size: int) -> dict[str, float]:
    torch.manual_seed(0)
    model, input = network(name, provider), network_input(name, batch_size)
    for _ in range(2):
        model(input).sum().backward()
    before = resident_mib()
    output = model(input)
    figures = {"process_mib": resident_mib() - before, "saved_mib": saved_mib(output, model)}
    del output
    return figures | {"allocated_mib": allocated_mib(lambda: model(input), torch.device("cpu"))}


def measure_in_process(name: str, provider: str, batch_size: int = 32) -> dict[str, float]:
    """Measure in a new process whose malloc maps every tensor separately and returns its pages when it is freed."""
    command = [sys.executable, "-m", "benchmarks.saved_memory", name, provider, "--batch-size", str(batch_size)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result: dict[str, float] = json.loads(
        subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    )
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saved_memory", description=__doc__.partition("\n")[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("provider", choices=PROVIDERS)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args(arguments)
    print(json.dumps(measure(options.network, options.provider, options.batch_size)))


if __name__ == "__main__":
    main()
