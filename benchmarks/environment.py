"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

import gan_fast
from gan_fast import extension


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def describe(device: torch.device) -> dict[str, str | int]:
    """Name the device and the versions; date and commit are pytest-benchmark's to tell."""
    # A container may own fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "device": device_name(device),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "instruction_set": extension.build_info().get("instruction_set", "no native module"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gan_fast": gan_fast.__version__,
    }
