"""Records of how and where a run was started: one line of history.jsonl per start."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import socket
import subprocess
from typing import Any

import torch

from gan_fast.version import __version__

_GIT_TIMEOUT_S = 10
# Hooks and the file system monitor are disabled, because a repository can set them to any program.
_GIT = ("git", "--no-optional-locks", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")


def versions() -> dict[str, str]:
    """Return the versions of Python, gan_fast, torch and the other libraries that affect the results of a run."""
    found = {"gan_fast": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in ("numpy", "pillow")}


def start_of(command: str | None, device: torch.device, step: int) -> dict[str, Any]:
    """Return the record of one start.

    Args:
        command: the command line; None if the run was started from Python.
        device: the training device.
        step: the number of steps done before this start.
    """
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "step": step,
        "command": command,
        "folder": os.getcwd(),
        "git": git_commit(),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cpu_threads": torch.get_num_threads(),
        "versions": versions(),
    }


def git_commit() -> str | None:
    """Return the short commit hash of the repository in the current directory, with "-dirty" if tracked files differ.

    Returns None without git, outside a repository, and before the first commit. Runs no hooks and writes nothing.
    """
    commit = _git("rev-parse", "--short", "HEAD")
    if not commit:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules")
    return f"{commit}-dirty" if changes else commit


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            [*_GIT, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=_GIT_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()
