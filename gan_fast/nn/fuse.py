"""Rewrite any model onto fused ops, and back.

No module is replaced and nothing is added to a state dict: modules change their class. Layers become ours, with
torch.nn's own name and parameters. A module whose forward function calls layers that can be one op (``chains.py``)
keeps that function; while it runs, those layers hand each other values that wait (``deferred.py``).
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

from gan_fast.nn import chains
from gan_fast.nn.chains import Traced
from gan_fast.nn.fused import (
    FUSION,
    LAYERS,
    Fused,
    Fusion,
    below,
    class_of,
    fused_class,
    plain_class,
    structure,
    unfused_class,
)
from gan_fast.nn.module_state import has_hooks
from gan_fast.ops import checks


@dataclass(frozen=True)
class Entry:
    """One line of a report: a module's name and what became of it."""

    name: str
    reason: str


@dataclass
class Report:
    """What ``fuse`` does to a model, or has done; ``str`` of it is a table.

    Args:
        fused: what runs on ops of ours; a chain has the name of its first module.
        skipped: what was left as it was, and why.
    """

    fused: list[Entry] = field(default_factory=list)
    skipped: list[Entry] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [("fused", e) for e in self.fused] + [("left", e) for e in self.skipped]
        width = max((len(e.name) for _, e in rows), default=0)
        lines = [f"{kind:<5}  {e.name:<{width}}  {e.reason}" for kind, e in rows]
        return "\n".join([*lines, f"{len(self.fused)} fused, {len(self.skipped)} left as they were"])


