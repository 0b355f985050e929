"""Which of some candidates is the quickest at a piece of work on this device: measured once, remembered on disk.

A candidate whose values are not those of the reference is left out before it is timed.

A file for each device and set of versions lies in $GAN_FAST_CACHE, else in gan_fast's folder of the user's caches.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from gan_fast.capture import CudaGraphs, one_at_a_time
from gan_fast.version import __version__

logger = logging.getLogger("gan_fast")

_WARMUPS = 3
_ROUNDS = 7
# Calls between two readings of the clock: about so long, so that the clock's own steps do not count.
_ROUND_MS = 1.0
_MOST_CALLS = 100

# Key -> milliseconds of each candidate, for each device.
_measured: dict[str, dict[str, dict[str, float]]] = {}
# What was said to have failed: once for each op and candidate.
_told: set[tuple[str, str]] = set()
# Of the file; nothing is held while candidates run, which may ask for choices in threads of autograd's.
_lock = threading.Lock()


def enabled() -> bool:
    return os.environ.get("GAN_FAST_TUNE", "1") != "0"


def _folder() -> Path:
    if given := os.environ.get("GAN_FAST_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gan_fast"


def _kernels() -> str:
    """Tells one build from another: a kernel that was changed is measured again."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted([*package.glob("triton_kernels/*.py"), *package.glob("_C*")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device.type} {platform.machine()}"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} sm_{properties.major}{properties.minor} {properties.multi_processor_count} processors"


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return str(triton.__version__)


_names: dict[torch.device, str] = {}


def _name(device: torch.device) -> str:
    """Of the device, the versions and the kernels: choices hold for them alone."""
    if device not in _names:
        versions = f"torch {torch.__version__} cuda {torch.version.cuda} triton {_triton_version()}"
        _names[device] = f"{_device_name(device)}, {versions}, gan_fast {__version__} {_kernels()}"
    return _names[device]


def _file(name: str) -> Path:
    return _folder() / (re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-") + ".json")


def _read(name: str) -> dict[str, dict[str, float]]:
    path = _file(name)
    try:
        content = json.loads(path.read_text())
        return {
            str(key): {str(candidate): float(ms) for candidate, ms in times.items()} for key, times in content.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("choices in %s cannot be read and are measured again: %s", path, error)
        return {}


def _write(name: str, key: str, times: dict[str, float]) -> None:
    path, unfinished = _file(name), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside what another process has found meanwhile; a reader finds the old file or the new one.
        content = {**_read(name), key: times}
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            unfinished = file.name
            json.dump(content, file, indent=1, sort_keys=True)
        os.replace(unfinished, path)
    except OSError as error:
        if unfinished is not None:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
        logger.warning("choices are not remembered beyond this process: %s", error)


def known(device: torch.device, op: str, key: str) -> dict[str, float] | None:
    """Milliseconds of each candidate, where they were measured; the quickest is the choice."""
    return _all(device).get(f"{op} {key}")


def _all(device: torch.device) -> dict[str, dict[str, float]]:
    name = _name(device)
    if name not in _measured:
        _measured.setdefault(name, _read(name))
    return _measured[name]


def described(device: torch.device) -> Iterable[tuple[str, dict[str, float]]]:
    """What was measured on a device, for people."""
    return sorted(_all(device).items())


def measure(
    device: torch.device,
    op: str,
    key: str,
    candidates: Iterable[str],
    work: Callable[[str], Callable[[], Any]],
    fault: Callable[[str], str | None] = lambda candidate: None,
) -> dict[str, float]:
    """Time each candidate and return milliseconds; one that fails or has a fault is left out, which is logged once.

    Args:
        work: gives what a candidate has to do, a function of no arguments that can run any number of times.
        fault: says what is wrong with a candidate's values, if anything.

    Raises:
        RuntimeError: a candidate broke the device, on which nothing runs any more in this process.

    Notes:
        Kept for the process, and on disk where all candidates ran: the next process gives a failed one another chance.
    """
    times = known(device, op, key)
    if times is not None:
        return times
    times, complete = {}, True
    for candidate in candidates:
        if runs(device, op, key, candidate, fault):
            try:
                times[candidate] = _time_ms(device, work(candidate))
                continue
            except Exception as error:
                _leave_out(device, op, key, candidate, f"it failed ({key}): {error}", error)
        complete = False
    _all(device)[f"{op} {key}"] = times
    if complete:
        with _lock:
            _write(_name(device), f"{op} {key}", times)
    return times


def runs(device: torch.device, op: str, key: str, candidate: str, fault: Callable[[str], str | None]) -> bool:
    """Whether a candidate runs and has no fault; where not, that is logged once.

    Args, Raises: as for :func:`measure`.
    """
    try:
        found = fault(candidate)
    except Exception as error:
        # Of any kind, a compiler's or a driver's: training goes on with the others.
        _leave_out(device, op, key, candidate, f"it failed ({key}): {error}", error)
        return False
    if found is not None:
        _leave_out(device, op, key, candidate, f"{found} ({key})")
    return found is None


def _leave_out(
    device: torch.device, op: str, key: str, candidate: str, reason: str, error: Exception | None = None
) -> None:
    if error is not None and not _alive(device):
        # An illegal access, as a rule. Without this error whatever runs next would be blamed.
        raise RuntimeError(
            f"{op}: expected {candidate} to run, got a device that it broke ({key}): {error}; start again with "
            "GAN_FAST_BACKEND=reference, which runs no kernel of gan_fast"
        ) from error
    if (op, candidate) not in _told:
        _told.add((op, candidate))
        logger.warning("%s: %s is left out, because %s", op, candidate, reason)


def _alive(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    try:
        with one_at_a_time:
            torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


# Relative: about what one rounding of a number changes, for float32 in TF32.
_ROUNDING = {torch.float64: 2**-44, torch.float32: 2**-10, torch.bfloat16: 2**-7, torch.float16: 2**-10}
# How many times what a rounding of all arguments changes, and a rounding of the result, two right results may differ:
# kernels round on the way, each in its own order.
_OF_ARGUMENTS, _OF_RESULT = 4.0, 2.0
# Of so many values a few may lie on the other side of an activation's kink, each as far off as the largest value.
_MANY, _KINKS = 4096, 4


def disagreement(
    found: Sequence[torch.Tensor | None], expected: Sequence[torch.Tensor | None], moved: Sequence[torch.Tensor | None]
) -> str | None:
    """Say which of some results is not as expected, if one is; None stands for zeros.

    Args:
        found, expected: the same results by two implementations.
        moved: those expected for arguments that differ by about a rounding. How far they lie from ``expected`` is how
            far right results may, whatever the condition of the problem.
    """
    named, sizes = [], []
    for index, (own, want, other) in enumerate(zip(found, expected, moved, strict=True)):
        like = next((t for t in (own, want, other) if t is not None), None)
        if like is None or not like.is_floating_point() or not like.numel():
            continue
        if any(t is not None and t.shape != like.shape for t in (own, want, other)):
            return f"result {index} has another shape than the reference's"
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        own, want, other = (torch.zeros_like(like, dtype=wide) if t is None else t.to(wide) for t in (own, want, other))
        named.append((index, torch.finfo(like.dtype).eps, like.numel() >= _MANY))
        norms = [torch.linalg.vector_norm(t) for t in (own - want, other - want, want)]
        sizes.append(torch.stack([*norms, want.abs().amax()]).double())
    if not sizes:
        return None
    # Read while no other thread captures a graph, in which reading is an error.
    with one_at_a_time:
        distances: list[list[float]] = torch.stack(sizes).tolist()
    for (index, eps, many), (distance, slack, size, largest) in zip(named, distances, strict=True):
        # Nothing is known where the reference itself overflows. A result that a rounding changes by a tenth is a sum of
        # values that cancel, such as the gradient of a bias before a norm: of such a one only that it is a number.
        bound = _OF_ARGUMENTS * slack + _OF_RESULT * eps * size + _KINKS**0.5 * largest * many
        bound = bound if slack < 0.1 * size else math.inf
        if math.isfinite(size + slack) and not (distance <= bound and math.isfinite(distance)):
            off = distance / size if size else math.inf
            return f"its values are off: result {index} differs from the reference's by {off:.2g} of its size"
    return None


def stand_in(value: Any, moved: bool = False) -> Any:
    """A tensor of the same shape, strides and kind with values of its own, in [0, 1); anything else as it is.

    Args:
        moved: each value is another by about a rounding.
    """
    if not isinstance(value, torch.Tensor):
        return value
    # A generator of its own: what a program draws is not to depend on what was measured.
    generator = torch.Generator(value.device).manual_seed(0)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride())) if value.numel() else 0
    memory = torch.empty(extent, dtype=value.dtype, device=value.device).uniform_(generator=generator)
    if moved and value.dtype in _ROUNDING:
        rounding = _ROUNDING[value.dtype]
        memory.mul_(
            torch.empty_like(memory, dtype=torch.float32).uniform_(1 - rounding, 1 + rounding, generator=generator)
        )
    return memory.as_strided(value.shape, value.stride()).requires_grad_(value.requires_grad)


def _time_ms(device: torch.device, work: Callable[[], Any]) -> float:
    if device.type != "cuda":
        return _median_ms(work, time.perf_counter, lambda: None)
    with torch.cuda.device(device):
        recorded = _recorded(device, work)
        # Waiting for the device would spoil another thread's capture, and another thread's work this one's times.
        with one_at_a_time:
            return _median_ms(recorded, time.perf_counter, torch.cuda.synchronize)


def _recorded(device: torch.device, work: Callable[[], Any]) -> Callable[[], Any]:
    """The work as a CUDA graph, in which what Python takes to launch it does not count; else as it is."""
    graphs = CudaGraphs(device)
    for _ in range(_WARMUPS):
        graphs.warm_up(work)
    try:
        replay, _ = graphs.capture(work)
    except RuntimeError:
        return work
    return replay


def _median_ms(work: Callable[[], Any], clock: Callable[[], float], synchronize: Callable[[], None]) -> float:
    def round_ms(calls: int) -> float:
        synchronize()
        started = clock()
        for _ in range(calls):
            work()
        synchronize()
        return (clock() - started) * 1e3 / calls

    for _ in range(_WARMUPS):
        round_ms(1)
    calls = int(min(_MOST_CALLS, max(1, _ROUND_MS / max(round_ms(1), 1e-3))))
    return statistics.median(round_ms(calls) for _ in range(_ROUNDS))
