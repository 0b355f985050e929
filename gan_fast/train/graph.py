"""A training step as one CUDA graph.

A step is hundreds of small kernels, and the host takes longer to launch them one by one than a GPU takes to run them. A
graph launches them all at once, on the same memory, without Python.
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
from gan_fast.train.optimizers import containers
from gan_fast.train.optimizers import moments as state_values
from gan_fast.train.undo import Entries, dense

logger = logging.getLogger("gan_fast")

# Iterations run kernel by kernel before one like them is captured: kernels compile, libraries choose algorithms and
# allocate. The first of all makes the moments, so that what is captured is the fourth.
WARM_UP = 2

_KERNEL_BY_KERNEL = "the training step runs kernel by kernel, not as a CUDA graph"

# How far a replay may be from the step itself, as a share of what the step changes: kernels that add up in another
# order at each run turn the sign of Adam's first updates where a gradient is nearly 0.
_ROUNDING = 0.1

# Iterations in a row without a graph, each time for a new reason, after which it is worth a line.
_PATIENCE = 20


class Graphs(Protocol):
    """What :class:`CapturedStep` asks of a device."""

    def warm_up(self, function: Callable[[], Tensor]) -> Tensor:
        """Run ``function`` now, as one that is to be captured later should be run before."""
        ...

    def capture(self, function: Callable[[], Tensor], generator: torch.Generator) -> tuple[Callable[[], None], Tensor]:
        """Record what ``function`` queues, without running it.

        Args:
            function: queues work that draws from ``generator`` or the device's default one.
            generator: advances at each replay as it would if ``function`` were run.

        Returns:
            What replays the record; the tensor that ``function`` returned, which each replay writes anew.

        Raises:
            Exception: the work cannot be recorded; memory and generators are as they were.
        """
        ...


def graphs_on(device: torch.device) -> Graphs | None:
    """Return the graphs of a device, None where it has none."""
    return CudaGraphs(device, shared_pool=True) if device.type == "cuda" else None


@dataclass(frozen=True)
class Subject:
    """What a step works on: a graph holds for these objects, in the state they are in."""

    players: Sequence[nn.Module]
    """The models that the step runs."""
    average: nn.Module
    """The model that the step only writes to."""
    optimizers: Sequence[torch.optim.Optimizer]
    objective: object
    counters: Sequence[Tensor]
    """What else the step reads or writes in place."""
    generator: torch.Generator
    """Of the latents."""
    reshaped: str | None = None
    """What the last step did to a buffer that a graph cannot repeat, such as to change its shape."""

    def obstacle(self) -> str | None:
        """Say why no graph can stand for the step, if so."""
        if torch.is_anomaly_enabled():
            return "anomaly detection reads every gradient"
        if _has_any_global_hook() or optim._global_optimizer_pre_hooks or optim._global_optimizer_post_hooks:
            return "there are global hooks, which a graph does not call"
        if self.reshaped is not None:
            return f"a buffer is not the same in each step: {self.reshaped}"
        for optimizer in self.optimizers:
            if not all(group.get("capturable", True) for group in optimizer.param_groups):
                return f"the {type(optimizer).__name__} was made without capturable=True"
        hooked: list[Any] = [o for o in self.optimizers if o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks]
        for part in (part for player in self.players for part in _parts(player)):
            # Every step comes by here: a module without hooks is told from four empty dicts.
            if (
                part._forward_pre_hooks or part._forward_hooks or part._backward_hooks or part._backward_pre_hooks
            ) and not _of_torch(part):
                hooked.append(part)
            for p in part._parameters.values():
                if p is not None and (p._backward_hooks or p._post_accumulate_grad_hooks):
                    hooked.append(p)
        return f"a {type(hooked[0]).__name__} has hooks, which a graph does not call" if hooked else None

    def situation(self, batches: Sequence[Tensor]) -> dict[str, tuple[Any, ...]]:
        """Return what a graph takes for granted, by name; a graph serves as long as this stays equal."""
        modules: list[int] = []
        memory = [t.data_ptr() for t in self.counters]
        for part in (part for model in (*self.players, self.average) for part in _parts(model)):
            modules += (id(part), part.training)
            for p in part._parameters.values():
                if p is not None:
                    memory += (p.data_ptr(), p.requires_grad)
            for b in part._buffers.values():
                if b is not None:
                    memory += _place(b)
        settings, moments = [], []
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                settings += [_setting(value) for name, value in group.items() if name != "params"]
                moments += [p.data_ptr() for p in group["params"]]
            for value in state_values(optimizer):
                moments += _place(value) if isinstance(value, Tensor) else (value,)
        return {
            "the batches' shapes": tuple((b.shape, b.dtype, b.stride()) for b in batches),
            "the models or their modes": tuple(modules),
            "the memory or requires_grad of weights": tuple(memory),
            "the optimizers' settings": tuple(settings),
            "the moments' memory": tuple(moments),
            "the objective": (id(self.objective),),
            "the generator of the latents": (id(self.generator),),
            "the backend": (backends.requested(),),
            "torch's settings": _of_torch_itself(batches),
        }

    def held(self) -> list[Any]:
        """Return what must live as long as a graph does: addresses of what is gone could be another's."""
        models = [*self.players, self.average]
        tensors = [t.detach() for model in models for t in (*model.parameters(), *model.buffers())]
        for optimizer in self.optimizers:
            tensors += [t for t in state_values(optimizer) if isinstance(t, Tensor)]
        parts = [part for model in models for part in model.modules()]
        return [*parts, *tensors, *self.counters, self.objective, self.generator]

    def entries(self) -> Entries:
        """Return what Python would put elsewhere in a step that is recorded and not run."""
        buffers = [part._buffers for model in (*self.players, self.average) for part in model.modules()]
        return Entries([*buffers, *(c for optimizer in self.optimizers for c in containers(optimizer))])

    def grads(self) -> list[tuple[Tensor, Tensor | None]]:
        return [(p, p.grad) for o in self.optimizers for group in o.param_groups for p in group["params"]]


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """The memory that a graph reads and writes for a tensor."""
    return (tensor.data_ptr() if tensor.layout is torch.strided else id(tensor), tensor.shape)


