"""The number of random cases that a test tries: a few in the suite, more in a long campaign."""

from __future__ import annotations

import os


def seeds(usual: int) -> range:
    """Return the seeds of a test's random cases: ``usual`` of them, or ``GAN_FAST_DRAWN`` where that is set."""
    return range(int(os.environ.get("GAN_FAST_DRAWN", usual)))
