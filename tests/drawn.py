"""How many drawn cases a test tries: a few in the suite, as many as asked for in a campaign."""

from __future__ import annotations

import os


def seeds(usual: int) -> range:
    """Return the seeds of a test's drawn cases: ``usual`` of them, or ``GAN_FAST_DRAWN`` where that is set."""
    return range(int(os.environ.get("GAN_FAST_DRAWN", usual)))