def _of_torch_itself(batches: Sequence[Tensor]) -> tuple[Any, ...]:
    """What decides which kernels torch's ops launch."""
    device = batches[0].device.type
    cudnn, autocast = torch.backends.cudnn, torch.is_autocast_enabled(device)
    return (
        cudnn.benchmark, cudnn.deterministic, *fp32_precision.current(),
        autocast and torch.get_autocast_dtype(device),
    )  # fmt: skip


def _parts(module: nn.Module) -> list[nn.Module]:
    """As ``module.modules()``, several times quicker; what is shared comes more than once."""
    parts = [module]
    for child in module._modules.values():
        if child is not None:
            parts += _parts(child)
    return parts


def _of_torch(part: nn.Module) -> bool:
    """Whether its hooks are torch's own spectral or weight norm, which only queue work."""
    hooks = (part._forward_pre_hooks, part._forward_hooks, part._backward_hooks, part._backward_pre_hooks)
    return all(type(hook).__module__.startswith("torch.nn.utils.") for kind in hooks for hook in kind.values())


def _setting(value: Any) -> Any:
    """What a graph freezes of a setting: of a tensor on the device its address alone."""
    if not isinstance(value, Tensor):
        return value
    return value.item() if value.is_cpu and not value.dim() else value.data_ptr()


@dataclass(frozen=True)
class _Captured:
    situation: dict[str, tuple[Any, ...]]
    held: list[Any]
    inputs: list[Tensor]
    grads: list[tuple[Tensor, Tensor | None]]
    replay: Callable[[], None]
    values: Tensor


