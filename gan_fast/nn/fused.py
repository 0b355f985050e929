"""The classes of fused modules, and what they do in a call.

A fused layer has gan_fast's class, under the name of torch.nn's. A fused module with a custom forward keeps that
forward; while it runs, layers that can be one op return deferred tensors (``deferred.py``).
"""

from __future__ import annotations

import abc
import dis
import functools
import inspect
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree

from gan_fast import backends
from gan_fast.memory_format import is_ordered_channels_last
from gan_fast.nn import batch_norm_act, conv, deferred, forward_trace, instance_norm_act, rectifiers
from gan_fast.nn.channels_last import enter_channels_last, leave_channels_last
from gan_fast.nn.forward_trace import FusionGroup
from gan_fast.nn.module_state import has_hooks, weight_and_bias
from gan_fast.ops import checks, conv_kernels, dispatch

_NORM_MODULES: dict[Any, Any] = {
    **dict.fromkeys(forward_trace.BATCH_NORMS, batch_norm_act),
    **dict.fromkeys(forward_trace.INSTANCE_NORMS, instance_norm_act),
}
# gan_fast's class for each class of torch.nn that fuse() rewrites.
LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    **{kind: getattr(conv, kind.__name__) for kind in forward_trace.CONVOLUTIONS},
    **{kind: getattr(file, kind.__name__.replace("Norm", "NormAct")) for kind, file in _NORM_MODULES.items()},
    **{kind: getattr(rectifiers, kind.__name__) for kind in forward_trace.RECTIFIERS},
}
# The attribute that holds a module's FusionPlan.
PLAN = "_gan_fast_plan"


@dataclass(frozen=True)
class FusionPlan:
    """How to run a module's forward on fused ops. It holds names only, since it is copied and pickled with the module.

    Args:
        groups: layers that can run as one op. nn.Sequential finds its groups at each call instead.
        convolution: the name of a convolution below, if the forward may run in channels-last; else "".
        calls: the modules that the forward called when it was traced.
        children: for each parent of those modules, the names of all its children.
        structure: :func:`structure` at the time of fusing, if ``convolution`` is not "".
        options: :func:`options` at the time of tracing.
    """

    groups: tuple[FusionGroup, ...]
    convolution: str
    calls: tuple[str, ...] = ()
    children: tuple[tuple[str, tuple[str, ...]], ...] = ()
    structure: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(
        cls, module: nn.Module, groups: tuple[FusionGroup, ...], convolution: str, calls: Iterable[str]
    ) -> FusionPlan:
        calls = tuple(calls)
        parents = dict.fromkeys(("", *(name.rpartition(".")[0] for name in calls)))
        children = tuple((parent, tuple(module.get_submodule(parent)._modules)) for parent in parents)
        return cls(groups, convolution, calls, children, options=options(module))

    def valid_groups(self, module: nn.Module) -> list[tuple[list[Any], list[Any]]]:
        """The (deferred, consumers) modules of each group that can still run as one op.

        Empty if children were added, removed or reordered.
        """
        found: dict[str, Any] = {}
        for parent, names in self.children:
            owner = find_submodule(module, parent) if parent else module
            if owner is None or tuple(owner._modules) != names:
                return []
            found.update(zip(_full_names(parent, names), owner._modules.values()))
        # A module that is also called elsewhere must return a tensor there.
        shared = len(set(map(id, found.values()))) < len(found)
        called = [id(found[name]) for name in self.calls] if shared else []
        valid = []
        for group in self.groups:
            deferring: list[Any] = [found.get(name) for name in group.deferred]
            consumers: list[Any] = [found.get(name) for name in group.consumers]
            # A module that was put in after fuse() is not fused and cannot defer.
            if (
                all(_is_consumer(m) and not has_hooks(m, before=True) for m in consumers)
                and all(issubclass(type(m), Fused) and not has_hooks(m) for m in deferring)
                and not (shared and any(called.count(id(m)) > 1 for m in deferring))
            ):
                valid.append((deferring, consumers))
        return valid

    def deferring(self, module: nn.Module) -> frozenset[nn.Module]:
        """The modules whose outputs are deferred in this call."""
        if not self.groups or nn.modules.module._has_any_global_hook() or options(module) != self.options:
            return frozenset()
        return frozenset(m for deferring, _ in self.valid_groups(module) for m in deferring)

    def gains_by_channels_last(self, module: nn.Module, arguments: Any) -> bool:
        """Whether to run this call in channels-last."""
        conv = find_submodule(module, self.convolution) if self.convolution else None
        if conv is None:
            return False
        images = [a for a in arguments if isinstance(a, Tensor) and conv_kernels.gain_by_channels_last(a)]
        if not images:
            return False
        # Do not read conv.weight: if it is parametrized (spectral norm), reading computes it.
        weights = [p for p in conv.parameters() if p.dim() == 4]
        if any(is_ordered_channels_last(w.shape, w.stride()) for w in weights):
            return False
        if max(t.numel() for t in (*images, *weights)) <= backends.SMALL:
            return False
        if checks.subclassed(*module.parameters()):
            return False
        # Hooks, and layers that were put in after fuse(), must see PyTorch's memory format.
        return not any(map(has_hooks, module.modules())) and structure(module) == self.structure


