"""Work on a GPU recorded as a CUDA graph, undone without a trace where that fails."""

from __future__ import annotations

import contextlib
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

# CUDA allows one capture at a time in a process, in which no thread may wait for the device. A capture also changes two
# settings of the whole process and restores them, which works only if another capture cannot begin in between.
one_at_a_time = threading.RLock()

# Graphs whose capture did not end.
_failed: list[torch.cuda.CUDAGraph] = []


class CudaGraphs:
    """CUDA's graphs, recorded on a stream of their own or on the one given.

    Args:
        device: the GPU.
        stream: to record on.
        shared_pool: the graphs use the same memory. Their results must be read before another of them is replayed.
    """

    def __init__(
        self, device: torch.device, stream: torch.cuda.Stream | None = None, *, shared_pool: bool = False
    ) -> None:
        self._shared_pool = shared_pool
        self._pool: Any = None
        self._device = torch.device("cuda", torch.cuda.current_device()) if device.index is None else device
        self._stream = stream or torch.cuda.Stream(self._device)

    def warm_up(self, function: Callable[[], Any]) -> Any:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                return function()
        finally:
            current.wait_stream(self._stream)

    def capture(
        self, function: Callable[[], Any], generator: torch.Generator | None = None
    ) -> tuple[Callable[[], None], Any]:
        with one_at_a_time, _without_collections():
            return self._capture(function, generator)

    def _capture(
        self, function: Callable[[], Any], generator: torch.Generator | None
    ) -> tuple[Callable[[], None], Any]:
        graph = torch.cuda.CUDAGraph()
        generators = [torch.cuda.default_generators[self._device.index]]
        if generator is not None:
            graph.register_generator_state(generator)
            generators.append(generator)
        states = [g.get_state() for g in generators]
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        if self._shared_pool and self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        ended = False
        try:
            with torch.cuda.stream(self._stream):
                # Other threads may go on allocating: a loader of the user's, for one.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    values = _without_synchronising(function)
                except BaseException:
                    # A capture that CUDA has given up ends with an error that says less.
                    with contextlib.suppress(RuntimeError):
                        graph.capture_end()
                        ended = True
                    raise
                graph.capture_end()
                ended = True
        except BaseException:
            if not ended:
                self._pool = None
                # The allocator may refer to the graph as long as the process lives, also when this object is gone. A
                # generator may stay in the capture: it goes on from a state that never was in one.
                _failed.append(graph)
                for g, state in zip(generators, states, strict=True):
                    fresh = torch.Generator(self._device)
                    fresh.set_state(state)
                    g.graphsafe_set_state(fresh.graphsafe_get_state())
            raise
        return graph.replay, values


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Pause automatic garbage collection: destroying another graph during a capture would spoil the capture.

    A collection before each capture would do as well, but takes some 100 ms where much is imported, and a user's first
    step makes dozens of captures.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _without_synchronising(function: Callable[[], Any]) -> Any:
    """Run ``function``; an error where the host would wait, before CUDA sees it and gives up the capture."""
    # Of the whole process: a thread of the user's that waits for the device just now is told so too.
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # It says that not every synchronisation is found; CUDA finds the rest.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        return function()
    finally:
        torch.cuda.set_sync_debug_mode(before)
