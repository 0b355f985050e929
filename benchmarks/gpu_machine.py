"""Where the GPU suite runs and how it takes times: the one place that tells a GPU from a dry run on a CPU.

Kernels are timed inside CUDA graphs, so that what a launch costs the host does not count. A graph holds the same work
several times, each on memory of its own, more of it than the cache holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness, roofline
from gan_fast.capture import CudaGraphs

Work = Callable[[], Any]
Record = dict[str, Any]

# Larger than any GPU's second-level cache: what is rotated through this much memory is not in it.
BEYOND_CACHE = 512 * 2**20
MOST_TURNS = 48
# Of a sample, so that the launch of a graph is a small part of it.
SAMPLE_MS = 1.0
# Transposed, plain, without a norm.
DRY_LAYERS = ("G2", "D2", "G5")


class SkippedError(RuntimeError):
    """Not measured, and why."""


class CrashError(RuntimeError):
    """A provider that had worked failed while it was timed; the cause has its error."""

    def __init__(self, provider: str) -> None:
        super().__init__(provider)
        self.provider = provider


@dataclasses.dataclass(frozen=True)
class TestCase:
    """The same work by several providers.

    Args:
        name: what is done on what.
        providers: name to a function that makes the provider's turns: the same work, each on memory of its own. The
            first provider is the baseline of results and ratios.
        tolerance: largest ``||result - baseline|| / ||baseline||`` of any result of the first turn.
        bytes: what must move at least; 0 where no bandwidth is told.
        flop: what must be computed at least; 0 where no rate is told.
    """

    name: str
    providers: Mapping[str, Callable[[], Sequence[Work]]]
    tolerance: float
    bytes: int = 0
    flop: int = 0


@dataclasses.dataclass(frozen=True)
class Replay:
    """Replay a graph of some work, and keep the work: a graph reads the memory of tensors that the work holds."""

    replay: Work
    work: Work

    def __call__(self) -> None:
        self.replay()


class Machine:
    """A GPU, or a CPU that stands in for it in a dry run: small sizes, no graphs, times that mean nothing.

    Args:
        device: where the work runs; a CPU makes the run dry.
        seconds: how long the part may take.
        without: providers that are left out, since they broke the device before.
    """

    def __init__(self, device: torch.device, seconds: float = math.inf, without: Collection[str] = ()) -> None:
        self.device = device
        self.dry = device.type == "cpu"
        self.without = frozenset(without)
        self.started = time.monotonic()
        self.seconds = seconds
        self.rounds = 1 if self.dry else 20
        self._order = random.Random(0)
        self._graphs: CudaGraphs | None = None
        # Triton's interpreter cuts bfloat16 off instead of rounding, and of a few values little averages out.
        self.leniency = 4.0 if self.dry else 1.0

    @property
    def backends(self) -> tuple[str, str]:
        """Kernels of ours that are asked for by name: Triton's and the native module's for this device."""
        return "triton", self.device.type

    @property
    def left_s(self) -> float:
        return self.seconds - (time.monotonic() - self.started)

    def size(self, wanted: int, dry: int) -> int:
        return min(wanted, dry) if self.dry else wanted

    def layers(self, *names: str) -> list[roofline.Layer]:
        """Layers of DCGAN-64; in a dry run one of each kind, with few channels and small maps."""
        layers = [layer for name in names for layer in roofline.LAYERS if layer.name == name]
        return [_shrunk(layer) for layer in layers if layer.name in DRY_LAYERS] if self.dry else layers

    def some(self, values: Sequence[Any]) -> Sequence[Any]:
        """All of what there is to measure; in a dry run the first."""
        return values[:1] if self.dry else values

    def turns(self, bytes_a_turn: int) -> int:
        """How many turns together are more than a cache holds."""
        return 1 if self.dry else min(MOST_TURNS, max(3, math.ceil(BEYOND_CACHE / bytes_a_turn)))

    def compile(self, function: Callable[..., Any], mode: str = "default") -> Callable[..., Any]:
        """torch.compile for one size; in a dry run without the compiler behind it, which takes minutes on a CPU."""
        if self.dry:
            return torch.compile(function, dynamic=False, backend="eager")
        return torch.compile(function, dynamic=False, mode=mode)

    def stream(self) -> AbstractContextManager[Any]:
        """A part runs in a stream of its own: capture needs one, and backward runs where its forward did."""
        return contextlib.nullcontext() if self.dry else torch.cuda.stream(torch.cuda.Stream(self.device))

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize(self.device)

    def alive(self) -> bool:
        """Whether the device still answers: after an illegal access nothing in this process runs any more."""
        try:
            self.synchronize()
            return torch.ones(1, device=self.device).item() == 1
        except RuntimeError:
            return False

    def capture(self, turns: Sequence[Work]) -> Work:
        """Return what runs all turns: one CUDA graph of them, or a loop where there are none."""

        def all_turns() -> list[Any]:
            return [turn() for turn in turns]

        if self.dry:
            return all_turns
        # Kernels are compiled and algorithms chosen before anything is captured.
        for turn in turns[:3]:
            turn()
        return self.record(all_turns)[0]

    def record(self, work: Work) -> tuple[Work, Any]:
        """Return what replays ``work``, and its results, which a replay fills: nothing has run yet on a GPU."""
        if self.dry:
            return work, work()
        # One for all: it holds on to what a capture that CUDA gave up has left behind.
        self._graphs = self._graphs or _graphs_here(self.device)
        replay, results = self._graphs.capture(work, torch.Generator(self.device))
        return Replay(replay, work), results

    def time_ms(self, work: Work, repeats: int) -> float:
        """Time ``repeats`` runs in one go; return ms per run."""
        if self.dry:
            return harness.time_ms(work, repeats, self.device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The device is busy with the first while the host queues the others: no launch is waited for.
        work()
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats

    def race(self, providers: Mapping[str, Work], sample_ms: float = SAMPLE_MS) -> dict[str, np.ndarray]:
        """Time providers in turns, at least ``sample_ms`` at a time; return each one's ms by round.

        Raises:
            CrashError: a provider failed.
        """

        def time_ms(name: str, repeats: int) -> float:
            try:
                return self.time_ms(providers[name], repeats)
            except Exception as error:
                raise CrashError(name) from error

        repeats = {}
        for name in providers:
            once = sample_ms if self.dry else time_ms(name, 1)
            repeats[name] = max(1, math.ceil(sample_ms / max(once, 1e-3)))
        samples: dict[str, list[float]] = {name: [] for name in providers}
        names = list(providers)
        for _ in range(self.rounds):
            # Drawn anew, so that no one always follows the same one.
            self._order.shuffle(names)
            for name in names:
                samples[name].append(time_ms(name, repeats[name]))
        return {name: np.array(ms) for name, ms in samples.items()}

    def allocated(self) -> tuple[int, int]:
        """Bytes of tensors and bytes reserved for them, now; what nothing uses is given back first."""
        if self.dry:
            return 0, 0
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device)

    def forget_peak(self) -> None:
        if not self.dry:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> tuple[int, int]:
        """Largest numbers of bytes since they were forgotten: of tensors, and reserved."""
        if self.dry:
            return 0, 0
        return torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)


def _graphs_here(device: torch.device) -> CudaGraphs:
    # On the part's own stream: backward queues its kernels where the forward did that ran before the capture.
    return CudaGraphs(device, torch.cuda.current_stream(device))


def _shrunk(layer: roofline.Layer) -> roofline.Layer:
    smaller = min(layer.in_size, layer.out_size)
    scale = max(1, smaller // 2)
    return dataclasses.replace(
        layer, c_in=min(layer.c_in, 8), c_out=min(layer.c_out, 8), in_size=max(1, layer.in_size // scale),
        out_size=max(1, layer.out_size // scale),
    )  # fmt: skip


def reason(error: Exception) -> dict[str, str]:
    """A provider's record where it could not run: skipped where that is no fault, else failed."""
    absent = "to be available, got:" in str(error)
    if isinstance(error, SkippedError) or absent or isinstance(error, harness.CANNOT_COMPILE):
        return {"skipped": (str(error).strip() or type(error).__name__).splitlines()[0]}
    return {"failed": "".join(traceback.format_exception(error))[-1500:]}


