"""The classes of modules that ``fuse`` rewrote, and what they do in a call.

Layers have ours, with the names of torch.nn's. A module whose forward function calls layers that can be one op keeps
that function; while it runs, those layers hand each other values that wait (``deferred.py``).
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
from gan_fast.nn import batch_norm_act, chains, conv, deferred, instance_norm_act, rectifiers
from gan_fast.nn.chains import Chain
from gan_fast.nn.channels_last import inside, outside
from gan_fast.nn.module_state import has_hooks, weight_and_bias
from gan_fast.ops import checks, conv_kernels, dispatch

LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    **{kind: getattr(conv, kind.__name__) for kind in chains.CONVOLUTIONS},
    **{kind: getattr(batch_norm_act, kind.__name__.replace("Norm", "NormAct")) for kind in chains.BATCH_NORMS},
    **{kind: getattr(instance_norm_act, kind.__name__.replace("Norm", "NormAct")) for kind in chains.INSTANCE_NORMS},
    **{kind: getattr(rectifiers, kind.__name__) for kind in chains.RECTIFIERS},
}
# Where a module keeps its Fusion: no name that its class may have a use for.
FUSION = "_gan_fast_fusion"


@dataclass(frozen=True)
class Fusion:
    """What a module whose forward runs on fused ops knows, by names alone: it is copied and pickled with the module.

    Args:
        chains: calls of the forward function that can be one op; nn.Sequential finds its rows at each call instead.
        convolution: one below, where the forward may run in channels-last; else "".
        calls: the modules that the forward function was seen to call.
        children: the names of the children of each module that those were found in.
        structure: what :func:`structure` gave when the module was fused, where ``convolution`` is not "".
        options: what :func:`options` gave when the forward was traced.
    """

    chains: tuple[Chain, ...]
    convolution: str
    calls: tuple[str, ...] = ()
    children: tuple[tuple[str, tuple[str, ...]], ...] = ()
    structure: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, module: nn.Module, chains: tuple[Chain, ...], convolution: str, calls: Iterable[str]) -> Fusion:
        calls = tuple(calls)
        parents = dict.fromkeys(("", *(name.rpartition(".")[0] for name in calls)))
        children = tuple((parent, tuple(module.get_submodule(parent)._modules)) for parent in parents)
        return cls(chains, convolution, calls, children, options=options(module))

    def valid_chains(self, module: nn.Module) -> list[tuple[list[Any], list[Any]]]:
        """The modules of each chain, those that wait and those behind, where they still follow each other.

        There are none where children were added, removed or reordered.
        """
        found: dict[str, Any] = {}
        for parent, names in self.children:
            owner = below(module, parent) if parent else module
            if owner is None or tuple(owner._modules) != names:
                return []
            found.update(zip(_full_names(parent, names), owner._modules.values()))
        # A module that is called elsewhere too has to return a tensor there.
        shared = len(set(map(id, found.values()))) < len(found)
        called = [id(found[name]) for name in self.calls] if shared else []
        valid = []
        for chain in self.chains:
            waiting: list[Any] = [found.get(name) for name in chain.waiting]
            behind: list[Any] = [found.get(name) for name in chain.behind]
            # Modules that were put in later do not know how to wait.
            if (
                all(_is_end(m) and not has_hooks(m, before=True) for m in behind)
                and all(issubclass(type(m), Fused) and not has_hooks(m) for m in waiting)
                and not (shared and any(called.count(id(m)) > 1 for m in waiting))
            ):
                valid.append((waiting, behind))
        return valid

    def waiting(self, module: nn.Module) -> frozenset[nn.Module]:
        """The modules whose values wait in this call."""
        if not self.chains or nn.modules.module._has_any_global_hook() or options(module) != self.options:
            return frozenset()
        return frozenset(m for waiting, _ in self.valid_chains(module) for m in waiting)

    def gains_by_channels_last(self, module: nn.Module, arguments: Any) -> bool:
        conv = below(module, self.convolution) if self.convolution else None
        if conv is None:
            return False
        maps = [a for a in arguments if isinstance(a, Tensor) and conv_kernels.gain_by_channels_last(a)]
        if not maps:
            return False
        # Not its attribute: to look at a weight that is computed (spectral norm) computes it.
        weights = [p for p in conv.parameters() if p.dim() == 4]
        if any(is_ordered_channels_last(w.shape, w.stride()) for w in weights):
            return False
        if max(t.numel() for t in (*maps, *weights)) <= backends.SMALL:
            return False
        if checks.subclassed(*module.parameters()):
            return False
        # Hooks inside see the format that eager has, and so do layers that were put in later.
        return not any(map(has_hooks, module.modules())) and structure(module) == self.structure


@functools.lru_cache(maxsize=1024)
def _full_names(parent: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{parent}.{name}" if parent else name for name in names)


def structure(module: nn.Module) -> tuple[str, ...]:
    """Classes and names of all modules below, and which of them work in place: another one when layers change."""
    found: list[str] = []
    for m in module.modules():
        kind = type(m)
        fused = "fused " if issubclass(kind, Fused) else ""
        inplace = " in place" if getattr(m, "inplace", False) is True else ""
        found += [f"{fused}{kind.__module__}.{kind.__qualname__}{inplace}", *m._modules]
    return tuple(found)


def options(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    """The plain attributes that a module's methods may branch on: with others, forward may take another path.

    Numbers count where they are read on a line with a jump: others may be different at each call.
    """
    own = vars(module)
    flags, numbers = _attributes_read(plain_class(module))  # type: ignore[arg-type]
    found = [(name, own[name]) for name in flags if own.get(name, 0) is None or type(own.get(name)) in (bool, str)]
    return (*found, *((name, own[name]) for name in numbers if type(own.get(name)) in (int, float)))


@functools.cache
def _attributes_read(kind: type[nn.Module]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that a class's own methods read attributes by: all, and those on a line with a jump."""
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
                # A string may be the name in getattr(self, "name", default).
                if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_CONST") and type(instruction.argval) is str:
                    names.add(instruction.argval)
                    read.add(instruction.argval)
                jumps = jumps or "JUMP" in instruction.opname or instruction.opname == "FOR_ITER"
            on_jumps |= names if jumps else set()
    # chains.trace looks at training and evaluation mode.
    return tuple(sorted(read - {"training"})), tuple(sorted(on_jumps))


