"""Describe the machine and the versions that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

import gan_fast
from gan_fast import extension

BUSY_LOAD_PER_CORE = 0.5


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def describe(device: torch.device) -> dict[str, str | float]:
    """Return device and versions; pytest-benchmark records date and commit."""
    # A container may have fewer cores than the machine.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "device": device_name(device),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "instruction_set": extension.build_info().get("instruction_set", "no native module"),
        "backend": os.environ.get("GAN_FAST_BACKEND", "auto"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gan_fast": gan_fast.__version__,
        # Mean number of busy threads in the minute before the first measurement.
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
    }


def facts(description: Mapping[str, str | float]) -> str:
    """Return the description as text, with a warning where other work ran on the machine.

    With more threads than cores, a parallel region waits for whole time slices of the scheduler. Times and ratios then
    reflect the number of parallel regions rather than the work, and measuring in rounds does not help.
    """
    text = ", ".join(f"{key} {value}" for key, value in description.items())
    if float(description["load_before"]) > BUSY_LOAD_PER_CORE * float(description["cores"]):
        text += "\nWARNING: the machine was busy before the run; do not trust times and ratios."
    return text
