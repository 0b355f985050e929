"""The classes of modules that ``fuse`` rewrote, and what they do in a call.

Layers have ours, with the names of torch.nn's. A module whose forward function calls layers that can be one op keeps
that function; while it runs, those layers hand each other values that wait (``deferred.py``).
"""

from __future__ import annotations

import abc
import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree

from gan_fast import backends, layout
from gan_fast.nn import batch_norm_act, chains, conv, deferred, instance_norm_act, rectifiers
from gan_fast.nn.chains import Chain
from gan_fast.nn.channels_last import inside, outside
from gan_fast.nn.lookup import is_seen, weight_and_bias
from gan_fast.ops import autograd, conv_kernels

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
            waiting = [below(module, name) for name in chain.waiting]
            behind = [below(module, name) for name in chain.behind]
            # Those that came in later, of torch's classes or of anybody's, do not know how to wait.
            if all(_is_end(m) and not is_seen(m, before=True) for m in behind) and all(
                issubclass(type(m), Fused) and not is_seen(m) for m in waiting
            ):
                rows.append((waiting, behind))
        return rows

    def gains_by_channels_last(self, module: nn.Module, arguments: Any) -> bool:
        conv = below(module, self.convolution) if self.convolution else None
        if conv is None:
            return False
        maps = [a for a in arguments if isinstance(a, Tensor) and conv_kernels.gain_by_channels_last(a)]
        if not maps:
            return False
        # Not its attribute: to look at a weight that is computed (spectral norm) computes it.
        weights = [p for p in conv.parameters() if p.dim() == 4]
        if any(layout.is_ordered_channels_last(w.shape, w.stride()) for w in weights):
            return False
        if max(t.numel() for t in (*maps, *weights)) <= backends.SMALL:
            return False
        # Hooks inside see the format that eager has.
        return not any(map(is_seen, module.modules()))


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
        fusion: Fusion | None = None if autograd.captured() else self.__dict__.get(FUSION)
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
    fusion: Fusion | None = self.__dict__.get(FUSION)
    own = type(self)._gan_fast_plain.extra_repr(self)
    chains = [" + ".join(dict.fromkeys((*c.waiting, *c.behind))) for c in fusion.chains] if fusion else []
    return "; ".join(filter(None, (own, f"fused: {', '.join(chains)}" if chains else "")))


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
    made: type[nn.Module] = type(kind.__name__, (base,), own | names)
    return made
