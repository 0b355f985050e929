"""Memory that a piece of work takes from torch's allocator."""

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
    """Measure the largest rise of allocated memory within one run of ``work``, in MiB.

    The rise is counted from the lowest level before it, so that results of an earlier run, freed at the start of this
    one, do not hide anything. Counted is what torch's allocator of that device hands out: outputs, saved tensors,
    gradients, temporaries; not what a library such as oneDNN takes for itself.
    """
    return largest_rise(_changes(work, device)) / 2**20


def held_mib(work: Callable[[], object], device: torch.device) -> float:
    """Measure what is allocated within one run of ``work`` and still there while its result is, in MiB."""
    return sum(_changes(work, device)) / 2**20


def _changes(work: Callable[[], object], device: torch.device) -> list[int]:
    """Bytes that torch's allocator hands out (positive) and takes back, in order, as long as the result is there."""
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
    """Return the largest difference of a running sum to its lowest value so far, from 0."""
    lowest = highest_rise = 0
    for level in itertools.accumulate(changes):
        lowest = min(lowest, level)
        highest_rise = max(highest_rise, level - lowest)
    return highest_rise
