"""Run a training step as one CUDA graph.

A step is hundreds of small kernels, and the host takes longer to launch them one by one than a GPU takes to run them. A
graph launches all of them with one call, on the same memory, without running Python.
"""

from __future__ import annotations

import logging
import pickle
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.optim import optimizer as optim

from gan_fast import backends, fp32_precision
from gan_fast.capture import CudaGraphs
from gan_fast.train.optimizers import state_containers, state_values
from gan_fast.train.undo import SavedEntries, unexpanded

logger = logging.getLogger("gan_fast")

# Equal iterations run kernel by kernel before one is captured, in which kernels are compiled and libraries choose
# algorithms and allocate memory. The first iteration of a training differs, as it creates the optimizers' moments, so
# the fourth is captured.
WARM_UP_STEPS = 2

_KERNEL_BY_KERNEL = "the training step runs kernel by kernel, not as a CUDA graph"

# How far the first replay may differ from the same step run kernel by kernel, as a share of what the step changes. Such
# differences arise where kernels sum in another order in each run: if a gradient is nearly 0, that can flip the sign of
# Adam's first updates.
_ROUNDING = 0.1

# Iterations in a row without a graph, because something changed again each time, before a warning is logged.
_WARN_AFTER_STEPS = 20


class Graphs(Protocol):
    """The graphs of a device, as :class:`CapturedStep` uses them."""

    def warm_up(self, function: Callable[[], Tensor]) -> Tensor:
        """Run ``function`` now, in the way that prepares for its capture."""
        ...

    def capture(self, function: Callable[[], Tensor], generator: torch.Generator) -> tuple[Callable[[], None], Tensor]:
        """Record the work that ``function`` queues, without running it.

        Args:
            function: queues work that draws from ``generator`` or from the device's default generator.
            generator: each replay advances it as a call of ``function`` would.

        Returns:
            A function that replays the recorded work; the tensor that ``function`` returned, which each replay
            overwrites.

        Raises:
            Exception: the work cannot be recorded. Memory and generators are unchanged.
        """
        ...


def graphs_on(device: torch.device) -> Graphs | None:
    """Return the graphs of a device, None if it has none."""
    return CudaGraphs(device, shared_pool=True) if device.type == "cuda" else None


@dataclass(frozen=True)
class StepState:
    """All that a step reads and writes besides its batches. A graph is valid only while these objects stay the same."""

    models: Sequence[nn.Module]
    """The models that the step runs and trains."""
    average: nn.Module
    """The averaged generator, which the step only writes."""
    optimizers: Sequence[torch.optim.Optimizer]
    objective: object
    counters: Sequence[Tensor]
    """Further tensors that the step reads or writes in place."""
    generator: torch.Generator
    """Source of the latents."""
    buffer_change: str | None = None
    """What the last step did to a buffer that a graph cannot repeat, such as a change of shape."""

    def obstacle(self) -> str | None:
        """Return why the step cannot be captured now, None if it can."""
        if torch.is_anomaly_enabled():
            return "anomaly detection reads every gradient"
        if _has_any_global_hook() or optim._global_optimizer_pre_hooks or optim._global_optimizer_post_hooks:
            return "there are global hooks, which a graph does not call"
        if self.buffer_change is not None:
            return f"a buffer is not the same in each step: {self.buffer_change}"
        for optimizer in self.optimizers:
            if not all(group.get("capturable", True) for group in optimizer.param_groups):
                return f"the {type(optimizer).__name__} was made without capturable=True"
        hooked: list[Any] = [o for o in self.optimizers if o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks]
        for module in (module for model in self.models for module in _modules(model)):
            # This runs in every step, so modules without hooks are passed over quickly, by four empty dicts.
            if (
                module._forward_pre_hooks
                or module._forward_hooks
                or module._backward_hooks
                or module._backward_pre_hooks
            ) and not _has_only_torch_hooks(module):
                hooked.append(module)
            for p in module._parameters.values():
                if p is not None and (p._backward_hooks or p._post_accumulate_grad_hooks):
                    hooked.append(p)
        return f"a {type(hooked[0]).__name__} has hooks, which a graph does not call" if hooked else None

    def signature(self, batches: Sequence[Tensor]) -> dict[str, tuple[Any, ...]]:
        """Return, by name, everything that a graph freezes. A graph is valid while its signature is the current one."""
        modules: list[int] = []
        memory = [t.data_ptr() for t in self.counters]
        for module in (module for model in (*self.models, self.average) for module in _modules(model)):
            modules += (id(module), module.training)
            for p in module._parameters.values():
                if p is not None:
                    memory += (p.data_ptr(), p.requires_grad)
            for b in module._buffers.values():
                if b is not None:
                    memory += _address_and_shape(b)
        settings, moments = [], []
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                settings += [_frozen_setting(value) for name, value in group.items() if name != "params"]
                moments += [p.data_ptr() for p in group["params"]]
            for value in state_values(optimizer):
                moments += _address_and_shape(value) if isinstance(value, Tensor) else (value,)
        return {
            "the batches' shapes": tuple((b.shape, b.dtype, b.stride()) for b in batches),
            "the models or their modes": tuple(modules),
            "the memory or requires_grad of weights": tuple(memory),
            "the optimizers' settings": tuple(settings),
            "the moments' memory": tuple(moments),
            "the objective": (id(self.objective),),
            "the generator of the latents": (id(self.generator),),
            "the backend": (backends.requested(),),
            "torch's settings": _torch_settings(batches),
        }

    def references(self) -> list[Any]:
        """Return what must live as long as a graph does: the address of a freed object could be used again."""
        models = [*self.models, self.average]
        tensors = [t.detach() for model in models for t in (*model.parameters(), *model.buffers())]
        for optimizer in self.optimizers:
            tensors += [t for t in state_values(optimizer) if isinstance(t, Tensor)]
        modules = [module for model in models for module in model.modules()]
        return [*modules, *tensors, *self.counters, self.objective, self.generator]

    def save_entries(self) -> SavedEntries:
        """Save which objects buffers and optimizers hold: a capture may replace them by tensors without values."""
        buffers = [module._buffers for model in (*self.models, self.average) for module in model.modules()]
        return SavedEntries([*buffers, *(c for optimizer in self.optimizers for c in state_containers(optimizer))])

    def grads(self) -> list[tuple[Tensor, Tensor | None]]:
        return [(p, p.grad) for o in self.optimizers for group in o.param_groups for p in group["params"]]


