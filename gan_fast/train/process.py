"""Settings of the whole process that a training of our own may make; a library must not."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest that glibc takes on 64 bits: half of its heap's maximum size.
_THRESHOLD_BYTES = 32 * 2**20


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed buffers of up to 32 MiB instead of unmapping them.

    Every tensor above the threshold is otherwise mapped and its pages faulted in anew.

    Returns:
        Whether glibc took it; False where the C library is another one.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)) and bool(
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        )
    except (OSError, AttributeError):
        return False


def set_threads(threads: int | None) -> None:
    """Set torch's CPU threads; None lowers torch's own choice to the CPUs that this process may use.

    torch counts the cores of the machine, also where a container or a scheduler grants only some: the threads would
    then wait for each other.
    """
    if threads is None:
        if "OMP_NUM_THREADS" in os.environ:
            return
        threads = min(torch.get_num_threads(), _usable_cpus())
    torch.set_num_threads(threads)


def _usable_cpus() -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(cpus, max(1, int(quota) // int(period)))
    # No cgroup version 2, or "max": no quota.
    except (OSError, ValueError):
        return cpus


class StopSignal:
    """Which signal asked to stop, if any."""

    number: int | None = None


@contextmanager
def stopping_signals(stop: Callable[[], None]) -> Iterator[StopSignal]:
    """Call ``stop`` on the first SIGINT or SIGTERM inside the block; a second one acts as it did before.

    Yields:
        An object that then holds the signal's number.
    """
    received = StopSignal()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, frame: FrameType | None) -> None:
        received.number = number
        restore()
        stop()

    def restore() -> None:
        for number in numbers:
            signal.signal(number, before[number])

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield received
    finally:
        restore()