class CapturedStep:
    """Run a training step kernel by kernel while it warms up or cannot be captured, else as one graph.

    Args:
        graphs: the device's.
        required: an error where there can be no graph; False: the step is then run kernel by kernel, and a line is
            logged for each reason.

    Notes:
        Iterations run once each, whichever way: the weights are those of a training without graphs. The graph is
        captured anew when what it takes for granted has changed for good; an iteration that differs alone, such as
        one of a smaller batch, is run kernel by kernel. It keeps the memory of one whole iteration to itself.

        What changes from one iteration to the next must reach the step through its batches, through tensors written
        in place, or through ``subject.generator`` and the device's default generator. A graph does not see Python: a
        model must not count calls, a number in it, such as a dropout rate, counts as it was at the capture, and a
        tensor that a model or the objective keeps beside its parameters and buffers must stay where it is.
    """

    def __init__(self, graphs: Graphs, *, required: bool = False) -> None:
        self._graphs, self._required = graphs, required
        self._captured: _Captured | None = None
        self._candidate: dict[str, tuple[Any, ...]] | None = None
        self._seen = self._restless = 0
        self._refusal: str | None = None
        self._said: set[str] = set()

    def __call__(
        self, step: Callable[[Sequence[Tensor]], Tensor], batches: Sequence[Tensor], subject: Subject
    ) -> Tensor:
        """Run one iteration.

        Args:
            step: queues an iteration on batches and returns its values.
            batches: tensors on the device.
            subject: what the step works on.

        Returns:
            The step's values: a new tensor at each call.

        Raises:
            RuntimeError: there can be no graph, and one is required. Nothing was run.
        """
        captured, reason = self._captured, self._refusal or subject.obstacle()
        if reason is None:
            situation = subject.situation(batches)
            if captured is None or situation != captured.situation:
                if not self._is_warm(situation):
                    return self._graphs.warm_up(lambda: step(batches))
                # What the old one holds is memory that the new one may need.
                self._captured = captured = None
                return self._first(step, batches, subject, situation)
        if captured is None or reason is not None:
            if self._required:
                raise RuntimeError(
                    f"Trainer.step: expected a step that can be captured for cuda_graph on, got: {reason}"
                )
            self._say(f"{_KERNEL_BY_KERNEL}: {reason}")
            return step(batches)
        return self._replay(captured, batches)

    def _replay(self, captured: _Captured, batches: Sequence[Tensor]) -> Tensor:
        self._candidate, self._restless = None, 0
        for static, batch in zip(captured.inputs, batches, strict=True):
            static.copy_(batch)
        captured.replay()
        # The graph writes into gradients of its own; an iteration without it has put others in their place.
        _attach(captured.grads)
        return captured.values.clone()

    def _first(
        self,
        step: Callable[[Sequence[Tensor]], Tensor],
        batches: Sequence[Tensor],
        subject: Subject,
        situation: dict[str, tuple[Any, ...]],
    ) -> Tensor:
        """Run one iteration kernel by kernel, capture it, and replay it from the same state.

        The graph is taken if both give the same values. The copies of the state are on the host, and memory that the
        iteration used is free again before the capture: the device needs none in addition.
        """
        before, entries, grads = _State(subject), subject.entries(), subject.grads()
        values = step(batches)
        if subject.situation(batches) != situation:
            return values
        eager_grads, reason = subject.grads(), None
        try:
            captured = self._capture(step, batches, subject, situation)
        except Exception as error:
            first_line = (str(error).splitlines() or [""])[0]
            reason = f"capturing it failed: {type(error).__name__}: {first_line}"
        else:
            after = _State(subject)
            before.restore()
            replayed = self._replay(captured, batches)
            wrong = after.difference(before, replayed, values)
            if wrong is None:
                self._captured = captured
                return replayed
            reason = f"its first replay gave other {wrong} than the step run kernel by kernel"
            after.restore()
            _attach(eager_grads)
        self._refusal = reason
        if self._required:
            before.restore()
            entries.restore()
            _attach(grads)
            raise RuntimeError(f"Trainer.step: expected a step that can be captured for cuda_graph on, got: {reason}")
        self._say(f"{_KERNEL_BY_KERNEL}: {reason}")
        return values

    def _is_warm(self, situation: dict[str, tuple[Any, ...]]) -> bool:
        """Whether enough iterations in a row were like this one."""
        if situation != self._candidate:
            before, self._candidate, self._seen = self._candidate or situation, situation, 0
            changed = [name for name, value in situation.items() if value != before[name]]
            if self._restless >= _PATIENCE:
                self._say(
                    f"the training step keeps running kernel by kernel, not as a CUDA graph: {', '.join(changed)} "
                    f"changed again within {WARM_UP} steps"
                )
        self._seen += 1
        self._restless += 1
        return self._seen > WARM_UP

    def _capture(
        self,
        step: Callable[[Sequence[Tensor]], Tensor],
        batches: Sequence[Tensor],
        subject: Subject,
        situation: dict[str, tuple[Any, ...]],
    ) -> _Captured:
        inputs = [torch.empty_like(b) for b in batches]
        grads, entries, host = subject.grads(), subject.entries(), _HostRandomness()
        try:
            replay, values = self._graphs.capture(lambda: step(inputs), subject.generator)
            if host.has_moved():
                raise RuntimeError("random numbers were drawn on the host")
            after = subject.situation(batches)
            if after != situation:
                moved = ", ".join(name for name, value in after.items() if value != situation[name])
                raise RuntimeError(f"the step itself changes {moved}")
        except BaseException:
            host.restore()
            entries.restore()
            _attach(grads)
            raise
        return _Captured(situation, subject.held(), inputs, subject.grads(), replay, values)

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            logger.warning("%s", line)


