"""Measure the memory that work takes from torch's allocator."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

_PROFILER_DEVICE_TYPES = {"cpu": 0, "cuda": 1}


def peak_mib(work: Callable[[], object], device: torch.device) -> float:
    """Measure the largest increase of allocated memory during one run of ``work``, in MiB.

    The increase counts from the lowest level before it, because ``work`` may first free the results of an earlier run.
    It includes outputs, saved tensors, gradients and temporaries from torch's allocator, but not what a library such as
    oneDNN allocates.
    """
    return largest_rise(_changes(work, device)) / 2**20


def allocated_mib(work: Callable[[], object], device: torch.device) -> float:
    """Measure the memory that one run of ``work`` allocates and keeps while its result exists, in MiB."""
    return sum(_changes(work, device)) / 2**20


def _changes(work: Callable[[], object], device: torch.device) -> list[int]:
    """Return the bytes of each allocation (positive) and release (negative), in order, while the result exists."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    del results
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    wanted = _PROFILER_DEVICE_TYPES[device.type]
    memory = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == wanted]
    memory.sort(key=lambda event: event["ts"])
    return [event["args"]["Bytes"] for event in memory]


def largest_rise(changes: list[int]) -> int:
    """Return the largest difference between a running sum and its lowest value so far, starting from 0."""
    lowest = highest_rise = 0
    for level in itertools.accumulate(changes):
        lowest = min(lowest, level)
        highest_rise = max(highest_rise, level - lowest)
    return highest_rise
