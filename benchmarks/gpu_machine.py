"""Where and how the GPU suite measures: the only module that distinguishes a GPU from a dry run on a CPU.

Kernels are timed inside CUDA graphs, so that the cost of a launch to the host does not count. A graph contains several
copies of the work, each on separate memory, which together exceed the cache.
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

# Larger than the second-level cache of any GPU, in bytes.
BEYOND_CACHE = 512 * 2**20
MAX_COPIES = 48
# Length of a sample, so that the launch of a graph is a small part of it.
SAMPLE_MS = 1.0
# A transposed layer, a plain one, and one without a norm.
DRY_LAYERS = ("G2", "D2", "G5")


class SkippedError(RuntimeError):
    """A provider was not measured; the message says why."""


class CrashError(RuntimeError):
    """A provider that passed its check failed while it was timed; the cause is its error."""

    def __init__(self, provider: str) -> None:
        super().__init__(provider)
        self.provider = provider


@dataclasses.dataclass(frozen=True)
class GpuCase:
    """The same work by several providers.

    Args:
        name: op, passes and shape.
        providers: name to a function that returns copies of the work, each on separate memory. The first provider is
            the baseline of results and ratios.
        tolerance: largest ``||result - baseline|| / ||baseline||`` of any result of the first copy.
        bytes: least number of bytes to move; 0 omits the bandwidth.
        flop: least number of operations; 0 omits the rate.
    """

    name: str
    providers: Mapping[str, Callable[[], Sequence[Work]]]
    tolerance: float
    bytes: int = 0
    flop: int = 0


@dataclasses.dataclass(frozen=True)
class Replay:
    """Replay a graph, and keep its work alive: the graph reads memory of tensors that the work references."""

    replay: Work
    work: Work

    def __call__(self) -> None:
        self.replay()


class Machine:
    """A GPU, or a CPU in a dry run: small sizes, no graphs, and times that mean nothing.

    Args:
        device: where the work runs; a CPU makes the run dry.
        seconds: time limit of the part.
        without: providers to leave out because they broke the device in an earlier run.
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
        # Triton's interpreter truncates to bfloat16 instead of rounding, and small tensors average little of it out.
        self.leniency = 4.0 if self.dry else 1.0

    @property
    def backends(self) -> tuple[str, str]:
        """Names of gan_fast's backends with kernels for this device: Triton and the C++ module."""
        return "triton", self.device.type

    @property
    def left_s(self) -> float:
        return self.seconds - (time.monotonic() - self.started)

    def size(self, wanted: int, dry: int) -> int:
        return min(wanted, dry) if self.dry else wanted

    def layers(self, *names: str) -> list[roofline.Layer]:
        """Return layers of DCGAN-64; in a dry run one of each kind, with few channels and small maps."""
        layers = [layer for name in names for layer in roofline.LAYERS if layer.name == name]
        return [_shrunk(layer) for layer in layers if layer.name in DRY_LAYERS] if self.dry else layers

    def some(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return all values; in a dry run the first."""
        return values[:1] if self.dry else values

    def copies(self, bytes_per_copy: int) -> int:
        """Return how many copies of the work exceed the cache together."""
        return 1 if self.dry else min(MAX_COPIES, max(3, math.ceil(BEYOND_CACHE / bytes_per_copy)))

    def compile(self, function: Callable[..., Any], mode: str = "default") -> Callable[..., Any]:
        """Return torch.compile for one size; a dry run leaves out inductor, which takes minutes on a CPU."""
        if self.dry:
            return torch.compile(function, dynamic=False, backend="eager")
        return torch.compile(function, dynamic=False, mode=mode)

    def stream(self) -> AbstractContextManager[Any]:
        """Return a context with a separate stream: capture needs one, and backward runs in its forward's stream."""
        return contextlib.nullcontext() if self.dry else torch.cuda.stream(torch.cuda.Stream(self.device))

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize(self.device)

    def alive(self) -> bool:
        """Whether the device still works: after an illegal access every later call in this process fails."""
        try:
            self.synchronize()
            return torch.ones(1, device=self.device).item() == 1
        except RuntimeError:
            return False

    def capture(self, copies: Sequence[Work]) -> Work:
        """Return work that runs all copies: one CUDA graph, or a loop in a dry run."""

        def run_all() -> list[Any]:
            return [copy() for copy in copies]

        if self.dry:
            return run_all
        # Kernels must be compiled and algorithms chosen before the capture.
        for copy in copies[:3]:
            copy()
        return self.record(run_all)[0]

    def record(self, work: Work) -> tuple[Work, Any]:
        """Return a replay of ``work`` and its results. On a GPU the results are empty until the first replay."""
        if self.dry:
            return work, work()
        # All captures share this object, which keeps alive what a failed capture has left behind.
        self._graphs = self._graphs or _graphs_here(self.device)
        replay, results = self._graphs.capture(work, torch.Generator(self.device))
        return Replay(replay, work), results

    def time_ms(self, work: Work, repeats: int) -> float:
        """Run work ``repeats`` times and return the mean time in ms."""
        if self.dry:
            return harness.time_ms(work, repeats, self.device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The device runs this call while the host queues the others, so that it never waits for a launch.
        work()
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats

    def time_in_rounds(self, providers: Mapping[str, Work], sample_ms: float = SAMPLE_MS) -> dict[str, np.ndarray]:
        """Time providers in alternation, in samples of at least ``sample_ms``; return the ms of each by round.

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
            # A random order, so that no provider always follows the same one.
            self._order.shuffle(names)
            for name in names:
                samples[name].append(time_ms(name, repeats[name]))
        return {name: np.array(ms) for name, ms in samples.items()}

    def allocated(self) -> tuple[int, int]:
        """Return the bytes of tensors and the bytes reserved by the allocator, after it has released unused memory."""
        if self.dry:
            return 0, 0
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device)

    def reset_peak(self) -> None:
        if not self.dry:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> tuple[int, int]:
        """Return the largest bytes of tensors and the largest bytes reserved since the last reset."""
        if self.dry:
            return 0, 0
        return torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)


def _graphs_here(device: torch.device) -> CudaGraphs:
    # Capture on the part's stream: backward queues its kernels in the stream of the forward pass, which ran earlier.
    return CudaGraphs(device, torch.cuda.current_stream(device))


def _shrunk(layer: roofline.Layer) -> roofline.Layer:
    smaller = min(layer.in_size, layer.out_size)
    scale = max(1, smaller // 2)
    return dataclasses.replace(
        layer, c_in=min(layer.c_in, 8), c_out=min(layer.c_out, 8), in_size=max(1, layer.in_size // scale),
        out_size=max(1, layer.out_size // scale),
    )  # fmt: skip


def reason(error: Exception) -> dict[str, str]:
    """Return the record of a provider that could not run: skipped if that is no fault, else failed."""
    absent = "to be available, got:" in str(error)
    if isinstance(error, SkippedError) or absent or isinstance(error, harness.CANNOT_COMPILE):
        return {"skipped": (str(error).strip() or type(error).__name__).splitlines()[0]}
    return {"failed": "".join(traceback.format_exception(error))[-1500:]}


def by_index(results: Any) -> dict[str, Tensor]:
    results = results if isinstance(results, (tuple, list)) else (results,)
    return {str(index): value.detach() for index, value in enumerate(results)}


def measure(machine: Machine, case: GpuCase) -> Record:
    """Check the results of each provider and time the providers in alternation.

    Returns:
        case, baseline, and providers: each with time_ms and speedup (baseline's time / this provider's time) as
        quartiles over rounds, distance from the baseline's results, and gb_per_s and tflop_per_s if the case has bytes
        and operations; or with skipped or failed, the reason. fatal names a provider that broke the device.
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
            found["skipped"] = "it broke the device in an earlier run"
            continue
        try:
            copies = make()
            results = by_index(copies[0]())
            found["distance"] = harness.significant(
                harness.compare(f"{case.name}: {name}", results, expected or results, tolerance)
            )
            replays[name], counts[name] = machine.capture(copies), len(copies)
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
    samples = {name: ms / counts[name] for name, ms in time_survivors(machine, record, replays).items()}
    add_times(record, samples, case.bytes, case.flop)
    return record


def time_survivors(
    machine: Machine, record: Record, works: dict[str, Any], sample_ms: float = SAMPLE_MS
) -> dict[str, np.ndarray]:
    """Time all of ``works`` by :meth:`Machine.time_in_rounds`; remove one that crashes and time the others again.

    If the crash broke the device, the record's ``fatal`` names the provider and there are no times.
    """
    while works:
        try:
            return machine.time_in_rounds(works, sample_ms)
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


def measure_all(machine: Machine, cases: Iterator[GpuCase]) -> Iterator[Record]:
    """Measure cases one after the other; stop at one that breaks the device."""
    for case in cases:
        record = measure(machine, case)
        yield record
        if "fatal" in record:
            return