@functools.lru_cache(maxsize=1024)
def _full_names(parent: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{parent}.{name}" if parent else name for name in names)


def structure(module: nn.Module) -> tuple[str, ...]:
    """The class and name of every submodule, and whether it works in place: the result changes if layers are edited."""
    found: list[str] = []
    for m in module.modules():
        kind = type(m)
        fused = "fused " if issubclass(kind, Fused) else ""
        inplace = " in place" if getattr(m, "inplace", False) is True else ""
        found += [f"{fused}{kind.__module__}.{kind.__qualname__}{inplace}", *m._modules]
    return tuple(found)


def options(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    """The attributes that a module's methods may branch on; with other values, forward may take another path.

    Booleans, strings and None always count. A number counts only if a line with a jump reads it, since numbers such as
    counters may change at each call.
    """
    attributes = vars(module)
    flags, numbers = _attributes_read(original_class(module))  # type: ignore[arg-type]
    found = []
    for name in flags:
        value = attributes.get(name, ...)
        if value is None or type(value) in (bool, str):
            found.append((name, value))
    return (*found, *((name, attributes[name]) for name in numbers if type(attributes.get(name)) in (int, float)))


@functools.cache
def _attributes_read(kind: type[nn.Module]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The attribute names that a class's methods may read: all of them, and those on a line with a jump."""
    read: set[str] = set()
    on_jumps: set[str] = set()
    for owner in kind.__mro__:
        if owner.__module__.startswith("torch."):
            continue
        for value in vars(owner).values():
            code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
            if code is None:
                continue
            starts = dict(dis.findlinestarts(code))
            names: set[str] = set()
            jumps = False
            for instruction in dis.get_instructions(code):
                if instruction.offset in starts:
                    on_jumps |= names if jumps else set()
                    names, jumps = set(), False
                # A string constant may be the name in getattr(self, "name", default).
                if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_CONST") and type(instruction.argval) is str:
                    names.add(instruction.argval)
                    read.add(instruction.argval)
                jumps = jumps or "JUMP" in instruction.opname or instruction.opname == "FOR_ITER"
            on_jumps |= names if jumps else set()
    # forward_trace.trace covers both training modes.
    return tuple(sorted(read - {"training"})), tuple(sorted(on_jumps))


def find_submodule(module: nn.Module, name: str) -> Any:
    """The submodule of a dotted name, or None where an edit has removed it."""
    found: Any = module
    for part in name.split("."):
        found = None if found is None else found._modules.get(part)
    return found


def _is_consumer(module: Any) -> bool:
    """Whether a module can take in a deferred tensor."""
    if isinstance(module, forward_trace.BATCH_NORMS):
        return isinstance(module, Fused)
    return module is not None and forward_trace.activation_of(module) != ""


class Fused:
    """The first base of every fused class; ``_gan_fast_original`` is the class that the module had before."""

    _gan_fast_original: ClassVar[type[nn.Module]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Do nothing, since a user's base class may register its subclasses here."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A class that was created at run time cannot be pickled; the original can.
        reduced: Any = super().__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        make, arguments, *state = reduced
        fused, original = type(self), type(self)._gan_fast_original
        return (_rebuild, (original, *(original if a is fused else a for a in (make, *arguments))), *state)


def _rebuild(original: type[nn.Module], make: Callable[..., Any], *arguments: Any) -> Any:
    """Unpickle a fused module."""
    module = make(*arguments)
    if type(module) is original:
        module.__class__ = fused_class_of(original)
    return module


# Weak values, so that a class can be collected with its last module.
_fused_classes: weakref.WeakValueDictionary[type[nn.Module], type[nn.Module]] = weakref.WeakValueDictionary()


def fused_class_of(original: type[nn.Module]) -> type[nn.Module]:
    """The fused class for modules of class ``original``, with the same name."""
    fused = _fused_classes.get(original)
    if fused is None:
        names: dict[str, Any] = {"_gan_fast_original": original}
        names |= {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
        if original in LAYERS:
            bases: tuple[type, ...] = (Fused, LAYERS[original])
            names["extra_repr"] = original.extra_repr
        else:
            bases = (Fused, original)
            names |= {"forward": _forward_of(original), "extra_repr": _extra_repr, "__class__": _OriginalClass()}
        # Skip __new__ and __init__ of a user's metaclass, which may register classes.
        make: Any = abc.ABCMeta.__new__ if issubclass(type(original), abc.ABCMeta) else type.__new__
        fused = _fused_classes.setdefault(original, make(type(original), original.__name__, bases, names))
    return fused


class _OriginalClass:
    """``__class__`` of a fused module: the original class, for methods that call ``super(self.__class__, self)``."""

    def __get__(self, module: Any, owner: type[nn.Module]) -> Any:
        return type(owner) if module is None else owner._gan_fast_original  # type: ignore[attr-defined]

    def __set__(self, module: Any, kind: type[nn.Module]) -> None:
        _OBJECT_CLASS.__set__(module, kind)


_OBJECT_CLASS: Any = vars(object)["__class__"]


def _forward_of(original: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Look the forward up at each call, because a user may replace it on the class.
        run = original.forward
        # Compilers and tracers must see the forward as written.
        plan: FusionPlan | None = None if dispatch.is_traced() else self.__dict__.get(PLAN)
        if plan is None:
            return run(self, *args, **kwargs)
        channels_last = plan.gains_by_channels_last(self, (*args, *kwargs.values()))
        if channels_last:
            args = tuple(map(_to_channels_last, args))
            kwargs = {name: _to_channels_last(a) for name, a in kwargs.items()}
        if _is_sequential(self, run) and len(args) == 1 and not kwargs:
            with deferred.scope(frozenset()):
                output = _run_sequential(list(self._modules.values()), *args)
        else:
            with deferred.scope(plan.deferring(self)):
                output = deferred.resolve(run(self, *args, **kwargs))
        return _pytree.tree_map_only(Tensor, leave_channels_last, output) if channels_last else output

    return forward


def _is_sequential(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether a module's forward calls its children one after the other."""
    return forward is nn.Sequential.forward and type(module).__iter__ is nn.Sequential.__iter__  # type: ignore[attr-defined]


def _run_sequential(modules: list[Any], value: Any) -> Any:
    """nn.Sequential's forward without the module calls inside a group, which cost more than ops on small tensors."""
    index = 0
    may_group = not nn.modules.module._has_any_global_hook()
    while index < len(modules):
        module = modules[index]
        length = _group_length(modules, index) if may_group else 1
        output = None if length == 1 else _run_group(modules[index : index + length], value)
        if output is None:
            value = module(value)
            index += 1
        else:
            value = output
            index += length
    return value


def _group_length(modules: list[Any], index: int) -> int:
    """The number of successive modules from ``index`` on that run as one op."""
    first = modules[index]
    if not isinstance(first, _GROUP_STARTS) or not issubclass(type(first), Fused) or has_hooks(first, before=True):
        return 1
    length = 1
    following = modules[index + 1] if index + 1 < len(modules) else None
    if isinstance(following, forward_trace.BATCH_NORMS):
        fits = isinstance(first, forward_trace.CONVOLUTIONS)
        fits = fits and forward_trace.dims(first) == forward_trace.dims(following)
        if not fits or not issubclass(type(following), Fused) or has_hooks(following, before=True):
            return 1
        length = 2
        following = modules[index + 2] if index + 2 < len(modules) else None
    if following is not None and forward_trace.activation_of(following) and not has_hooks(following, before=True):
        length += 1
    return length


_GROUP_STARTS = (*forward_trace.CONVOLUTIONS, *forward_trace.BATCH_NORMS, *forward_trace.INSTANCE_NORMS)


def _run_group(group: list[Any], value: Any) -> Tensor | None:
    """Run successive modules as one op; None where they must be called one by one."""
    first, last = group[0], group[-1]
    if type(value) is not Tensor or any(checks.subclassed(*m._parameters.values()) for m in group):
        return None
    activation = forward_trace.activation_of(last)
    negative_slope = getattr(last, "negative_slope", 0.01)
    if isinstance(first, forward_trace.CONVOLUTIONS):
        if value.dim() != len(first.kernel_size) + 2:
            return None
        norm: Any = group[1] if isinstance(group[1], forward_trace.BATCH_NORMS) else None
        weight, bias = weight_and_bias(first)
        return conv.conv_norm_act(first, value, weight, bias, (), norm, activation or "identity", negative_slope)
    batch_norms: Any = forward_trace.BATCH_NORMS
    if isinstance(first, batch_norms):
        first._check_input_dim(value)
        output: Tensor = first.normalize(value, activation, negative_slope)
        return output
    first._check_input_dim(value)
    # torch's forward handles inputs without a batch and with another number of channels.
    if value.dim() != first._get_no_batch_dim() + 1 or value.size(1) != first.num_features:
        return None
    output = first.normalize(value, activation, negative_slope)
    return output


def _extra_repr(self: Any) -> str:
    """The original class's description, and the layers that run as one op."""
    plan: FusionPlan | None = self.__dict__.get(PLAN)
    original = type(self)._gan_fast_original
    groups: list[Iterable[str]] = []
    if plan is not None and _is_sequential(self, original.forward):
        modules, names, index = list(self._modules.values()), list(self._modules), 0
        while index < len(modules):
            length = _group_length(modules, index)
            groups += [names[index : index + length]] if length > 1 else []
            index += length
    elif plan is not None:
        name_of = {m: name for name, m in self.named_modules()}
        groups = [dict.fromkeys(name_of[m] for m in (*ds, *cs)) for ds, cs in plan.valid_groups(self)]
    description = original.extra_repr(self)
    return "; ".join(filter(None, (description, f"fused: {', '.join(map(' + '.join, groups))}" if groups else "")))


def _to_channels_last(argument: Any) -> Any:
    fits = isinstance(argument, Tensor) and conv_kernels.gain_by_channels_last(argument)
    return enter_channels_last(argument) if fits else argument


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before it was fused or parametrized."""
    kind: type[Any] = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
    return kind._gan_fast_original if issubclass(kind, Fused) else kind


def fused_class(module: nn.Module) -> type[nn.Module]:
    """The class to give a module when it is fused."""
    fused = fused_class_of(original_class(module))
    if not parametrize.is_parametrized(module):
        return fused
    original = unfused_class(module) if issubclass(type(module), Fused) else type(module)
    return _parametrized(original, fused, _gan_fast_original=original)


def unfused_class(module: nn.Module) -> type[nn.Module]:
    """The class to give a fused module when it is unfused."""
    # A module that was parametrized after it was fused has no original parametrized class.
    original: type[nn.Module] | None = vars(type(module)).get("_gan_fast_original")
    return original or _parametrized(type(module), original_class(module))


def _parametrized(kind: type[nn.Module], base: type[nn.Module], **names: Any) -> type[nn.Module]:
    """A copy of the class that torch created for a parametrized module, with another base."""
    attributes = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    # torch sets properties on module.__class__, which must therefore be the module's type, not the original class.
    made: type[nn.Module] = type(kind.__name__, (base,), {"__class__": _OBJECT_CLASS} | attributes | names)
    return made
