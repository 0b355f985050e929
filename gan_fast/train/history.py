"""What a run was started with and where: one line of history.jsonl for each start."""

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
# Without hooks and file system monitor: a repository can name any program as these.
_GIT = ("git", "--no-optional-locks", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")


def versions() -> dict[str, str]:
    """Return the versions of gan_fast, torch, Python and the libraries that decide what a run computes."""
    found = {"gan_fast": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in ("numpy", "pillow")}


def start_of(command: str | None, device: torch.device, step: int) -> dict[str, Any]:
    """Return the record of a start.

    Args:
        command: the command line; None where Python code started the run.
        device: where it trains.
        step: where it starts.
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
    """Return the short commit of the current directory's repository, with "-dirty" where tracked files differ.

    None without git, outside of a repository, and before its first commit. Runs no hooks and writes nothing.
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
