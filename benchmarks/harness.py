"""Compare providers of the same work: check that their results agree, then time them in alternation.

Ratios are formed within a round, in which every provider runs once, and summarized afterwards: a machine that slows
down half-way changes every time but hardly a ratio. Other work on the machine at the same time spoils both.
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

EAGER = "eager"
TUNED = "eager, tuned by hand"
COMPILED = "torch.compile"
GAN_FAST = "gan_fast"

WARM_UP_ROUNDS = 3
MIN_ROUNDS = 11
MIN_SAMPLE_MS = 5.0
# A ratio is stable where its quartiles span less than this share of its median.
STABLE_SPREAD = 0.15
# How often an unstable case is measured again, each time with as many rounds as at first.
MAX_REPEATS = 2
# Raised where torch.compile does not work: no C++ compiler, or an unsupported op or construct.
CANNOT_COMPILE = (TorchDynamoException, CppCompileError, InvalidCxxCompiler)


class WrongResultError(RuntimeError):
    """A provider's results differ from the baseline's, so its time means nothing."""


@dataclass(frozen=True)
class Case:
    """One piece of work and its providers.

    Args:
        name: op, passes, shape and dtype.
        providers: provider name to work, or to several variants of it by name, such as memory formats; the variant that
            is quickest during warm-up is measured. The first provider is the baseline of results and ratios. Work
            returns its results by name. Only the results of its first call are compared, so work may change its state.
        tolerance: largest allowed ``||result - baseline|| / ||baseline||``. It bounds the norm, not single elements: a
            value that rounds to the other side of an activation's kink changes one element of a gradient completely.
        device: where the work runs.
        unavailable: provider name to the reason why the provider cannot do this work.
    """

    name: str
    providers: Mapping[str, Work | Mapping[str, Work]]
    tolerance: float
    device: torch.device
    unavailable: Mapping[str, str] | None = None


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return torch.compile of a function for fixed shapes. It compiles in the first call, which is never timed."""
    return torch.compile(function, dynamic=False, **options)


