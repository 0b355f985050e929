"""Rewrite a model to run on fused ops, and undo it.

No module is replaced and no state dict changes: modules only change their class. Layers get gan_fast's class of the
same name. A module whose forward calls layers that can be one op (``forward_trace.py``) keeps that forward; while it
runs, those layers return deferred tensors (``deferred.py``).

>>> import gan_fast
>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.2))
>>> print(gan_fast.fuse_report(model))
fused  0  conv2d + batch_norm + leaky_relu (with 1, 2)
1 fused, 0 skipped
>>> gan_fast.fuse(model)(torch.randn(2, 3, 16, 16)).shape
torch.Size([2, 8, 8, 8])
"""

from __future__ import annotations

import copy
import dataclasses
import dis
import inspect
import itertools
import random
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gan_fast.nn import forward_trace
from gan_fast.nn.forward_trace import ForwardTrace
from gan_fast.nn.fused import (
    LAYERS,
    PLAN,
    Fused,
    FusionPlan,
    find_submodule,
    fused_class,
    fused_class_of,
    original_class,
    structure,
    unfused_class,
)
from gan_fast.nn.module_state import has_hooks
from gan_fast.ops import checks


@dataclass(frozen=True)
class Entry:
    """One line of a report: the name of a module and what happens to it."""

    name: str
    reason: str


@dataclass
class Report:
    """What ``fuse`` does to a model, or has done; ``str(report)`` is a table.

    Args:
        fused: what runs on gan_fast's ops; layers that run as one op are listed under the first one's name.
        skipped: what is left unchanged, and why: modules that cannot be traced or changed, and layers with parameters
            and activations without a fused kernel. Other layers without parameters, such as dropout, are not listed.
    """

    fused: list[Entry] = field(default_factory=list)
    skipped: list[Entry] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("fused", e) for e in self.fused] + [("skipped", e) for e in self.skipped]
        kind_width = max((len(kind) for kind, _ in rows), default=0)
        name_width = max((len(e.name) for _, e in rows), default=0)
        lines = [f"{kind:<{kind_width}}  {e.name:<{name_width}}  {e.reason}" for kind, e in rows]
        return "\n".join([*lines, f"{len(self.fused)} fused, {len(self.skipped)} skipped"])


