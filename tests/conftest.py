"""Settings every test runs under."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Read when triton is imported, which torch.compile does too: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# On a GPU tests run on what they ask for, and leave no choices behind.
os.environ.setdefault("GAN_FAST_TUNE", "0")

from gan_fast import backends

# Deadlines measure the machine, not the code.
settings.register_profile("gan_fast", deadline=None, derandomize=True)
settings.load_profile("gan_fast")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _kernels_of_ours_at_any_size() -> Iterator[None]:
    """Tests are small; what is left to ATen at small sizes has tests of its own."""
    usual, backends.SMALL = backends.SMALL, -1
    yield
    backends.SMALL = usual


def pytest_configure() -> None:
    # Workers of pytest-xdist share the cores: one thread each, but threads where there is one process.
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))
