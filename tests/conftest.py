"""Settings of every test, and the choice of the tests that this machine can run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

# Triton reads this when it is imported, which torch.compile does too: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A test runs on the backend that it names, so no backend is measured, and no measurement is written to disk.
os.environ.setdefault("GAN_FAST_TUNE", "0")

from gan_fast import backends

# A deadline would measure the machine instead of the code.
settings.register_profile("gan_fast", deadline=None, derandomize=True)
settings.load_profile("gan_fast")

_LEFT_OUT = pytest.StashKey[int]()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _fused_kernels_at_any_size() -> Iterator[None]:
    """Run the fused kernels on the small tensors of the tests; ATen's share of small tensors has its own tests."""
    usual, backends.SMALL = backends.SMALL, -1
    yield
    backends.SMALL = usual


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LEFT_OUT] = 0
    # Workers of pytest-xdist share the cores, so each gets its share of the threads.
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start with the longest tests; leave out the tests with the mark ``gpu`` on a machine without a GPU."""
    # If they ran last, tests that compile for a minute would leave the other workers idle.
    items.sort(key=lambda item: item.path.name != "test_compiled.py")
    if torch.cuda.is_available():
        return
    config.stash[_LEFT_OUT] = sum(item.get_closest_marker("gpu") is not None for item in items)
    items[:] = [item for item in items if item.get_closest_marker("gpu") is None]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over a worker's number: only the workers of pytest-xdist collect."""
    left_out = getattr(node, "workeroutput", {}).get("left_out", 0)
    node.config.stash[_LEFT_OUT] = max(node.config.stash[_LEFT_OUT], left_out)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash[_LEFT_OUT]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[_LEFT_OUT]:
        terminalreporter.line(f"not collected: {config.stash[_LEFT_OUT]} tests that need a GPU")