class _Analysis:
    """What ``fuse`` can do with a model. The model is not changed."""

    def __init__(self, model: nn.Module) -> None:
        self.report = Report()
        self.classes: dict[nn.Module, type[nn.Module]] = {}
        self.plans: dict[nn.Module, FusionPlan] = {}
        self._traces: dict[nn.Module, ForwardTrace | None] = {}
        self._names: dict[nn.Module, str] = {}
        self._skipped: dict[nn.Module, str] = {}
        self._find(model, "")
        with _keep_random_state(model):
            for module in self._names:
                self.trace_of(module)
        self._decide()

    def _find(self, module: nn.Module, name: str) -> None:
        """Name every module once, except those below a module that is skipped as a whole."""
        if module in self._names:
            return
        self._names[module] = name
        if isinstance(module, torch.jit.ScriptModule):
            self._skipped[module] = "TorchScript module: runs its own compiled code"
        elif original_class(module).__module__.startswith("gan_fast."):
            self._skipped[module] = "gan_fast module: runs on gan_fast's ops already"
        elif original_class(module).__module__.startswith(("torch.ao.", "torch.nn.intrinsic", "torch.nn.quantized")):
            self._skipped[module] = "quantized, or prepared for quantization"
        else:
            for child_name, child in module.named_children():
                self._find(child, f"{name}.{child_name}" if name else child_name)

    def may_fuse(self, module: nn.Module) -> bool:
        return module in self._names and not self._reason_to_skip(module)

    def _reason_to_skip(self, module: nn.Module) -> str:
        """Why a layer must not be fused, or ""."""
        if module in self._skipped:
            return self._skipped[module]
        if isinstance(module, forward_trace.ACTIVATION_MODULES):
            return "has hooks" if has_hooks(module, before=True) else ""
        kind = original_class(module)
        if kind not in LAYERS:
            kind = next((k for k in LAYERS if isinstance(module, k)), kind)
            name = original_class(module).__name__
            if isinstance(module, nn.modules.lazy.LazyModuleMixin):
                return f"{name}: lazy module without a shape; run the model once first"
            return f"{name}: subclass of {kind.__name__}" if kind in LAYERS else f"{name}: no fused kernel"
        # A convolution may keep its pre-hooks (torch.nn.utils.spectral_norm): its input is always a tensor.
        if has_hooks(module, before=kind not in forward_trace.CONVOLUTIONS):
            return "has hooks" if "forward" not in module.__dict__ else "its forward was replaced"
        for name in (*vars(module), *module._modules, *module._parameters, *module._buffers):
            if inspect.isroutine(getattr(kind, name, None)):
                return f"its {name} was replaced"
            if hasattr(LAYERS[kind], name) and not hasattr(kind, name):
                return f"has an attribute {name}, which gan_fast's class defines"
        tensors = [*module.parameters(), *module.buffers()]
        odd = next((t for t in tensors if t.dtype not in checks.FLOATING and t.dtype != torch.int64), None)
        return f"{checks.name_of(odd.dtype)} weights: no fused kernel" if odd is not None else ""

    def trace_of(self, module: nn.Module) -> ForwardTrace | None:
        if module not in self._traces:
            self._traces[module] = None
            original = original_class(module)
            if module not in self._skipped and module._modules and _has_readable_forward(original):
                if method := _calls_super_of_type(original):
                    self._skipped[module] = f"its {method} calls super(type(self), self), which fails in a subclass"
                    return None
                if "forward" in module.__dict__:
                    self._skipped[module] = "its forward was replaced"
                    return None
                try:
                    self._traces[module] = forward_trace.trace(module, original, self)
                    fused_class_of(original)
                except Exception as error:  # a user's forward may raise anything when it meets a tracer
                    self._skipped[module] = f"torch.fx cannot trace its forward: {_summary(error, original)}"
        return self._traces[module]

    def _decide(self) -> None:
        in_groups: set[nn.Module] = set()
        entries: dict[str, Entry] = {}
        for module, trace in self._traces.items():
            if trace is None:
                continue
            prefix = f"{self._names[module]}." if self._names[module] else ""
            for group in trace.groups:
                first, *others = dict.fromkeys((*group.deferred, *group.consumers))
                members = [module.get_submodule(name) for name in (first, *others)]
                in_groups.update(members)
                words = [_layer_name(m) for m in members if not isinstance(m, forward_trace.ACTIVATION_MODULES)]
                words += [group.activation] if group.activation else []
                with_ = f" (with {', '.join(prefix + name for name in others)})" if others else ""
                entries.setdefault(prefix + first, Entry(prefix + first, f"{' + '.join(words)}{with_}"))
            convolution = ""
            if (
                trace.any_format
                and not (trace.writes_input or trace.returns_input)
                and trace.convolutions >= _ENOUGH_CONVOLUTIONS
            ):
                convolution = next(n for n, m in module.named_modules() if isinstance(m, _CONV2D))
            if trace.groups or convolution:
                self.plans[module] = FusionPlan.of(module, trace.groups, convolution, trace.calls)
                self.classes[module] = fused_class(module)
        for module, name in self._names.items():
            reason = self._reason_to_skip(module)
            if original_class(module) in LAYERS and not reason:
                stays_torch = isinstance(module, forward_trace.RECTIFIERS) and (module.inplace or module in in_groups)
                if not stays_torch:
                    self.classes[module] = fused_class(module)
                if module not in in_groups:
                    if stays_torch:
                        self._skip(name, f"in-place {_layer_name(module)}: no layer before it to fuse with")
                    else:
                        entries[name] = Entry(name, f"{_layer_name(module)} alone{self._why_alone(module)}")
            elif module in self._skipped or (_is_layer(module) and module not in in_groups):
                self._skip(name, reason or f"{_layer_name(module)}: no layer before it to fuse with")
        order = {name: i for i, name in enumerate(self._names.values())}
        self.report.fused = sorted(entries.values(), key=lambda e: order[e.name])

    def _skip(self, name: str, reason: str) -> None:
        self.report.skipped.append(Entry(name or "(the model)", reason))

    def _why_alone(self, module: nn.Module) -> str:
        counts = [
            trace.calls[name]
            for owner, trace in self._traces.items()
            if trace is not None
            for name in trace.calls
            if find_submodule(owner, name) is module
        ]
        return f" (called {max(counts)} times)" if counts and max(counts) > 1 else ""


