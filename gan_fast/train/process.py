"""Settings of the whole process, which the command line may change but library code must not."""

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

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The largest value that glibc accepts on 64-bit systems: half of the maximum heap size.
_THRESHOLD_BYTES = 32 * 2**20


def keep_freed_memory() -> bool:
    """Make glibc keep freed buffers of up to 32 MiB instead of unmapping them.

    By default, large tensors are mapped again at each allocation, and every page causes a fault.

    Returns:
        Whether the setting took effect; False with another C library.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)) and bool(
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        )
    except (OSError, AttributeError):
        return False


def set_threads(threads: int | None) -> None:
    """Set the number of torch's CPU threads; None limits torch's default to the CPUs that this process may use.

    By default torch counts all cores of the machine. If a container or scheduler grants only some of them, the threads
    wait for each other.
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
    # Without cgroup version 2, or with "max", there is no quota.
    except (OSError, ValueError):
        return cpus


# Rounds of `fastest_threads`: the first is a warm-up, the second is always timed, more follow within the budget.
_MOST_ROUNDS = 20
_BUDGET_S = 1.0
# Fewer threads are chosen only if they save this fraction of the step time; smaller differences are noise.
_LEAST_GAIN = 0.1


@dataclass(frozen=True)
class ThreadChoice:
    """The chosen number of CPU threads, and the measured time of a step for each number that was tried."""

    threads: int
    times_ms: dict[int, float]

    def __str__(self) -> str:
        times = {n: f"{ms:.3g} ms" if ms < 100 else f"{ms:.0f} ms" for n, ms in self.times_ms.items()}
        chosen = times.pop(self.threads)
        others = ", ".join(f"{time} with {n}" for n, time in times.items())
        return f"CPU threads: {self.threads} ({chosen} per step; {others}); set --threads to skip this measurement"


def fastest_threads(step: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> ThreadChoice:
    """Time a training step with 1, 2, 4, ... threads up to torch's current number, and set the fastest number.

    If other programs use the same cores, threads wait for each other, and more threads can be many times slower.

    Args:
        step: runs one training step; called at least twice per number of threads, in rounds over all numbers.
        clock: returns the time in seconds.

    Returns:
        The number that was set, and the shortest time for each number.
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
    """The number of the signal that was received, or None."""

    number: int | None = None


@contextmanager
def stopping_signals(stop: Callable[[], None]) -> Iterator[StopSignal]:
    """Call ``stop`` on the first SIGINT, SIGTERM or SIGHUP inside the block; a second one has its previous effect.

    Yields:
        An object whose ``number`` is set when a signal arrives.
    """
    received = StopSignal()
    numbers = [signal.SIGINT, signal.SIGTERM]
    # A closed terminal sends SIGHUP. nohup ignores it, and it must stay ignored then. Windows has no SIGHUP.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
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