def below(module: nn.Module, name: str) -> Any:
    """The module of a name, or None: models change after they were fused."""
    found: Any = module
    for part in name.split("."):
        found = None if found is None else found._modules.get(part)
    return found


def _is_end(module: Any) -> bool:
    """Whether a module takes in what waits for it."""
    if isinstance(module, chains.BATCH_NORMS):
        return isinstance(module, Fused)
    return module is not None and chains.activation_of(module) != ""


class Fused:
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
        module.__class__ = class_of(plain)
    return module


# Weak, as a class that nobody has a module of any more would live on here.
_made: weakref.WeakValueDictionary[type[nn.Module], type[nn.Module]] = weakref.WeakValueDictionary()


def class_of(plain: type[nn.Module]) -> type[nn.Module]:
    """The class of fused modules that were of class ``plain``, whose name they keep."""
    made = _made.get(plain)
    if made is None:
        names: dict[str, Any] = {"_gan_fast_plain": plain}
        names |= {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
        if plain in LAYERS:
            bases: tuple[type, ...] = (Fused, LAYERS[plain])
            names["extra_repr"] = plain.extra_repr
        else:
            bases = (Fused, plain)
            names |= {"forward": _forward_of(plain), "extra_repr": _describe, "__class__": _Plain()}
        # Past what a user's metaclass does with a new class: it may keep a register too.
        make: Any = abc.ABCMeta.__new__ if issubclass(type(plain), abc.ABCMeta) else type.__new__
        made = _made.setdefault(plain, make(type(plain), plain.__name__, bases, names))
    return made


class _Plain:
    """``__class__`` of a fused module: the class it had, for methods that say ``super(self.__class__, self)``."""

    def __get__(self, module: Any, owner: type[nn.Module]) -> Any:
        return type(owner) if module is None else owner._gan_fast_plain  # type: ignore[attr-defined]

    def __set__(self, module: Any, kind: type[nn.Module]) -> None:
        _CLASS.__set__(module, kind)


# What every other object has in that place.
_CLASS: Any = vars(object)["__class__"]


def _forward_of(plain: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(plain.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Looked up at each call: a user may have put another there.
        run = plain.forward
        # Compilers and tracers see what is written there.
        fusion: Fusion | None = None if dispatch.is_traced() else self.__dict__.get(FUSION)
        if fusion is None:
            return run(self, *args, **kwargs)
        channels_last = fusion.gains_by_channels_last(self, (*args, *kwargs.values()))
        if channels_last:
            args = tuple(map(_to_channels_last, args))
            kwargs = {name: _to_channels_last(a) for name, a in kwargs.items()}
        if _is_a_sequence(self, run) and len(args) == 1 and not kwargs:
            with deferred.scope(frozenset()):
                output = _one_after_another(list(self._modules.values()), *args)
        else:
            with deferred.scope(fusion.waiting(self)):
                output = deferred.resolve(run(self, *args, **kwargs))
        return _pytree.tree_map_only(Tensor, outside, output) if channels_last else output

    return forward


def _is_a_sequence(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether a module's forward calls its children one after the other."""
    return forward is nn.Sequential.forward and type(module).__iter__ is nn.Sequential.__iter__  # type: ignore[attr-defined]


def _one_after_another(modules: list[Any], value: Any) -> Any:
    """What nn.Sequential's forward gives, without the calls that a row saves: they cost more than small tensors do."""
    index = 0
    rows = not nn.modules.module._has_any_global_hook()
    while index < len(modules):
        module = modules[index]
        length = _length_of_row(modules, index) if rows else 1
        output = None if length == 1 else _of_row(modules[index : index + length], value)
        if output is None:
            value = module(value)
            index += 1
        else:
            value = output
            index += length
    return value


def _length_of_row(modules: list[Any], index: int) -> int:
    """How many of the modules that follow each other from ``index`` on are one op."""
    first = modules[index]
    if not isinstance(first, _BEGINS) or not issubclass(type(first), Fused) or has_hooks(first, before=True):
        return 1
    length = 1
    behind = modules[index + 1] if index + 1 < len(modules) else None
    if isinstance(behind, chains.BATCH_NORMS):
        fits = isinstance(first, chains.CONVOLUTIONS) and chains.dims(first) == chains.dims(behind)
        if not fits or not issubclass(type(behind), Fused) or has_hooks(behind, before=True):
            return 1
        length = 2
        behind = modules[index + 2] if index + 2 < len(modules) else None
    if behind is not None and chains.activation_of(behind) and not has_hooks(behind, before=True):
        length += 1
    return length


_BEGINS = (*chains.CONVOLUTIONS, *chains.BATCH_NORMS, *chains.INSTANCE_NORMS)


def _of_row(row: list[Any], value: Any) -> Tensor | None:
    """The value of a row; None where its modules must be called."""
    first, last = row[0], row[-1]
    if type(value) is not Tensor or any(checks.subclassed(*m._parameters.values()) for m in row):
        return None
    activation = chains.activation_of(last)
    negative_slope = getattr(last, "negative_slope", 0.01)
    if isinstance(first, chains.CONVOLUTIONS):
        if value.dim() != len(first.kernel_size) + 2:
            return None
        norm: Any = row[1] if isinstance(row[1], chains.BATCH_NORMS) else None
        weight, bias = weight_and_bias(first)
        return conv.with_norm(first, value, weight, bias, (), norm, activation or "identity", negative_slope)
    norms: Any = chains.BATCH_NORMS
    if isinstance(first, norms):
        first._check_input_dim(value)
        output: Tensor = first.normalize(value, activation, negative_slope)
        return output
    first._check_input_dim(value)
    # Without a batch, or of another size, torch's forward knows what to do.
    if value.dim() != first._get_no_batch_dim() + 1 or value.size(1) != first.num_features:
        return None
    output = first._normalize(value, activation, negative_slope)
    return output


def _describe(self: Any) -> str:
    """What its own class says of a module, and what runs as one op."""
    fusion: Fusion | None = self.__dict__.get(FUSION)
    plain = type(self)._gan_fast_plain
    rows: list[Iterable[str]] = []
    if fusion is not None and _is_a_sequence(self, plain.forward):
        modules, names, index = list(self._modules.values()), list(self._modules), 0
        while index < len(modules):
            length = _length_of_row(modules, index)
            rows += [names[index : index + length]] if length > 1 else []
            index += length
    elif fusion is not None:
        name_of = {m: name for name, m in self.named_modules()}
        rows = [dict.fromkeys(name_of[m] for m in (*ws, *bs)) for ws, bs in fusion.valid_chains(self)]
    own = plain.extra_repr(self)
    return "; ".join(filter(None, (own, f"fused: {', '.join(map(' + '.join, rows))}" if rows else "")))


def _to_channels_last(argument: Any) -> Any:
    fits = isinstance(argument, Tensor) and conv_kernels.gain_by_channels_last(argument)
    return inside(argument) if fits else argument


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before it was fused or parametrised."""
    kind: type[Any] = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
    return kind._gan_fast_plain if issubclass(kind, Fused) else kind


def fused_class(module: nn.Module) -> type[nn.Module]:
    made = class_of(plain_class(module))
    if not parametrize.is_parametrized(module):
        return made
    plain = unfused_class(module) if issubclass(type(module), Fused) else type(module)
    return _parametrized(plain, made, _gan_fast_plain=plain)


def unfused_class(module: nn.Module) -> type[nn.Module]:
    # Where there is none, it was parametrised when it was fused already.
    plain: type[nn.Module] | None = vars(type(module)).get("_gan_fast_plain")
    return plain or _parametrized(type(module), plain_class(module))


def _parametrized(kind: type[nn.Module], base: type[nn.Module], **names: Any) -> type[nn.Module]:
    """The class that torch made for a parametrised module, with another base."""
    own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    # torch puts properties on the __class__ of a parametrised module: that must be the class itself.
    made: type[nn.Module] = type(kind.__name__, (base,), {"__class__": _CLASS} | own | names)
    return made