_CONV2D = (nn.Conv2d, nn.ConvTranspose2d)
# With fewer, copying into channels-last and back costs more than the convolutions gain.
_ENOUGH_CONVOLUTIONS = 3


def _summary(error: Exception, original: type[nn.Module]) -> str:
    """The first sentence of an error, and the line of the forward's file that raised it."""
    # A sentence ends at a period before a space, unlike the one in "torch.nn".
    sentence = re.split(r"\.\s", " ".join(str(error).split()), maxsplit=1)[0] or type(error).__name__
    code = getattr(inspect.unwrap(original.forward), "__code__", None)
    file = code.co_filename if code is not None else ""
    if sentence.startswith("'len' is not supported"):
        sentence = f"{sentence}; use x.size(0) instead of len(x)"
    lines = [f.line for f in traceback.extract_tb(error.__traceback__) if f.filename == file and f.line]
    return f"{sentence} (at: {lines[-1]})" if lines else sentence


@contextmanager
def _keep_random_state(model: nn.Module) -> Iterator[None]:
    """Restore the random number generators, from which forward functions may draw while they are traced."""
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy else None
    devices = {t.device for t in (*model.parameters(), *model.buffers())}
    try:
        with torch.random.fork_rng([d for d in devices if d.type == "cuda"]):
            yield
    finally:
        random.setstate(states[0])
        if numpy:
            numpy.random.set_state(states[1])


def _has_readable_forward(kind: type[nn.Module]) -> bool:
    """Whether a class has a Python forward to trace. torch's own modules, except nn.Sequential, are not traced."""
    if issubclass(kind, (torch.fx.GraphModule, torch.jit.ScriptModule)) or kind.forward is nn.Module.forward:
        return False
    return kind is nn.Sequential or not kind.__module__.startswith("torch.")


