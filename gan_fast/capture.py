"""Record work on a GPU as a CUDA graph, and restore all state if that fails."""

from __future__ import annotations

import contextlib
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

# Held during a capture, and by code that waits for the device. CUDA allows one capture at a time in a process, during
# which no thread may synchronize. A capture also changes two process-wide settings and restores them afterwards.
capture_lock = threading.RLock()

# Graphs whose capture did not end: never freed, since the allocator may refer to them for the rest of the process.
_failed: list[torch.cuda.CUDAGraph] = []


class CudaGraphs:
    """Records CUDA graphs on one stream.

    Args:
        device: the GPU.
        stream: the stream to record on; None creates one.
        shared_pool: let the graphs share memory. Read the results of one before you replay another.
    """

    def __init__(
        self, device: torch.device, stream: torch.cuda.Stream | None = None, *, shared_pool: bool = False
    ) -> None:
        self._shared_pool = shared_pool
        self._pool: Any = None
        self._device = torch.device("cuda", torch.cuda.current_device()) if device.index is None else device
        self._stream = stream or torch.cuda.Stream(self._device)

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` on the stream without recording, and return its result."""
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
        """Record ``function``; return a function that replays the graph, and the result whose memory it rewrites.

        Args:
            generator: a generator that ``function`` draws from, besides the device's default one.
        """
        with capture_lock, _without_collections():
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
                # "thread_local" lets other threads, such as a data loader's, allocate memory during the capture.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    values = _without_synchronizing(function)
                except BaseException:
                    # Ending an invalidated capture raises too, with a less helpful error.
                    with contextlib.suppress(RuntimeError):
                        graph.capture_end()
                        ended = True
                    raise
                graph.capture_end()
                ended = True
        except BaseException:
            if not ended:
                self._pool = None
                _failed.append(graph)
                # The generators may still be in capture mode: give them fresh states with the same numbers.
                for g, state in zip(generators, states, strict=True):
                    fresh = torch.Generator(self._device)
                    fresh.set_state(state)
                    g.graphsafe_set_state(fresh.graphsafe_get_state())
            raise
        return graph.replay, values


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Pause garbage collection: if it destroyed another graph during a capture, the capture would be invalid.

    Collecting before each capture would also work, but takes about 100 ms in a large process, and a first training step
    makes dozens of captures.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _without_synchronizing(function: Callable[[], Any]) -> Any:
    """Run ``function``; raise if it would wait for the device, before CUDA notices and invalidates the capture."""
    # This setting is process-wide: another thread that synchronizes during the capture also gets an error.
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # torch warns that it does not detect every synchronization; CUDA detects the rest.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        return function()
    finally:
        torch.cuda.set_sync_debug_mode(before)