class _Looked:
    """What a model is made of, and what can be done about it. Nothing is changed by looking."""

    def __init__(self, model: nn.Module) -> None:
        self.report = Report()
        # New classes, and what those with a forward of their own know.
        self.classes: dict[nn.Module, type[nn.Module]] = {}
        self.fusions: dict[nn.Module, Fusion] = {}
        self._traced: dict[nn.Module, Traced | None] = {}
        self._names: dict[nn.Module, str] = {}
        self._left: dict[nn.Module, str] = {}
        self._find(model, "")
        with _keeping_random_numbers(model):
            for module in self._names:
                self.traced(module)
        self._decide()

    def _find(self, module: nn.Module, name: str) -> None:
        """Name every module once; those below what is not to be touched are not even named."""
        if module in self._names:
            return
        self._names[module] = name
        if isinstance(module, torch.jit.ScriptModule):
            self._left[module] = "scripted: it has its own code"
        elif plain_class(module).__module__.startswith("gan_fast."):
            self._left[module] = "gan_fast's own"
        elif plain_class(module).__module__.startswith(("torch.ao.", "torch.nn.intrinsic", "torch.nn.quantized")):
            self._left[module] = "quantized, or made for it"
        else:
            for child_name, child in module.named_children():
                self._find(child, f"{name}.{child_name}" if name else child_name)

    def may_join(self, module: nn.Module) -> bool:
        return module in self._names and not self._reason_to_leave(module)

    def _reason_to_leave(self, module: nn.Module) -> str:
        """Why a layer's call must stay as it is; "" where it need not."""
        if module in self._left:
            return self._left[module]
        if isinstance(module, chains.ACTIVATION_MODULES):
            return "has hooks" if has_hooks(module, before=True) else ""
        kind = plain_class(module)
        if kind not in LAYERS:
            kind = next((k for k in LAYERS if isinstance(module, k)), kind)
            if isinstance(module, nn.modules.lazy.LazyModuleMixin):
                return f"{plain_class(module).__name__}: lazy, without a shape yet"
            name = plain_class(module).__name__
            return f"{name}: a class of its own" if kind in LAYERS else f"{name}: no fused kernel"
        # What hooks see before a convolution is a tensor, whatever comes behind: they may stay (torch's spectral norm).
        if has_hooks(module, before=kind not in chains.CONVOLUTIONS):
            return "has hooks" if "forward" not in module.__dict__ else "its forward was replaced"
        for name in (*vars(module), *module._modules, *module._parameters, *module._buffers):
            if inspect.isroutine(getattr(kind, name, None)):
                return f"its {name} was replaced"
            if hasattr(LAYERS[kind], name) and not hasattr(kind, name):
                return f"has an attribute {name} of its own"
        tensors = [*module.parameters(), *module.buffers()]
        odd = next((t for t in tensors if t.dtype not in checks.FLOATING and t.dtype != torch.int64), None)
        return f"{checks.name_of(odd.dtype)} weights" if odd is not None else ""

    def traced(self, module: nn.Module) -> Traced | None:
        if module not in self._traced:
            self._traced[module] = None
            plain = plain_class(module)
            if module not in self._left and module._modules and _has_a_forward_to_read(plain):
                if method := _calls_super_of_type(plain):
                    self._left[module] = f"its {method} calls super(type(self), self)"
                    return None
                try:
                    if "forward" in module.__dict__:
                        raise TypeError("its forward was replaced")
                    self._traced[module] = chains.trace(module, plain, self)
                    class_of(plain)
                except Exception as error:  # whatever a user's code does when it meets a tracer
                    self._left[module] = f"forward not traced: {_told(error, plain)}"
        return self._traced[module]

    def _decide(self) -> None:
        in_chains: set[nn.Module] = set()
        lines: dict[str, Entry] = {}
        for module, traced in self._traced.items():
            if traced is None:
                continue
            at = f"{self._names[module]}." if self._names[module] else ""
            for chain in traced.chains:
                first, *others = dict.fromkeys((*chain.waiting, *chain.behind))
                members = [module.get_submodule(name) for name in (first, *others)]
                in_chains.update(members)
                words = [_word(m) for m in members if not isinstance(m, chains.ACTIVATION_MODULES)]
                words += [chain.activation] if chain.activation else []
                with_ = f" (with {', '.join(at + name for name in others)})" if others else ""
                lines.setdefault(at + first, Entry(at + first, f"{' + '.join(words)}{with_}"))
            conv = ""
            if (
                traced.any_format
                and not (traced.writes_input or traced.returns_input)
                and traced.convolutions >= _ENOUGH_CONVOLUTIONS
            ):
                conv = next(n for n, m in module.named_modules() if isinstance(m, _CONV2D))
            if traced.chains or conv:
                self.fusions[module] = Fusion.of(module, traced.chains, conv, traced.calls)
                self.classes[module] = fused_class(module)
        for module, name in self._names.items():
            kind = plain_class(module)
            reason = self._reason_to_leave(module)
            if kind in LAYERS and not reason:
                plain_inplace = isinstance(module, chains.RECTIFIERS) and (module.inplace or module in in_chains)
                if not plain_inplace:
                    self.classes[module] = fused_class(module)
                if module not in in_chains:
                    if plain_inplace:
                        self._skip(name, f"{_word(module)} by itself, in place: PyTorch's")
                    else:
                        lines[name] = Entry(name, f"{_word(module)} by itself{self._why_alone(module)}")
            elif module in self._left or (not module._modules and _is_a_layer(module) and module not in in_chains):
                self._skip(name, reason or f"{_word(module)}: follows nothing that it could join")
        order = {name: i for i, name in enumerate(self._names.values())}
        self.report.fused = sorted(lines.values(), key=lambda e: order[e.name])

    def _skip(self, name: str, reason: str) -> None:
        self.report.skipped.append(Entry(name or "(the model)", reason))

    def _why_alone(self, module: nn.Module) -> str:
        counts = [
            t.calls[name]
            for owner, t in self._traced.items()
            if t is not None
            for name in t.calls
            if below(owner, name) is module
        ]
        return f": called {max(counts)} times" if counts and max(counts) > 1 else ""


_CONV2D = (nn.Conv2d, nn.ConvTranspose2d)
# Copies into channels-last and out of it cost more than fewer gain.
_ENOUGH_CONVOLUTIONS = 3


def _told(error: Exception, plain: type[nn.Module]) -> str:
    """The first sentence of an error, and the line of the file of ``plain.forward`` that it comes from."""
    # A sentence ends where the next begins: "torch.nn" has no end in it.
    said = re.split(r"\.\s", " ".join(str(error).split()), maxsplit=1)[0] or type(error).__name__
    code = getattr(inspect.unwrap(plain.forward), "__code__", None)
    file = code.co_filename if code is not None else ""
    lines = [f.line for f in traceback.extract_tb(error.__traceback__) if f.filename == file and f.line]
    return f"{said} (at: {lines[-1]})" if lines else said


@contextmanager
def _keeping_random_numbers(model: nn.Module) -> Iterator[None]:
    """Undo what forward functions draw while they are looked at."""
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


def _has_a_forward_to_read(kind: type[nn.Module]) -> bool:
    """Whether a class has a forward that calls its children as it is written: torch's own do more than that."""
    if issubclass(kind, (torch.fx.GraphModule, torch.jit.ScriptModule)) or kind.forward is nn.Module.forward:
        return False
    return kind is nn.Sequential or not kind.__module__.startswith("torch.")


