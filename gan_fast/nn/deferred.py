"""Values that wait for what is done to them next, so that it can be done in one.

While a model that ``fuse`` rewrote runs a forward function, as it was written, those of its convolutions and norms
whose values are known to go to one norm or activation alone return a :class:`Deferred` instead of a tensor. The norm
takes it in, the activation ends it, with one op for all. Whatever else meets it, because this run went another way than
the one that was looked at, finds a tensor.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree

from gan_fast.ops import activations

# How a value is computed, with what comes behind it: (activation, its slope, whether running statistics move).
Compute = Callable[..., Tensor]


class _Scope(threading.local):
    # Modules of the forward function that this thread is in whose values wait, and the values that do: who takes one
    # takes it out, or what it is computed from would be held until the function ends.
    waiting: frozenset[nn.Module] = frozenset()
    values: dict[Deferred, None] = {}  # noqa: RUF012 (replaced, never added to, outside of a scope)


_scope = _Scope()


@contextmanager
def scope(waiting: frozenset[nn.Module]) -> Iterator[None]:
    """Let the values of modules ``waiting`` wait, in what this thread runs inside; all are there when it ends."""
    outer = _scope.waiting, _scope.values
    _scope.waiting, _scope.values = waiting, {}
    try:
        yield
        for value in tuple(_scope.values):
            value.tensor()
    finally:
        _scope.waiting, _scope.values = outer


def waits(module: nn.Module, input: Any) -> bool:
    """Whether the value of ``module`` for ``input`` shall be a :class:`Deferred`."""
    return not torch.compiler.is_compiling() and module in _scope.waiting and type(input) in (Tensor, Deferred)


def resolve(value: Any) -> Any:
    """The same with tensors in the place of what waits, in containers too."""
    if type(value) is Deferred:
        return value.tensor()
    if isinstance(value, Tensor):
        return value
    return _pytree.tree_map_only(Deferred, Deferred.tensor, value)


def modes() -> tuple[Any, ...]:
    """What a with-statement may change between a value's call and its use."""
    cast = torch._C._is_any_autocast_enabled() and tuple(
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) for device in ("cpu", "cuda")
    )
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), cast


_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]


def _in_an_autograd_function() -> bool:
    """Whether a custom Function that the running fused forward applied is in its own forward."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != "gan_fast.nn.fused":
        if frame.f_code is _APPLY:
            return True
        frame = frame.f_back
    return False


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


def _rectifier(input: Deferred, negative_slope: Any = 0.01, inplace: bool = False) -> tuple[str, Any, bool]:
    return "leaky_relu", negative_slope, inplace


def _plain(activation: str, inplace: bool = False) -> Callable[..., tuple[str, float, bool]]:
    return lambda input, inplace=inplace: (activation, 0.01, inplace)


# Functions that end a value, and what they do: activation, slope, whether in place.
ACTIVATIONS: dict[Callable[..., Any], Callable[..., tuple[str, Any, bool]]] = {
    F.relu: _plain("relu"), torch.relu: _plain("relu"), torch.relu_: _plain("relu", True),
    F.leaky_relu: _rectifier, F.leaky_relu_: lambda input, slope=0.01: _rectifier(input, slope, True),
    F.tanh: _plain("tanh"), torch.tanh: _plain("tanh"), torch.tanh_: _plain("tanh", True),
    F.sigmoid: _plain("sigmoid"), torch.sigmoid: _plain("sigmoid"), torch.sigmoid_: _plain("sigmoid", True),
}  # fmt: skip
METHODS = ("relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_")


class Deferred:
    """A tensor that is computed when somebody looks; in one with what meets it before, if that can be.

    Args:
        compute: what it takes.
        source: what it is computed from: a tensor, or another of these; the value has as many dims.
        convolve: of a convolution, what it takes with a norm behind it: that module, then as ``compute``.
    """

    __hash__ = object.__hash__

    def __init__(self, compute: Compute, source: Any, convolve: Compute | None = None) -> None:
        self.compute, self.convolve = compute, convolve
        self._source: Tensor = source._source if type(source) is Deferred else source
        self._version = _version(self._source)
        self._value: Tensor | None = None
        self._called_in = modes()
        # Whether it is computed, or part of what somebody else computes.
        self._taken = False
        self._waiting = _scope.values
        self._waiting[self] = None

    def dim(self) -> int:
        return self._source.dim()

    def take(self) -> bool:
        """Whether it is the caller's, to compute it with more behind it, now."""
        if self._taken or self._called_in != modes():
            return False
        self._take()
        return True

    def _take(self) -> None:
        self._taken = True
        self._waiting.pop(self, None)
        if self._version != _version(self._source):
            raise RuntimeError(
                "fuse: expected the input of a layer left as it is until the layer's value is used, as when its "
                "forward was traced, got one that was written to; gan_fast.unfuse(model) runs it"
            )

    def tensor(self) -> Tensor:
        """The value."""
        if self._value is None:
            # What somebody else has computed has moved the running statistics.
            moving = not self._taken
            self._take()
            if self._called_in[0] and not torch.is_grad_enabled() and _in_an_autograd_function():
                raise RuntimeError(
                    "fuse: expected forward to call the functions it called when it was traced, got an "
                    "autograd.Function applied to a layer's value, whose gradient would be lost; "
                    "gan_fast.unfuse(model) runs it"
                )
            with self._modes_of_the_call():
                self._value = self.compute("identity", 0.01, moving)
        return self._value

    def activated(self, activation: str, negative_slope: float, inplace: bool) -> Tensor:
        if self.take():
            output = self.compute(activation, negative_slope)
        else:
            apply = activations.apply_over if inplace else activations.apply
            output = apply(self.tensor(), activation, negative_slope)
        if inplace:
            self._value = output
        return output

    @contextmanager
    def _modes_of_the_call(self) -> Iterator[None]:
        if self._called_in == modes():
            yield
            return
        grad, inference, cast = self._called_in
        cpu, cuda = cast or (None, None)
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(grad),
            torch.autocast("cpu", dtype=cpu or None, enabled=bool(cpu)),
            torch.autocast("cuda", dtype=cuda or None, enabled=bool(cuda)),
        ):
            yield

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        parse = ACTIVATIONS.get(func)
        if parse is not None and args and type(args[0]) is cls and not kwargs.keys() - {"negative_slope", "inplace"}:
            activation, negative_slope, inplace = parse(*args, **kwargs)
            if type(negative_slope) in (int, float):
                return args[0].activated(activation, float(negative_slope), bool(inplace))
        args, kwargs = _pytree.tree_map_only(cls, cls.tensor, (tuple(args), kwargs))
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:
            return lambda: self.activated(name.rstrip("_"), 0.01, name.endswith("_"))
        return getattr(self.tensor(), name)


def _operator(name: str) -> Callable[..., Any]:
    def call(self: Deferred, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.tensor(), name)(*resolve(args), **resolve(kwargs))

    return call


# Python looks these up on the class: attributes of the instance do not serve operators.
ARITHMETIC = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift",
)  # fmt: skip
_OTHERS = (
    "eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert", "bool", "int", "float", "complex", "index",
    "len", "iter", "reversed", "contains", "getitem", "setitem", "array", "repr", "format", "deepcopy", "reduce_ex",
)  # fmt: skip
for _name in (*(kind + name for kind in ("", "r", "i") for name in ARITHMETIC), *_OTHERS):
    setattr(Deferred, f"__{_name}__", _operator(f"__{_name}__"))
