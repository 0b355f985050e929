"""Rewrite any model onto fused ops, and back.

No module is replaced and nothing is added to a state dict: modules change their class. Layers become ours, with
torch.nn's own name and parameters. A module whose forward function calls layers that can be one op (``chains.py``)
keeps that function; while it runs, those layers hand each other values that wait (``deferred.py``).
"""

from __future__ import annotations

import abc
import copy
import functools
import inspect
import random
import re
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree

from gan_fast import layout
from gan_fast.nn import batch_norm_act, chains, conv, deferred, instance_norm_act, rectifiers
from gan_fast.nn.chains import Chain, Traced
from gan_fast.nn.channels_last import inside, outside
from gan_fast.nn.lookup import weight_and_bias
from gan_fast.ops import autograd, checks, conv_kernels

_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    **{kind: getattr(conv, kind.__name__) for kind in chains.CONVOLUTIONS},
    **{kind: getattr(batch_norm_act, kind.__name__.replace("Norm", "NormAct")) for kind in chains.BATCH_NORMS},
    **{kind: getattr(instance_norm_act, kind.__name__.replace("Norm", "NormAct")) for kind in chains.INSTANCE_NORMS},
    **{kind: getattr(rectifiers, kind.__name__) for kind in chains.RECTIFIERS},
}
# Where a module keeps its _Fusion: no name that its class may have a use for.
_FUSION = "_gan_fast_fusion"
_ENDS = (*chains.BATCH_NORMS, *chains.ACTIVATION_MODULES)


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


@dataclass(frozen=True)
class _Fusion:
    """What a module whose forward runs on fused ops knows, by names alone: it is copied and pickled with the module."""

    chains: tuple[Chain, ...]
    # A convolution below, where the forward may run in channels-last; else "".
    convolution: str

    def rows(self, module: nn.Module) -> list[tuple[list[Any], list[Any]]]:
        """The modules of each chain in this call, those that wait and those behind: nobody may look at what they
        hand over."""
        rows: list[tuple[list[Any], list[Any]]] = []
        if nn.modules.module._has_any_global_hook():
            return rows
        for chain in self.chains:
            waiting = [_below(module, name) for name in chain.waiting]
            behind = [_below(module, name) for name in chain.behind]
            if all(isinstance(m, _ENDS) and not _is_seen(m, before=True) for m in behind) and not any(
                m is None or _is_seen(m) for m in waiting
            ):
                rows.append((waiting, behind))
        return rows

    def gains_by_channels_last(self, module: nn.Module, arguments: Any) -> bool:
        conv = _below(module, self.convolution) if self.convolution else None
        if conv is None or not any(isinstance(a, Tensor) and conv_kernels.gain_by_channels_last(a) for a in arguments):
            return False
        # Not its attribute: to look at a weight that is computed (spectral norm) computes it.
        weights = [p for p in conv.parameters() if p.dim() == 4]
        if any(layout.is_ordered_channels_last(w.shape, w.stride()) for w in weights):
            return False
        # Hooks inside see the format that eager has.
        return not any(map(_is_seen, module.modules()))


def _below(module: nn.Module, name: str) -> Any:
    """The module of a name, or None: models change after they were fused."""
    found: Any = module
    for part in name.split("."):
        found = None if found is None else found._modules.get(part)
    return found


def _is_seen(module: nn.Module, before: bool = False) -> bool:
    """Whether somebody looks at what a module returns, or with ``before`` also at what it is given."""
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or (before and own["_forward_pre_hooks"])
        or "forward" in own
        or own.get("_compiled_call_impl") is not None
    )