def _address_and_shape(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.data_ptr() if tensor.layout is torch.strided else id(tensor), tensor.shape)


def _torch_settings(batches: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return the settings of torch that decide which kernels its ops launch."""
    device = batches[0].device.type
    cudnn, autocast = torch.backends.cudnn, torch.is_autocast_enabled(device)
    return (
        cudnn.benchmark, cudnn.deterministic, *fp32_precision.current(),
        autocast and torch.get_autocast_dtype(device),
    )  # fmt: skip


def _modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model, several times faster than ``modules()``; shared modules are repeated."""
    modules = [model]
    for child in model._modules.values():
        if child is not None:
            modules += _modules(child)
    return modules


def _has_only_torch_hooks(module: nn.Module) -> bool:
    """Return whether all hooks are those of torch's spectral or weight norm, which only queue work."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks, module._backward_pre_hooks)
    return all(type(hook).__module__.startswith("torch.nn.utils.") for kind in hooks for hook in kind.values())


def _frozen_setting(value: Any) -> Any:
    """Return the part of an optimizer's setting that a graph freezes: only the address of a tensor on the device."""
    if not isinstance(value, Tensor):
        return value
    return value.item() if value.is_cpu and not value.dim() else value.data_ptr()


@dataclass(frozen=True)
class _Graph:
    signature: dict[str, tuple[Any, ...]]
    references: list[Any]
    inputs: list[Tensor]
    grads: list[tuple[Tensor, Tensor | None]]
    replay: Callable[[], None]
    values: Tensor


class CapturedStep:
    """Run a training step as one graph, or kernel by kernel while it warms up or if it cannot be captured.

    Args:
        graphs: of the device.
        required: whether a step that cannot be captured is an error. If not, it runs kernel by kernel, and each reason
            is logged once.

    Notes:
        Each iteration runs exactly once, so the weights are those of a training without graphs. The graph is captured
        again when something that it freezes has changed and stays changed; a single different iteration, such as one
        with a smaller batch, runs kernel by kernel. A graph keeps the memory of one whole iteration allocated.

        Whatever changes from one iteration to the next must reach the step through its batches, through tensors
        written in place, or through ``state.generator`` and the device's default generator. A graph does not run
        Python, so a model must not count its calls; a Python number in it, such as a dropout rate, keeps the value it
        had at the capture; and a tensor that a model or the objective keeps beside its parameters and buffers must
        keep its memory.
    """

    def __init__(self, graphs: Graphs, *, required: bool = False) -> None:
        self._graphs, self._required = graphs, required
        self._graph: _Graph | None = None
        self._last_signature: dict[str, tuple[Any, ...]] | None = None
        self._equal_steps = self._steps_without_graph = 0
        self._capture_failure: str | None = None
        self._warnings: set[str] = set()

    def __call__(
        self, step: Callable[[Sequence[Tensor]], Tensor], batches: Sequence[Tensor], state: StepState
    ) -> Tensor:
        """Run one iteration.

        Args:
            step: queues an iteration on batches and returns its values.
            batches: tensors on the device.
            state: what the step reads and writes besides.

        Returns:
            The values of the step, in a new tensor in each call.

        Raises:
            RuntimeError: a graph is required, and the step cannot be captured. Nothing was run.
        """
        graph, reason = self._graph, self._capture_failure or state.obstacle()
        if reason is None:
            signature = state.signature(batches)
            if graph is None or signature != graph.signature:
                if not self._is_warm(signature):
                    return self._graphs.warm_up(lambda: step(batches))
                # Frees the memory of the old graph for the new one.
                self._graph = graph = None
                return self._capture_and_check(step, batches, state, signature)
        if graph is None or reason is not None:
            if self._required:
                raise self._error(reason)
            self._warn_once(f"{_KERNEL_BY_KERNEL}: {reason}")
            return step(batches)
        return self._replay(graph, batches)

    def _replay(self, graph: _Graph, batches: Sequence[Tensor]) -> Tensor:
        self._last_signature, self._steps_without_graph = None, 0
        for static, batch in zip(graph.inputs, batches, strict=True):
            static.copy_(batch)
        graph.replay()
        # The graph writes to the gradients of its capture, which an iteration without it has replaced by others.
        _set_grads(graph.grads)
        return graph.values.clone()

    def _capture_and_check(
        self,
        step: Callable[[Sequence[Tensor]], Tensor],
        batches: Sequence[Tensor],
        state: StepState,
        signature: dict[str, tuple[Any, ...]],
    ) -> Tensor:
        """Run one iteration kernel by kernel, capture it, and replay it from the same state.

        The graph is kept only if both give the same values. The copies of the state are on the host, and memory that
        the iteration used is freed before the capture, so the device needs no additional memory.
        """
        before, entries, grads = _HostCopy(state), state.save_entries(), state.grads()
        values = step(batches)
        if state.signature(batches) != signature:
            return values
        eager_grads, reason = state.grads(), None
        try:
            graph = self._capture(step, batches, state, signature)
        except Exception as error:
            first_line = (str(error).splitlines() or [""])[0]
            reason = f"capturing it failed: {type(error).__name__}: {first_line}"
        else:
            after = _HostCopy(state)
            before.restore()
            replayed = self._replay(graph, batches)
            wrong = after.difference(before, replayed, values)
            if wrong is None:
                self._graph = graph
                return replayed
            reason = f"its first replay gave other {wrong} than the step run kernel by kernel"
            after.restore()
            _set_grads(eager_grads)
        self._capture_failure = reason
        if self._required:
            before.restore()
            entries.restore()
            _set_grads(grads)
            raise self._error(reason)
        self._warn_once(f"{_KERNEL_BY_KERNEL}: {reason}")
        return values

    def _is_warm(self, signature: dict[str, tuple[Any, ...]]) -> bool:
        """Return whether enough iterations in a row had this signature."""
        if signature != self._last_signature:
            before, self._last_signature, self._equal_steps = self._last_signature or signature, signature, 0
            changed = [name for name, value in signature.items() if value != before[name]]
            if self._steps_without_graph >= _WARN_AFTER_STEPS:
                self._warn_once(
                    f"the training step keeps running kernel by kernel, not as a CUDA graph: {', '.join(changed)} "
                    f"changed again within {WARM_UP_STEPS} steps"
                )
        self._equal_steps += 1
        self._steps_without_graph += 1
        return self._equal_steps > WARM_UP_STEPS

    def _capture(
        self,
        step: Callable[[Sequence[Tensor]], Tensor],
        batches: Sequence[Tensor],
        state: StepState,
        signature: dict[str, tuple[Any, ...]],
    ) -> _Graph:
        inputs = [torch.empty_like(b) for b in batches]
        grads, entries, host = state.grads(), state.save_entries(), _HostRandomState()
        try:
            replay, values = self._graphs.capture(lambda: step(inputs), state.generator)
            if host.has_changed():
                raise RuntimeError("random numbers were drawn on the host")
            after = state.signature(batches)
            if after != signature:
                changed = ", ".join(name for name, value in after.items() if value != signature[name])
                raise RuntimeError(f"the step itself changes {changed}")
        except BaseException:
            host.restore()
            entries.restore()
            _set_grads(grads)
            raise
        return _Graph(signature, state.references(), inputs, state.grads(), replay, values)

    def _error(self, reason: str | None) -> RuntimeError:
        return RuntimeError(
            f"Trainer.step: expected a step that can be captured, as cuda_graph is 'on', got: {reason}; "
            "cuda_graph 'auto' runs it kernel by kernel"
        )

    def _warn_once(self, line: str) -> None:
        if line not in self._warnings:
            self._warnings.add(line)
            logger.warning("%s", line)


def _set_grads(grads: Sequence[tuple[Tensor, Tensor | None]]) -> None:
    for p, grad in grads:
        p.grad = grad


class _HostCopy:
    """Copies, on the host, of everything that a step writes: tensors and random states."""

    def __init__(self, state: StepState) -> None:
        tensors_by_kind: dict[str, Sequence[Tensor]] = {
            "weights": [p for model in state.models for p in model.parameters()],
            "buffers": [b for model in state.models for b in model.buffers()],
            "averages": [*state.average.parameters(), *state.average.buffers()],
            "moments": [t for o in state.optimizers for t in state_values(o) if isinstance(t, Tensor)],
            "counters": state.counters,
        }
        self._copies = {
            kind: [(t, unexpanded(t, t).detach().to("cpu", copy=True)) for t in tensors]
            for kind, tensors in tensors_by_kind.items()
        }
        self._generators = [state.generator]
        if state.generator.device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[state.generator.device.index or 0])
        self._generator_states = [generator.get_state() for generator in self._generators]
        self._host = _HostRandomState()

    @torch.no_grad()
    def restore(self) -> None:
        for copies in self._copies.values():
            for tensor, saved in copies:
                unexpanded(tensor, tensor).copy_(saved)
        for generator, state in zip(self._generators, self._generator_states, strict=True):
            generator.set_state(state)
        self._host.restore()

    @torch.no_grad()
    def difference(self, before: _HostCopy, values: Tensor, expected: Tensor) -> str | None:
        """Return the first kind of tensors that now differ from these copies by more than rounding, None if none do.

        Args:
            before: the state before the step.
            values: what the step returned now.
            expected: what it returned when these copies were made.
        """
        for kind, copies in self._copies.items():
            error, change, rounding = 0.0, 0.0, 0.0
            for (tensor, want), (_, start) in zip(copies, before._copies[kind], strict=True):
                have = unexpanded(tensor, tensor).detach().cpu()
                if not (want.is_floating_point() or want.is_complex()):
                    if not torch.equal(have, want):
                        return kind
                    continue
                error += _squared_distance(have, want)
                change += _squared_distance(want, start)
                rounding += _squared_distance(want, torch.zeros_like(want)) * (4 * torch.finfo(want.dtype).eps) ** 2
            if not error <= _ROUNDING**2 * change + rounding:
                return kind
        have, want = values.cpu(), expected.cpu()
        size = _squared_distance(want.nan_to_num(), torch.zeros_like(want))
        if not _squared_distance(have, want) <= _ROUNDING**2 * (size + 0.01):
            return "losses"
        return None


def _squared_distance(a: Tensor, b: Tensor) -> float:
    """Return the sum of (a - b)^2, where the difference of equal infinities, and of NaN and NaN, is 0."""
    dtype = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.to(dtype), b.to(dtype)
    same = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(same, 0, a - b).abs().square().sum())


class _HostRandomState:
    """The state of the host's random generators. A graph would repeat a number drawn from them in every replay."""

    def __init__(self) -> None:
        self._before = self._current()

    @staticmethod
    def _current() -> bytes:
        return pickle.dumps((torch.get_rng_state().numpy(), random.getstate(), np.random.get_state()))

    def has_changed(self) -> bool:
        return self._current() != self._before

    def restore(self) -> None:
        torch_state, python_state, numpy_state = pickle.loads(self._before)
        torch.set_rng_state(torch.from_numpy(torch_state))
        random.setstate(python_state)
        np.random.set_state(numpy_state)
