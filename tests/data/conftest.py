"""A fixture for tests of damaged files."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Iterator

import pytest

HANG_SECONDS = 60


@pytest.fixture
def end_the_run_on_a_hang() -> Iterator[None]:
    # A thread stuck in a C decoder can only be stopped by ending the process.
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()
