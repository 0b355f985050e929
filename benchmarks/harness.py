"""Compare providers of one piece of work: equal results first, then times taken in turns.

A ratio between two providers is formed within a round, where both met the same machine, and only then summarised: a
machine that slows down half-way changes every time and hardly a ratio. Other work at the same time spoils both.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

from benchmarks.memory import peak_mib

Work = Callable[[], Mapping[str, Tensor]]

OURS = "gan_fast"
WARM_UP_ROUNDS = 3
MIN_ROUNDS = 15
MIN_SAMPLE_MS = 5.0
# What torch.compile raises where it cannot serve here: no C++ compiler, an op or a construct that it does not know.
CANNOT_COMPILE = (TorchDynamoException, CppCompileError, InvalidCxxCompiler)


class WrongResultError(RuntimeError):
    """A provider does not compute what the baseline computes: its time means nothing."""


@dataclass(frozen=True)
class Case:
    """One setup and the providers that do its work.

    Args:
        name: what is done on what: op, passes, shape, dtype, layout.
        providers: name to work. The first is the baseline of results and ratios; ours is called ``OURS``. Work returns
            its results by name; only those of its first call are compared, so that work may change its own state.
        tolerance: largest ``||result - baseline|| / ||baseline||`` of any result. A norm, not the largest element: a
            value that rounds to the other side of an activation's kink changes one element of a gradient by all of it.
        device: where the work runs.
    """

    name: str
    providers: Mapping[str, Work]
    tolerance: float
    device: torch.device


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def forward_backward(forward: Callable[[], Tensor], leaves: Mapping[str, Tensor], grad: Tensor | None = None) -> Work:
    """Make the work of one forward and backward pass, clearing gradients included, as in a training step.

    Args:
        forward: computes the output from ``leaves``.
        leaves: tensors whose gradients are results, by name.
        grad: gradient of the output; None for a scalar.
    """
    tensors = tuple(leaves.values())

    def work() -> Mapping[str, Tensor]:
        for tensor in tensors:
            tensor.grad = None
        output = forward()
        output.backward(grad)
        return {"output": output, **{f"{name}.grad": tensor.grad for name, tensor in leaves.items()}}

    return work


def check(case: Case, seed: int = 0) -> tuple[dict[str, Work], dict[str, str], dict[str, float]]:
    """Run every provider once and compare its results with the baseline's.

    Returns:
        The providers that work here; for each that torch.compile cannot serve the reason; for each that works the
        largest distance of a result, ``||result - baseline|| / ||baseline||``.

    Raises:
        WrongResultError: a result is missing, of another shape or dtype, or further off than the tolerance.
    """
    working: dict[str, Work] = {}
    skipped: dict[str, str] = {}
    distances: dict[str, float] = {}
    expected: dict[str, Tensor] = {}
    for name, work in case.providers.items():
        torch.manual_seed(seed)
        try:
            results = {key: value.detach().clone() for key, value in work().items()}
        except CANNOT_COMPILE as error:
            skipped[name] = str(error).strip().splitlines()[0]
            continue
        expected = expected or results
        distances[name] = compare(f"{case.name}: {name}", results, expected, case.tolerance)
        working[name] = work
    return working, skipped, distances


def compare(label: str, results: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> float:
    """Return the largest distance of a result, ``||result - expected|| / ||expected||``; beyond the tolerance raise."""
    if results.keys() != expected.keys():
        raise WrongResultError(f"{label}: expected results {sorted(expected)}, got {sorted(results)}")
    largest = 0.0
    for key, want in expected.items():
        got = results[key]
        if (got.shape, got.dtype) != (want.shape, want.dtype):
            raise WrongResultError(
                f"{label}: expected {key} {tuple(want.shape)} {want.dtype}, got {tuple(got.shape)} {got.dtype}"
            )
        distance = torch.linalg.vector_norm(got.double() - want.double()).item()
        norm = torch.linalg.vector_norm(want.double()).item()
        # Written so that NaN on either side is refused.
        if not distance <= tolerance * norm:
            raise WrongResultError(
                f"{label}: expected {key} within {tolerance:g} of the baseline's norm, got a distance of {distance:.3g}"
            )
        largest = max(largest, distance / norm if norm else 0.0)
    return largest


def time_ms(work: Work, repeats: int, device: torch.device) -> float:
    """Time ``repeats`` runs in one go; return ms per run."""
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        # Nothing of the provider before may still be running, and no launch may be left out.
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(repeats):
            work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / repeats
    start_ns = time.perf_counter_ns()
    for _ in range(repeats):
        work()
    return (time.perf_counter_ns() - start_ns) / repeats / 1e6


class Race:
    """The providers of a checked case, taking turns.

    Args:
        case: checked here, before anything is timed.
        seconds: time for all rounds together; at least ``MIN_ROUNDS`` are taken, however long they are.
        seed: of the order within each round.

    Raises:
        WrongResultError: see :func:`check`.
    """

    def __init__(self, case: Case, seconds: float = 3.0, seed: int = 0) -> None:
        self.case = case
        self.providers, self.skipped, self.distances = check(case, seed)
        self._order = random.Random(seed)
        self._samples_ms: dict[str, list[float]] = {name: [] for name in self.providers}
        # Short work is repeated until a sample is well above the cost of the clock, of the loop, and of the caches that
        # the provider before it left cold.
        self.repeats = dict.fromkeys(self.providers, 1)
        for _ in range(WARM_UP_ROUNDS):
            self.turn()
        self.repeats = {name: math.ceil(MIN_SAMPLE_MS / min(ms)) for name, ms in self._samples_ms.items()}
        start = time.perf_counter()
        self.turn()
        self.rounds = max(MIN_ROUNDS, int(seconds / (time.perf_counter() - start)))
        for samples in self._samples_ms.values():
            samples.clear()

    def turn(self) -> None:
        """Time each provider once, in an order drawn anew, so that no one always follows the same one."""
        names = list(self.providers)
        self._order.shuffle(names)
        collecting = gc.isenabled()
        gc.disable()
        try:
            for name in names:
                sample_ms = time_ms(self.providers[name], self.repeats[name], self.case.device)
                self._samples_ms[name].append(sample_ms)
        finally:
            if collecting:
                gc.enable()

    def figures(self) -> dict[str, Any]:
        """Summarise the rounds so far, as plain values that JSON can hold.

        Returns:
            case, tolerance, rounds, skipped (provider to reason), baseline, and providers: each with time_ms, speedup
            (time of the baseline / time of this one), ours_speedup (time of this one / time of ours; where ours takes
            part), all three as quartiles over rounds, peak_memory_mib (see :func:`benchmarks.memory.peak_mib`) and
            distance (see :func:`check`).
        """
        samples = {name: np.array(ms) for name, ms in self._samples_ms.items()}
        baseline = next(iter(samples))
        providers: dict[str, dict[str, Any]] = {}
        for name, ms in samples.items():
            providers[name] = {"time_ms": quartiles(ms), "speedup": quartiles(samples[baseline] / ms)}
            if OURS in samples:
                providers[name]["ours_speedup"] = quartiles(ms / samples[OURS])
            providers[name]["distance"] = significant(self.distances[name])
            providers[name]["peak_memory_mib"] = significant(peak_mib(self.providers[name], self.case.device))
        return {
            "case": self.case.name,
            "tolerance": self.case.tolerance,
            "rounds": len(samples[baseline]),
            "skipped": self.skipped,
            "baseline": baseline,
            "providers": providers,
        }


def quartiles(samples: np.ndarray) -> dict[str, float]:
    q1, median, q3 = (significant(value) for value in np.percentile(samples, (25, 50, 75)))
    return {"q1": q1, "median": median, "q3": q3}


def significant(value: float, digits: int = 4) -> float:
    """Drop the digits that no timing supports."""
    return float(f"{value:.{digits}g}")