def forward_backward(forward: Callable[[], Tensor], leaves: Mapping[str, Tensor], grad: Tensor | None = None) -> Work:
    """Return the work of one forward and backward pass, including the reset of gradients, as in a training step.

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


@dataclass
class Checked:
    """What :func:`check` found, by provider: working variants, the reason if there are none, the largest distance."""

    variants: dict[str, dict[str, Work]]
    unavailable: dict[str, str]
    distances: dict[str, float]


def check(case: Case, seed: int = 0) -> Checked:
    """Run every variant of every provider once and compare its results with the baseline's.

    A provider is unavailable where torch.compile fails on all its variants.

    Raises:
        WrongResultError: a result is missing, has another shape or dtype, or differs by more than the tolerance.
    """
    found = Checked({}, dict(case.unavailable or {}), {})
    expected: dict[str, Tensor] = {}
    for provider, works in case.providers.items():
        for variant, work in works.items() if isinstance(works, Mapping) else (("", works),):
            torch.manual_seed(seed)
            try:
                results = {key: value.detach().clone() for key, value in work().items()}
            except CANNOT_COMPILE as error:
                found.unavailable[provider] = str(error).strip().splitlines()[0]
                continue
            expected = expected or results
            distance = compare(f"{case.name}: {provider} {variant}".rstrip(), results, expected, case.tolerance)
            found.distances[provider] = max(distance, found.distances.get(provider, 0.0))
            found.variants.setdefault(provider, {})[variant] = work
        if provider in found.variants:
            found.unavailable.pop(provider, None)
    return found


def compare(label: str, results: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> float:
    """Return the largest ``||result - expected|| / ||expected||`` of all results.

    Raises:
        WrongResultError: a result is missing, has another shape or dtype, or differs by more than the tolerance.
    """
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
        relative = distance / norm if norm else distance
        # The comparison is also false for NaN.
        if not distance <= tolerance * norm:
            raise WrongResultError(
                f"{label}: expected {key} within {tolerance:g} of the baseline's norm, got {relative:.3g}"
            )
        largest = max(largest, relative)
    return largest


def time_ms(work: Work, repeats: int, device: torch.device) -> float:
    """Run work ``repeats`` times and return the mean time in ms."""
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        # Wait for the previous provider's work, so that the time includes the first launch and nothing else.
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


class Measurement:
    """Check a case, choose each provider's quickest variant, and time the providers in rounds.

    The constructor compiles, checks and warms up; none of this is timed. Call :meth:`run_round` ``rounds`` times, then
    :meth:`repeat_until_stable`, then :meth:`figures`.

    Args:
        case: checked before anything is timed.
        seconds: time for all rounds together; at least ``MIN_ROUNDS`` are taken, however long they last.
        seed: of the inputs and of the order within each round.

    Raises:
        WrongResultError: see :func:`check`.
    """

    def __init__(self, case: Case, seconds: float = 3.0, seed: int = 0) -> None:
        started = time.perf_counter()
        self.case = case
        checked = check(case, seed)
        self.unavailable, self.distances = checked.unavailable, checked.distances
        self._order = random.Random(seed)
        self.variants_ms = {
            provider: {variant: self._best_ms(work) for variant, work in variants.items()}
            for provider, variants in checked.variants.items()
        }
        self.chosen = {provider: min(ms, key=ms.__getitem__) for provider, ms in self.variants_ms.items()}
        self.providers = {provider: checked.variants[provider][name] for provider, name in self.chosen.items()}
        self.repeats = {provider: _repeats(self.variants_ms[provider][name]) for provider, name in self.chosen.items()}
        self._samples_ms: dict[str, list[float]] = {name: [] for name in self.providers}
        self.setup_s = time.perf_counter() - started
        started = time.perf_counter()
        self.run_round()
        self.rounds = max(MIN_ROUNDS, int(seconds / max(time.perf_counter() - started, 1e-6)))
        self.measurements = 1
        self._clear()

    def _best_ms(self, work: Work) -> float:
        repeats = _repeats(time_ms(work, 1, self.case.device))
        return min(time_ms(work, repeats, self.case.device) for _ in range(WARM_UP_ROUNDS))

    def _clear(self) -> None:
        for samples in self._samples_ms.values():
            samples.clear()

    def run_round(self) -> None:
        """Time each provider once. The order is random, so that no provider always follows the same one."""
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

    def is_stable(self) -> bool:
        """Whether the ratio of every provider's time to the reference's time is stable over the rounds so far."""
        return all(stable(quartiles(ratios)) for ratios in self._ratios().values())

    def repeat_until_stable(self, seconds: float = math.inf) -> float:
        """Measure all rounds again while a ratio is unstable, at most ``MAX_REPEATS`` times; return the time it took.

        The rounds measured before are discarded as a whole, never singly: dropping only the slow ones would bias the
        result. If the last measurement is unstable, too, it is kept and reported as such.

        Args:
            seconds: no repeat begins after this time.
        """
        started = time.perf_counter()
        while not self.is_stable() and self.measurements <= MAX_REPEATS and time.perf_counter() - started < seconds:
            self._clear()
            self.measurements += 1
            for _ in range(self.rounds):
                self.run_round()
        return time.perf_counter() - started

    def _ratios(self) -> dict[str, np.ndarray]:
        """Time of each other provider / time of gan_fast (where it is absent: of the baseline), by round."""
        samples = {name: np.array(ms) for name, ms in self._samples_ms.items()}
        reference = GAN_FAST if GAN_FAST in samples else next(iter(samples))
        return {name: ms / samples[reference] for name, ms in samples.items() if name != reference}

    def figures(self) -> dict[str, Any]:
        """Summarize the last measurement as plain values for JSON.

        Returns:
            case, tolerance, rounds, measurements (how often the rounds were taken), setup_s, unavailable (provider to
            reason), baseline, and providers: each with time_ms, speedup (baseline's time / this provider's time),
            gan_fast_speedup (this provider's time / gan_fast's time), all as quartiles over rounds; variant and
            variants_ms (best warm-up times) where there are several; peak_memory_mib (see
            :func:`benchmarks.memory.peak_mib`) and distance (see :func:`check`).
        """
        samples = {name: np.array(ms) for name, ms in self._samples_ms.items()}
        baseline = next(iter(samples))
        providers: dict[str, dict[str, Any]] = {}
        for name, ms in samples.items():
            providers[name] = {"time_ms": quartiles(ms), "speedup": quartiles(samples[baseline] / ms)}
            if GAN_FAST in samples:
                providers[name]["gan_fast_speedup"] = quartiles(ms / samples[GAN_FAST])
            if len(self.variants_ms[name]) > 1:
                providers[name]["variant"] = self.chosen[name]
                providers[name]["variants_ms"] = {key: significant(v) for key, v in self.variants_ms[name].items()}
            providers[name]["distance"] = significant(self.distances[name])
            providers[name]["peak_memory_mib"] = significant(peak_mib(self.providers[name], self.case.device))
        return {
            "case": self.case.name,
            "tolerance": self.case.tolerance,
            "rounds": len(samples[baseline]),
            "measurements": self.measurements,
            "setup_s": significant(self.setup_s),
            "unavailable": self.unavailable,
            "baseline": baseline,
            "providers": providers,
        }


def _repeats(ms: float) -> int:
    """Return how often short work runs within a sample.

    A sample must be long compared with the clock, the loop and the caches that the previous provider left cold.
    """
    return max(1, math.ceil(MIN_SAMPLE_MS / max(ms, 1e-6)))


def quartiles(samples: np.ndarray) -> dict[str, float]:
    q1, median, q3 = (significant(value) for value in np.percentile(samples, (25, 50, 75)))
    return {"q1": q1, "median": median, "q3": q3}


def stable(figure: Mapping[str, float]) -> bool:
    """Whether the quartiles span less than ``STABLE_SPREAD`` of the median."""
    return figure["q3"] - figure["q1"] < STABLE_SPREAD * figure["median"]


def significant(value: float, digits: int = 4) -> float:
    """Drop the digits that no timing supports."""
    return float(f"{value:.{digits}g}")