class _Fused:
    """What a module's class has before its own; ``_gan_fast_plain`` is the one that it had."""

    _gan_fast_plain: ClassVar[type[nn.Module]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Nothing: a base of a user's may keep a register of its subclasses."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Classes that are made cannot be pickled; the ones that they are made of can.
        reduced: Any = super().__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        make, arguments, *state = reduced
        made, plain = type(self), type(self)._gan_fast_plain
        return (_remake, (plain, *(plain if a is made else a for a in (make, *arguments))), *state)


def _remake(plain: type[nn.Module], make: Callable[..., Any], *arguments: Any) -> Any:
    module = make(*arguments)
    if type(module) is plain:
        module.__class__ = _class_of(plain)
    return module


# Weak, as a class that nobody has a module of any more would live on here.
_made: weakref.WeakValueDictionary[type[nn.Module], type[nn.Module]] = weakref.WeakValueDictionary()


def _class_of(plain: type[nn.Module]) -> type[nn.Module]:
    """The class of fused modules that were of class ``plain``, whose name they keep."""
    made = _made.get(plain)
    if made is None:
        names: dict[str, Any] = {"_gan_fast_plain": plain}
        names |= {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
        if plain in _LAYERS:
            bases: tuple[type, ...] = (_Fused, _LAYERS[plain])
            names["extra_repr"] = plain.extra_repr
        else:
            bases = (_Fused, plain)
            names |= {"forward": _forward_of(plain), "extra_repr": _describe}
        # Past what a user's metaclass does with a new class: it may keep a register too.
        make: Any = abc.ABCMeta.__new__ if issubclass(type(plain), abc.ABCMeta) else type.__new__
        made = _made.setdefault(plain, make(type(plain), plain.__name__, bases, names))
    return made


def _forward_of(plain: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(plain.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Looked up at each call: a user may have put another there.
        run = plain.forward
        # Compilers and tracers see what is written there.
        fusion: _Fusion | None = None if autograd.captured() else self.__dict__.get(_FUSION)
        if fusion is None:
            return run(self, *args, **kwargs)
        channels_last = fusion.gains_by_channels_last(self, (*args, *kwargs.values()))
        if channels_last:
            args = tuple(map(_to_channels_last, args))
            kwargs = {name: _to_channels_last(a) for name, a in kwargs.items()}
        rows = fusion.rows(self)
        if plain is nn.Sequential and len(args) == 1 and not kwargs:
            with deferred.scope(frozenset()):
                output = _one_after_another(self, rows, *args)
        else:
            with deferred.scope(frozenset(m for waiting, _ in rows for m in waiting)):
                output = deferred.settle(run(self, *args, **kwargs))
        return _pytree.tree_map_only(Tensor, outside, output) if channels_last else output

    return forward


def _one_after_another(modules: Any, rows: list[tuple[list[Any], list[Any]]], value: Any) -> Any:
    """What nn.Sequential's forward gives, without the calls that a row saves: they cost more than small tensors do."""
    row_of = {waiting[0]: (waiting, behind) for waiting, behind in rows}
    remaining = iter(modules)
    for module in remaining:
        row = row_of.get(module)
        output = None if row is None else _row(*row, value)
        if row is None or output is None:
            value = module(value)
            continue
        value = output
        for _ in dict.fromkeys((*row[0][1:], *row[1])):
            next(remaining)
    return value


def _row(waiting: list[Any], behind: list[Any], value: Any) -> Tensor | None:
    """The value of a row; None where its modules must be called."""
    first: Any = waiting[0]
    activation = chains.activation_of(behind[-1])
    negative_slope = getattr(behind[-1], "negative_slope", 0.01)
    norm: Any = behind[0] if isinstance(behind[0], chains.BATCH_NORMS) else None
    is_conv, is_norm = (isinstance(first, kinds) for kinds in (chains.CONVOLUTIONS, chains.BATCH_NORMS))
    plain = type(value) is Tensor and not first._forward_pre_hooks and len(behind) == bool(norm) + bool(activation)
    if plain and is_conv and value.dim() == len(first.kernel_size) + 2:
        if norm is not None:
            norm._check_input_dim(value)
        weight, bias = weight_and_bias(first)
        return conv.with_norm(first, value, weight, bias, (), norm, activation or "identity", negative_slope)
    if plain and is_norm and norm is None:
        first._check_input_dim(value)
        output: Tensor = first.normalize(value, activation, negative_slope)
        return output
    return None


def _describe(self: Any) -> str:
    """What its own class says of a module, and what runs as one op."""
    fusion: _Fusion | None = self.__dict__.get(_FUSION)
    own = type(self)._gan_fast_plain.extra_repr(self)
    chains = [" + ".join(dict.fromkeys((*c.waiting, *c.behind))) for c in fusion.chains] if fusion else []
    return "; ".join(filter(None, (own, f"fused: {', '.join(chains)}" if chains else "")))


def _to_channels_last(argument: Any) -> Any:
    fits = isinstance(argument, Tensor) and conv_kernels.gain_by_channels_last(argument)
    return inside(argument) if fits else argument


class _Looked:
    """What a model is made of, and what can be done about it. Nothing is changed by looking."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.report = Report()
        # New classes, and what those with a forward of their own know.
        self.classes: dict[nn.Module, type[nn.Module]] = {}
        self.fusions: dict[nn.Module, _Fusion] = {}
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
        elif _plain(module).__module__.startswith("gan_fast."):
            self._left[module] = "gan_fast's own"
        elif _plain(module).__module__.startswith(("torch.ao.", "torch.nn.intrinsic", "torch.nn.quantized")):
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
            if _is_seen(module, before=True):
                return "has hooks"
            return ""
        kind = _plain(module)
        if kind not in _LAYERS:
            kind = next((k for k in _LAYERS if isinstance(module, k)), kind)
            if isinstance(module, nn.modules.lazy.LazyModuleMixin):
                return f"{_plain(module).__name__}: lazy, without a shape yet"
            name = _plain(module).__name__
            return f"{name}: a class of its own" if kind in _LAYERS else f"{name}: no fused kernel"
        # What hooks see before a convolution is a tensor, whatever comes behind: they may stay (torch's spectral norm).
        if _is_seen(module, before=kind not in chains.CONVOLUTIONS):
            return "has hooks" if "forward" not in module.__dict__ else "its forward was replaced"
        for name in (*vars(module), *module._modules, *module._parameters, *module._buffers):
            if inspect.isroutine(getattr(kind, name, None)):
                return f"its {name} was replaced"
            if hasattr(_LAYERS[kind], name) and not hasattr(kind, name):
                return f"has an attribute {name} of its own"
        tensors = [*module.parameters(), *module.buffers()]
        odd = next((t for t in tensors if t.dtype not in checks.FLOATING and t.dtype != torch.int64), None)
        return f"{checks.name_of(odd.dtype)} weights" if odd is not None else ""

    def traced(self, module: nn.Module) -> Traced | None:
        if module not in self._traced:
            self._traced[module] = None
            plain = _plain(module)
            if module not in self._left and module._modules and _has_a_forward_to_read(plain):
                try:
                    if "forward" in module.__dict__:
                        raise TypeError("its forward was replaced")
                    self._traced[module] = chains.trace(module, plain, self)
                    _class_of(plain)
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
                self.fusions[module] = _Fusion(traced.chains, conv)
                self.classes[module] = _fused_class(module)
        for module, name in self._names.items():
            kind = _plain(module)
            reason = self._reason_to_leave(module)
            if kind in _LAYERS and not reason:
                plain_inplace = isinstance(module, chains.RECTIFIERS) and (module.inplace or module in in_chains)
                if not plain_inplace:
                    self.classes[module] = _fused_class(module)
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
            if _below(owner, name) is module
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


def _plain(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before it was fused or parametrised."""
    kind: type[Any] = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
    return kind._gan_fast_plain if issubclass(kind, _Fused) else kind


def _fused_class(module: nn.Module) -> type[nn.Module]:
    made = _class_of(_plain(module))
    if not parametrize.is_parametrized(module):
        return made
    plain = _unfused_class(module) if issubclass(type(module), _Fused) else type(module)
    return _parametrized(plain, made, _gan_fast_plain=plain)


def _unfused_class(module: nn.Module) -> type[nn.Module]:
    # Where there is none, it was parametrised when it was fused already.
    plain: type[nn.Module] | None = vars(type(module)).get("_gan_fast_plain")
    return plain or _parametrized(type(module), _plain(module))


def _parametrized(kind: type[nn.Module], base: type[nn.Module], **names: Any) -> type[nn.Module]:
    """The class that torch made for a parametrised module, with another base."""
    own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    made: type[nn.Module] = type(kind.__name__, (base,), own | names)
    return made


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


def _is_a_layer(module: nn.Module) -> bool:
    return bool(module._parameters) or type(module).__module__ == "torch.nn.modules.activation"


def _word(module: nn.Module) -> str:
    """What a layer is called in a report: as torch.nn.functional calls it."""
    name = _plain(module).__name__
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
    before = {module: (type(module), module.__dict__.get(_FUSION)) for module in model.modules()}
    try:
        unfuse(model)
        for module, made in looked.classes.items():
            module.__class__ = made
        for module, own in looked.fusions.items():
            module.__dict__[_FUSION] = own
    except BaseException:
        for module, (kind, fusion) in before.items():
            module.__class__ = kind
            module.__dict__.pop(_FUSION, None)
            if fusion is not None:
                module.__dict__[_FUSION] = fusion
        raise
    return model


def copied(op: str, model: nn.Module) -> nn.Module:
    """A deep copy of a model, for ``op``; computed tensors among its attributes are copied as values.

    Raises:
        ValueError: what has no copy.
    """
    # As torch.nn.utils.spectral_norm leaves them behind; deepcopy takes leaves alone.
    computed = (t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and t.grad_fn is not None)
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in computed}
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
        if issubclass(type(module), _Fused):
            module.__class__ = _unfused_class(module)
            module.__dict__.pop(_FUSION, None)
    return model


def fuse_report(model: nn.Module) -> Report:
    """Tell what :func:`fuse` does to a model, or has done, module by module; the model is not changed.

    Raises:
        TypeError: not a module, or a scripted one.
    """
    return _Looked(_checked("fuse_report", model)).report