def _calls_super_of_type(kind: type[nn.Module]) -> str:
    """The name of a method that calls ``super(type(self), self)``, which never ends in a derived class; or ""."""
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


def _is_a_layer(module: nn.Module) -> bool:
    return bool(module._parameters) or type(module).__module__ == "torch.nn.modules.activation"


def _word(module: nn.Module) -> str:
    """What a layer is called in a report: as torch.nn.functional calls it."""
    name = plain_class(module).__name__
    if isinstance(module, (*chains.BATCH_NORMS, *chains.INSTANCE_NORMS)):
        return "batch_norm" if "Batch" in name else "instance_norm"
    return {"ReLU": "relu", "LeakyReLU": "leaky_relu"}.get(name, name.replace("ConvT", "conv_t").lower())


def _checked(owner: str, model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{owner}: expected model type Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"{owner}: expected model not scripted, got {type(model).__name__}; script what comes of it")
    return model


def fuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Run a model's convolutions, norms and activations on fused ops: same parameters, results and gradients.

    Args:
        model: of torch.nn's layers, in Sequentials or called by forward functions of anybody's.
        inplace: rewrite ``model`` itself, whose parameters stay the objects that they are: an optimizer made before
            goes on. Else a deep copy.

    Returns:
        The rewritten model; ``print`` of it shows what runs as one op.

    Raises:
        TypeError: not a module, or a scripted one.
        ValueError: a model that cannot be copied; ``inplace=True`` needs no copy.
        Whatever is raised, ``model`` is as it was.

    Notes:
        Modules change their class and nothing else: names, state dict, parameters, buffers, modes, hooks, copies and
        pickles are what they were. ``isinstance`` with their own class holds. :func:`unfuse` gives the class back.
        Convolution, batch norm and activation, any two of them, or instance norm and activation become one op where one
        follows the other: in Sequentials, and in forward functions that torch.fx can trace. Such a function is looked
        at, not replaced: it runs as it is written, and where a run goes another way its layers run one by one. The
        others keep fused Sequentials, and layers with a lean double backward.
        On a CPU maps are channels-last inside where all that a forward function calls is known to give the same values.
        What is left as it was, and why: :func:`fuse_report`. Fused already: looked at anew.
        Under torch.compile, torch.jit.trace and torch.export layers run one by one. A compiled model is fused inside,
        and stays compiled.
    """
    model = _checked("fuse", model)
    if not inplace:
        model = copied("fuse", model)
    looked = _Looked(model)
    before = {module: (type(module), module.__dict__.get(FUSION)) for module in model.modules()}
    try:
        unfuse(model)
        for module, made in looked.classes.items():
            module.__class__ = made
        for module, own in looked.fusions.items():
            module.__dict__[FUSION] = own
        for module, own in looked.fusions.items():
            if own.convolution:
                module.__dict__[FUSION] = dataclasses.replace(own, structure=structure(module))
    except BaseException:
        for module, (kind, fusion) in before.items():
            module.__class__ = kind
            module.__dict__.pop(FUSION, None)
            if fusion is not None:
                module.__dict__[FUSION] = fusion
        raise
    return model


def copied(op: str, model: nn.Module) -> nn.Module:
    """A deep copy of a model, for ``op``; computed tensors among its attributes are copied as values.

    Raises:
        ValueError: what has no copy.
    """
    # As torch.nn.utils.spectral_norm leaves them behind; deepcopy takes leaves alone.
    attributes = (t for m in model.modules() for value in vars(m).values() for t in tree_leaves(value))
    memo: dict[int, Any] = {
        id(t): t.detach().clone() for t in attributes if isinstance(t, Tensor) and t.grad_fn is not None
    }
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{op}: expected model that copy.deepcopy takes, got {said}") from error


def unfuse(model: nn.Module) -> nn.Module:
    """Give modules that :func:`fuse` rewrote their own classes back, in place: same objects, parameters and buffers.

    Returns:
        ``model``.

    Raises:
        TypeError: not a module, or a scripted one.
    """
    for module in _checked("unfuse", model).modules():
        if issubclass(type(module), Fused):
            module.__class__ = unfused_class(module)
        # Parametrised after it was fused, a module with a forward of its own has its own class already.
        module.__dict__.pop(FUSION, None)
    return model


def fuse_report(model: nn.Module) -> Report:
    """Tell what :func:`fuse` does to a model, or has done, module by module; the model is not changed.

    Raises:
        TypeError: not a module, or a scripted one.
    """
    return _Looked(_checked("fuse_report", model)).report