def _calls_super_of_type(kind: type[nn.Module]) -> str:
    """The name of a method that calls ``super(type(self), self)``, which recurses forever in a subclass; or ""."""
    for owner in kind.__mro__:
        if owner.__module__.startswith("torch."):
            continue
        for name, value in vars(owner).items():
            if name in ("__init__", "__new__"):
                continue
            code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
            if code is None or "super" not in code.co_names or "type" not in code.co_names:
                continue
            loaded = [i.argval for i in dis.get_instructions(code) if i.opname.startswith("LOAD_")]
            if any(pair == ("super", "type") for pair in itertools.pairwise(loaded)):
                return name
    return ""


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is an activation, or has parameters and no children but parametrizations."""
    if module._modules.keys() - {"parametrizations"}:
        return False
    return any(True for _ in module.parameters()) or type(module).__module__ == "torch.nn.modules.activation"


def _layer_name(module: nn.Module) -> str:
    """The name of a layer in a report, which is that of its function in torch.nn.functional."""
    name = original_class(module).__name__
    if isinstance(module, (*forward_trace.BATCH_NORMS, *forward_trace.INSTANCE_NORMS)):
        return "batch_norm" if "Batch" in name else "instance_norm"
    return {"ReLU": "relu", "LeakyReLU": "leaky_relu"}.get(name, name.replace("ConvT", "conv_t").lower())


def _require_module(op: str, model: Any) -> nn.Module:
    if isinstance(model, type):
        raise TypeError(f"{op}: expected model type Module, got the class {model.__name__}; pass an instance")
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: expected model type Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"{op}: expected model that is not scripted, got {type(model).__name__}; TorchScript runs its own compiled "
            "code and cannot compile fused models, so pass the Python model and do not script it"
        )
    return model


def fuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Run a model's convolutions, norms and activations on fused ops, with the same parameters, results and gradients.

    Args:
        model: any model of torch.nn layers, called by nn.Sequential or by forward functions.
        inplace: rewrite ``model`` itself, so that an existing optimizer stays valid. False: rewrite a deep copy.

    Returns:
        The rewritten model. Printing it shows which layers run as one op.

    Raises:
        TypeError: ``model`` is not a module, or is scripted.
        ValueError: ``model`` cannot be copied; ``inplace=True`` needs no copy.
        After an error ``model`` is unchanged.

    Notes:
        Modules change only their class: names, state dict, parameters, buffers, modes and hooks stay; copying, pickling
        and ``isinstance`` with the original class work. :func:`unfuse` restores the classes.
        A convolution, batch norm and activation, two of these in that order, or an instance norm and activation run as
        one op in nn.Sequential and in forward functions that torch.fx can trace. The trace only finds these groups: the
        forward runs as written, and a run that takes another path runs its layers one by one. In other forward
        functions, Sequentials and single layers are still fused.
        On a CPU, a forward that gives the same values in any memory format runs in channels-last inside.
        :func:`fuse_report` lists what is skipped and why. A model that is already fused is analyzed again.
        Under torch.compile, torch.jit.trace and torch.export layers run one by one. A compiled model is fused inside
        and stays compiled.
    """
    model = _require_module("fuse", model)
    if not inplace:
        model = copied("fuse", model, "; inplace=True needs no copy")
    analysis = _Analysis(model)
    before = {module: (type(module), module.__dict__.get(PLAN)) for module in model.modules()}
    try:
        unfuse(model)
        for module, fused in analysis.classes.items():
            module.__class__ = fused
        for module, plan in analysis.plans.items():
            module.__dict__[PLAN] = plan
        # structure() reads classes, so it comes after all of them are set.
        for module, plan in analysis.plans.items():
            if plan.convolution:
                module.__dict__[PLAN] = dataclasses.replace(plan, structure=structure(module))
    except BaseException:
        for module, (kind, old_plan) in before.items():
            module.__class__ = kind
            module.__dict__.pop(PLAN, None)
            if old_plan is not None:
                module.__dict__[PLAN] = old_plan
        raise
    return model


def copied(op: str, model: nn.Module, remedy: str = "") -> nn.Module:
    """Deep-copy a model for ``op``, also where attributes hold tensors with a graph.

    Raises:
        ValueError: the model cannot be copied.
    """
    # torch.nn.utils.spectral_norm leaves such tensors behind; deepcopy accepts only leaves.
    attributes = (t for m in model.modules() for value in vars(m).values() for t in tree_leaves(value))
    memo: dict[int, Any] = {
        id(t): t.detach().clone() for t in attributes if isinstance(t, Tensor) and t.grad_fn is not None
    }
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{op}: expected model that copy.deepcopy can copy, got {reason}{remedy}") from error


def unfuse(model: nn.Module) -> nn.Module:
    """Restore in place the classes of modules that :func:`fuse` rewrote, with the same parameters and buffers.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a module, or is scripted.
    """
    for module in _require_module("unfuse", model).modules():
        if issubclass(type(module), Fused):
            module.__class__ = unfused_class(module)
        # A fused module that is parametrized later derives from its original class, but keeps the plan.
        module.__dict__.pop(PLAN, None)
    return model


def fuse_report(model: nn.Module) -> Report:
    """Report what :func:`fuse` does to a model, or has done, module by module, without changing it.

    Raises:
        TypeError: ``model`` is not a module, or is scripted.
    """
    return _Analysis(_require_module("fuse_report", model)).report
