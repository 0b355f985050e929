"""What tests of damaged files share."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Iterator

import pytest

HANG_SECONDS = 60


@pytest.fixture
def end_the_run_on_a_hang() -> Iterator[None]:
    # A worker thread stuck in a C decoder can be ended only together with the process.
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()