def _attach(grads: Sequence[tuple[Tensor, Tensor | None]]) -> None:
    for p, grad in grads:
        p.grad = grad


class _State:
    """Copies, on the host, of all that a step writes: tensors and random states."""

    def __init__(self, subject: Subject) -> None:
        kinds: dict[str, Sequence[Tensor]] = {
            "weights": [p for player in subject.players for p in player.parameters()],
            "buffers": [b for player in subject.players for b in player.buffers()],
            "averages": [*subject.average.parameters(), *subject.average.buffers()],
            "moments": [t for o in subject.optimizers for t in state_values(o) if isinstance(t, Tensor)],
            "counters": subject.counters,
        }
        self._kinds = {
            kind: [(t, dense(t, t).detach().to("cpu", copy=True)) for t in tensors] for kind, tensors in kinds.items()
        }
        self._generators = [subject.generator]
        if subject.generator.device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[subject.generator.device.index or 0])
        self._generator_states = [generator.get_state() for generator in self._generators]
        self._host = _HostRandomness()

    @torch.no_grad()
    def restore(self) -> None:
        for tensors in self._kinds.values():
            for tensor, saved in tensors:
                dense(tensor, tensor).copy_(saved)
        for generator, state in zip(self._generators, self._generator_states, strict=True):
            generator.set_state(state)
        self._host.restore()

    @torch.no_grad()
    def difference(self, before: _State, values: Tensor, expected: Tensor) -> str | None:
        """Name the kind of tensors that are now further from these copies than rounding explains, if any.

        Args:
            before: the state that both started from.
            values: what the step returned now.
            expected: what it returned when these copies were made.
        """
        for kind, tensors in self._kinds.items():
            error, change, rounding = 0.0, 0.0, 0.0
            for (tensor, want), (_, start) in zip(tensors, before._kinds[kind], strict=True):
                have = dense(tensor, tensor).detach().cpu()
                if not (want.is_floating_point() or want.is_complex()):
                    if not torch.equal(have, want):
                        return kind
                    continue
                error += _squares(have, want)
                change += _squares(want, start)
                rounding += _squares(want, torch.zeros_like(want)) * (4 * torch.finfo(want.dtype).eps) ** 2
            if not error <= _ROUNDING**2 * change + rounding:
                return kind
        have, want = values.cpu(), expected.cpu()
        if not _squares(have, want) <= _ROUNDING**2 * (_squares(want.nan_to_num(), torch.zeros_like(want)) + 0.01):
            return "losses"
        return None


def _squares(a: Tensor, b: Tensor) -> float:
    """The sum of (a - b)^2; equal infinities and NaN in both count as equal."""
    dtype = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.to(dtype), b.to(dtype)
    same = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(same, 0, a - b).abs().square().sum())


class _HostRandomness:
    """The host's generators: what is drawn from them a graph would repeat for ever."""

    def __init__(self) -> None:
        self._before = self._states()

    @staticmethod
    def _states() -> bytes:
        return pickle.dumps((torch.get_rng_state().numpy(), random.getstate(), np.random.get_state()))

    def has_moved(self) -> bool:
        return self._states() != self._before

    def restore(self) -> None:
        of_torch, of_python, of_numpy = pickle.loads(self._before)
        torch.set_rng_state(torch.from_numpy(of_torch))
        random.setstate(of_python)
        np.random.set_state(of_numpy)
