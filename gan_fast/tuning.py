"""Measure which candidate does a piece of work fastest on this device, and remember the times on disk.

A candidate whose results differ from the reference's is excluded before it is timed. There is one file per device and
set of versions, in $GAN_FAST_CACHE or else in $XDG_CACHE_HOME/gan_fast or ~/.cache/gan_fast.
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

from gan_fast.capture import CudaGraphs, capture_lock
from gan_fast.version import __version__

logger = logging.getLogger("gan_fast")

_WARMUPS = 3
_ROUNDS = 7
# A round repeats the work for about this time, so that the resolution of the clock does not matter.
_ROUND_MS = 1.0
_MAX_CALLS = 100

# Name of a device and its versions -> key of a class of calls -> milliseconds of each candidate.
_measured: dict[str, dict[str, dict[str, float]]] = {}
# (Op, candidate) pairs whose exclusion has been logged.
_logged: set[tuple[str, str]] = set()
# Guards the file. Not held while candidates run: they may start measurements in autograd's threads.
_lock = threading.Lock()


def enabled() -> bool:
    return os.environ.get("GAN_FAST_TUNE", "1") != "0"


def _folder() -> Path:
    if folder := os.environ.get("GAN_FAST_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gan_fast"


def _kernels_hash() -> str:
    """Identify the build, so that changed kernels are measured again."""
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
    """Return a name for the device, the versions and the kernels; times hold only for these."""
    if device not in _names:
        versions = f"torch {torch.__version__} cuda {torch.version.cuda} triton {_triton_version()}"
        _names[device] = f"{_device_name(device)}, {versions}, gan_fast {__version__} {_kernels_hash()}"
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
        logger.warning("cannot read measured times from %s, measuring again: %s", path, error)
        return {}


def _write(name: str, key: str, times: dict[str, float]) -> None:
    path, unfinished = _file(name), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Keep what other processes have added since. The replacement is atomic: a reader gets the old or the new file.
        content = {**_read(name), key: times}
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            unfinished = file.name
            json.dump(content, file, indent=1, sort_keys=True)
        os.replace(unfinished, path)
    except OSError as error:
        if unfinished is not None:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
        logger.warning("cannot write measured times, keeping them for this process only: %s", error)


def known_times(device: torch.device, op: str, key: str) -> dict[str, float] | None:
    """Return the milliseconds of each candidate, or None if they have not been measured."""
    return _all(device).get(f"{op} {key}")


def _all(device: torch.device) -> dict[str, dict[str, float]]:
    name = _name(device)
    if name not in _measured:
        _measured.setdefault(name, _read(name))
    return _measured[name]


def all_times(device: torch.device) -> Iterable[tuple[str, dict[str, float]]]:
    """Return (class of calls, milliseconds of each candidate) pairs for a device, sorted."""
    return sorted(_all(device).items())


def measure(
    device: torch.device,
    op: str,
    key: str,
    candidates: Iterable[str],
    work: Callable[[str], Callable[[], Any]],
    find_fault: Callable[[str], str | None] = lambda candidate: None,
) -> dict[str, float]:
    """Time each candidate and return milliseconds; a candidate that fails or is faulty is excluded, logged once.

    Args:
        work: returns the work of a candidate: a function without arguments that can run any number of times.
        find_fault: returns what is wrong with a candidate's results, or None.

    Raises:
        RuntimeError: a candidate made the device unusable for this process.

    Notes:
        Times are kept for the process. They are written to disk only if all candidates ran, so that the next process
        tries a failed one again.
    """
    times_ms = known_times(device, op, key)
    if times_ms is not None:
        return times_ms
    times_ms, complete = {}, True
    for candidate in candidates:
        if runs_correctly(device, op, key, candidate, find_fault):
            try:
                times_ms[candidate] = _time_ms(device, work(candidate))
                continue
            except Exception as error:
                _exclude(device, op, key, candidate, f"it failed ({key}): {error}", error)
        complete = False
    _all(device)[f"{op} {key}"] = times_ms
    if complete:
        with _lock:
            _write(_name(device), f"{op} {key}", times_ms)
    return times_ms


def runs_correctly(
    device: torch.device, op: str, key: str, candidate: str, find_fault: Callable[[str], str | None]
) -> bool:
    """Whether a candidate runs and has no fault; otherwise it is excluded, logged once.

    Args and Raises are those of :func:`measure`.
    """
    try:
        fault = find_fault(candidate)
    except Exception as error:  # a compiler's or a driver's: of any type; training continues with the other candidates
        _exclude(device, op, key, candidate, f"it failed ({key}): {error}", error)
        return False
    if fault is not None:
        _exclude(device, op, key, candidate, f"{fault} ({key})")
    return fault is None


def _exclude(
    device: torch.device, op: str, key: str, candidate: str, reason: str, error: Exception | None = None
) -> None:
    if error is not None and not _is_usable(device):
        # Usually an illegal memory access. Every later CUDA call would fail too, and its error would name another op.
        raise RuntimeError(
            f"{op}: the kernel of backend {candidate} made the device unusable ({key}): {error}; start again with "
            "GAN_FAST_BACKEND=reference, which runs no kernel of gan_fast"
        ) from error
    if (op, candidate) not in _logged:
        _logged.add((op, candidate))
        logger.warning("%s: not using backend %s: %s", op, candidate, reason)


def _is_usable(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    try:
        with capture_lock:
            torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


# Relative size of a perturbation: about one rounding of a number; for float32, one rounding to TF32.
_ROUNDING = {torch.float64: 2**-44, torch.float32: 2**-10, torch.bfloat16: 2**-7, torch.float16: 2**-10}
# Two correct results may differ by this many times the effect of rounding all arguments, plus this many roundings of
# the result, since kernels round intermediate values and add in different orders.
_ARGUMENT_ROUNDINGS, _RESULT_ROUNDINGS = 4.0, 2.0
# In results of at least _MANY values up to _KINKS may land on the other side of an activation's kink, each off by as
# much as the largest value.
_MANY, _KINKS = 4096, 4


def disagreement(
    actual: Sequence[torch.Tensor | None],
    expected: Sequence[torch.Tensor | None],
    perturbed: Sequence[torch.Tensor | None],
) -> str | None:
    """Return how a list of results differs from the expected one, or None if it agrees; a None tensor means zeros.

    Args:
        actual, expected: the same results by two implementations.
        perturbed: the expected results for arguments perturbed by about one rounding. Their distance from ``expected``
            measures the conditioning of the problem, and so how far apart correct results may be.
    """
    checked, sizes = [], []
    for index, (have, want, other) in enumerate(zip(actual, expected, perturbed, strict=True)):
        like = next((t for t in (have, want, other) if t is not None), None)
        if like is None or not like.is_floating_point() or not like.numel():
            continue
        if any(t is not None and t.shape != like.shape for t in (have, want, other)):
            return f"result {index} has a shape other than the reference's"
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        have, want, other = (
            torch.zeros_like(like, dtype=wide) if t is None else t.to(wide) for t in (have, want, other)
        )
        checked.append((index, torch.finfo(like.dtype).eps, like.numel() >= _MANY))
        norms = [torch.linalg.vector_norm(t) for t in (have - want, other - want, want)]
        sizes.append(torch.stack([*norms, want.abs().amax()]).double())
    if not sizes:
        return None
    # While another thread captures a CUDA graph, reading from the device is an error.
    with capture_lock:
        distances: list[list[float]] = torch.stack(sizes).tolist()
    for (index, eps, many), (distance, slack, size, largest) in zip(checked, distances, strict=True):
        bound = _ARGUMENT_ROUNDINGS * slack + _RESULT_ROUNDINGS * eps * size + _KINKS**0.5 * largest * many
        # A result that one rounding changes by a tenth is a sum of values that cancel, such as the gradient of a bias
        # before a norm. Such a result only has to be finite. If the reference itself overflows, nothing is checked.
        bound = bound if slack < 0.1 * size else math.inf
        if math.isfinite(size + slack) and not (distance <= bound and math.isfinite(distance)):
            off = distance / size if size else math.inf
            return f"wrong values: result {index} differs from the reference's by {off:.2g} of its norm"
    return None


def random_like(value: Any, perturbed: bool = False) -> Any:
    """Return a tensor with the shape, strides and properties of ``value`` and fixed random values in [0, 1).

    Values other than tensors are returned unchanged.

    Args:
        perturbed: multiply each value by a random factor within one rounding of 1.
    """
    if not isinstance(value, torch.Tensor):
        return value
    # A separate generator: measuring must not change the random numbers that a program draws.
    generator = torch.Generator(value.device).manual_seed(0)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride())) if value.numel() else 0
    memory = torch.empty(extent, dtype=value.dtype, device=value.device).uniform_(generator=generator)
    if perturbed and value.dtype in _ROUNDING:
        rounding = _ROUNDING[value.dtype]
        memory.mul_(
            torch.empty_like(memory, dtype=torch.float32).uniform_(1 - rounding, 1 + rounding, generator=generator)
        )
    return memory.as_strided(value.shape, value.stride()).requires_grad_(value.requires_grad)


def _time_ms(device: torch.device, work: Callable[[], Any]) -> float:
    if device.type != "cuda":
        return _median_ms(work, time.perf_counter, lambda: None)
    with torch.cuda.device(device):
        recorded = _as_graph(device, work)
        # Synchronizing here would invalidate another thread's capture, and its work would disturb these times.
        with capture_lock:
            return _median_ms(recorded, time.perf_counter, torch.cuda.synchronize)


def _as_graph(device: torch.device, work: Callable[[], Any]) -> Callable[[], Any]:
    """Return the work as a CUDA graph, whose time excludes Python's launch overhead, or unchanged if capture fails."""
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
    calls = int(min(_MAX_CALLS, max(1, _ROUND_MS / max(round_ms(1), 1e-3))))
    return statistics.median(round_ms(calls) for _ in range(_ROUNDS))
