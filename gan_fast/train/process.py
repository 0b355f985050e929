"""Settings of the whole process that a training of our own may make; a library must not."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


# Rounds of `fastest_threads`: the first warms up; a second one is always timed, more while the budget lasts.
_MOST_ROUNDS = 20
_BUDGET_S = 1.0
# Fewer threads are chosen only where they save this share of a step: less is noise.
_LEAST_GAIN = 0.1


@dataclass(frozen=True)
class ThreadChoice:
    """The number of CPU threads that a training runs on, and the measured time of a step at each number tried."""

    threads: int
    times_ms: dict[int, float]

    def __str__(self) -> str:
        times = {n: f"{ms:.3g} ms" if ms < 100 else f"{ms:.0f} ms" for n, ms in self.times_ms.items()}
        own = times.pop(self.threads)
        others = ", ".join(f"{time} on {n}" for n, time in times.items())
        return f"CPU threads: {self.threads} ({own} a step; {others}); --threads decides without measuring"


def fastest_threads(step: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> ThreadChoice:
    """Time a training step at 1, 2, 4, ... threads up to torch's present number, and set the fastest.

    Where other programs share the cores, threads wait for each other, and more of them can be many times slower.

    Args:
        step: runs one training step; called twice or more at each number, in turns.
        clock: returns seconds.

    Returns:
        The number that was set and the shortest time at each.
    """
    most = torch.get_num_threads()
    counts = [*(2**i for i in range(most.bit_length()) if 2**i < most), most]
    shortest_s = dict.fromkeys(counts, float("inf"))
    began = clock()
    for index in range(_MOST_ROUNDS):
        for threads in counts:
            torch.set_num_threads(threads)
            started = clock()
            step()
            if index:
                shortest_s[threads] = min(shortest_s[threads], clock() - started)
        if index and clock() - began > _BUDGET_S:
            break
    fastest = min(counts, key=lambda n: shortest_s[n])
    if shortest_s[fastest] > (1 - _LEAST_GAIN) * shortest_s[most]:
        fastest = most
    torch.set_num_threads(fastest)
    return ThreadChoice(fastest, {n: 1e3 * s for n, s in shortest_s.items()})


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