def named(results: Any) -> dict[str, Tensor]:
    results = results if isinstance(results, (tuple, list)) else (results,)
    return {str(index): value.detach() for index, value in enumerate(results)}


def measure(machine: Machine, case: TestCase) -> Record:
    """Check each provider's results and time them in turns.

    Returns:
        case, baseline, and providers: each with time_ms and speedup (baseline's time / this one's) as quartiles over
        rounds, distance from the baseline's results, gb_per_s and tflop_per_s where the case tells bytes and
        operations; or with skipped or failed, the reason. fatal, a provider's name, where it broke the device.
    """
    record: Record = {"case": case.name, "baseline": None, "providers": {}}
    tolerance = case.tolerance * machine.leniency
    replays: dict[str, Work] = {}
    counts: dict[str, int] = {}
    expected: dict[str, Tensor] = {}
    for name, make in case.providers.items():
        found: dict[str, Any] = {}
        record["providers"][name] = found
        if name in machine.without:
            found["skipped"] = "it broke the device before"
            continue
        try:
            turns = make()
            results = named(turns[0]())
            found["distance"] = harness.significant(
                harness.compare(f"{case.name}: {name}", results, expected or results, tolerance)
            )
            replays[name], counts[name] = machine.capture(turns), len(turns)
            replays[name]()
            machine.synchronize()
        except Exception as error:
            replays.pop(name, None)
            found.clear()
            found.update(reason(error))
            if not machine.alive():
                record["fatal"] = name
                return record
            continue
        if not expected:
            expected, record["baseline"] = results, name
    samples = {name: ms / counts[name] for name, ms in race(machine, record, replays).items()}
    add_times(record, samples, case.bytes, case.flop)
    return record


def race(
    machine: Machine, record: Record, works: dict[str, Any], sample_ms: float = SAMPLE_MS
) -> dict[str, np.ndarray]:
    """Time all that works, as Machine.race; one that crashes leaves ``works`` and the others go on.

    Where the device crashed with it the record's fatal names it, and there are no times.
    """
    while works:
        try:
            return machine.race(works, sample_ms)
        except CrashError as crash:
            name, error = crash.provider, crash.__cause__
            del works[name]
            found = record["providers"][name]
            found.clear()
            found.update(reason(error if isinstance(error, Exception) else crash))
            if not machine.alive():
                record["fatal"] = name
                return {}
            if record["baseline"] == name:
                record["baseline"] = next(iter(works), None)
    return {}


def add_times(record: Record, samples: Mapping[str, np.ndarray], bytes: int = 0, flop: int = 0) -> None:
    for name, ms in samples.items():
        found = record["providers"][name]
        found["time_ms"] = harness.quartiles(ms)
        found["speedup"] = harness.quartiles(samples[record["baseline"]] / ms)
        if bytes:
            found["gb_per_s"] = harness.significant(bytes / found["time_ms"]["median"] / 1e6)
        if flop:
            found["tflop_per_s"] = harness.significant(flop / found["time_ms"]["median"] / 1e9)


def measure_all(machine: Machine, cases: Iterator[TestCase]) -> Iterator[Record]:
    """Measure cases one after the other, and stop where one broke the device."""
    for case in cases:
        record = measure(machine, case)
        yield record
        if "fatal" in record:
            return
