"""Tensors whose computation is deferred until the next call, so that several layers run as one op.

While a fused model runs a forward function, its convolutions and norms whose value goes only to one norm or activation
return a :class:`DeferredTensor`. The norm extends it and the activation completes it: one op for all. Any other use
computes the tensor first, which happens where a run takes another path than the one that was traced.
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

# Computes a deferred value, given (activation, negative_slope, update_statistics).
Compute = Callable[..., Tensor]


class _Scope(threading.local):
    # The modules whose outputs are deferred in the forward that this thread runs, and the deferred tensors not yet
    # computed. A tensor is removed when it is consumed, so that its inputs can be freed.
    modules: frozenset[nn.Module] = frozenset()
    pending: dict[DeferredTensor, None] = {}  # noqa: RUF012 (scope() replaces it before anything is added)


_scope = _Scope()


@contextmanager
def scope(modules: frozenset[nn.Module]) -> Iterator[None]:
    """Defer the outputs of ``modules`` in this thread; compute the pending ones on exit."""
    outer = _scope.modules, _scope.pending
    _scope.modules, _scope.pending = modules, {}
    try:
        yield
        for value in tuple(_scope.pending):
            value.tensor()
    finally:
        _scope.modules, _scope.pending = outer


def defers(module: nn.Module, input: Any) -> bool:
    """Whether ``module`` must return a :class:`DeferredTensor` for ``input``."""
    return not torch.compiler.is_compiling() and module in _scope.modules and type(input) in (Tensor, DeferredTensor)


def resolve(value: Any) -> Any:
    """Replace deferred tensors by tensors, also inside containers."""
    if type(value) is DeferredTensor:
        return value.tensor()
    if isinstance(value, Tensor):
        return value
    return _pytree.tree_map_only(DeferredTensor, DeferredTensor.tensor, value)


def modes() -> tuple[Any, ...]:
    """The modes that a ``with`` statement may change between a layer's call and the use of its output."""
    cast = torch._C._is_any_autocast_enabled() and tuple(
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) for device in ("cpu", "cuda")
    )
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), cast


_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]


def _in_an_autograd_function() -> bool:
    """Whether the fused forward that is running has called a custom autograd.Function that is still in its forward."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != "gan_fast.nn.fused":
        if frame.f_code is _APPLY:
            return True
        frame = frame.f_back
    return False


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


def _leaky_relu(input: DeferredTensor, negative_slope: Any = 0.01, inplace: bool = False) -> tuple[str, Any, bool]:
    return "leaky_relu", negative_slope, inplace


def _parser(activation: str, inplace: bool = False) -> Callable[..., tuple[str, float, bool]]:
    return lambda input, inplace=inplace: (activation, 0.01, inplace)


# Functions that complete a deferred tensor, with parsers of their arguments: (activation, negative_slope, inplace).
ACTIVATIONS: dict[Callable[..., Any], Callable[..., tuple[str, Any, bool]]] = {
    F.relu: _parser("relu"), torch.relu: _parser("relu"), torch.relu_: _parser("relu", True),
    F.leaky_relu: _leaky_relu,
    F.leaky_relu_: lambda input, negative_slope=0.01: _leaky_relu(input, negative_slope, True),
    F.tanh: _parser("tanh"), torch.tanh: _parser("tanh"), torch.tanh_: _parser("tanh", True),
    F.sigmoid: _parser("sigmoid"), torch.sigmoid: _parser("sigmoid"), torch.sigmoid_: _parser("sigmoid", True),
}  # fmt: skip
METHODS = ("relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_")


class DeferredTensor:
    """A tensor that is computed on first use, together with the norm or activation that uses it where possible.

    Args:
        compute: computes the tensor.
        source: what it is computed from, a tensor or another deferred tensor with the same number of dimensions.
        convolve: given by a convolution only; computes it with the norm that follows. Takes the norm module, then the
            arguments of ``compute``.
    """

    __hash__ = object.__hash__

    def __init__(self, compute: Compute, source: Any, convolve: Compute | None = None) -> None:
        self.compute, self.convolve = compute, convolve
        self._source: Tensor = source._source if type(source) is DeferredTensor else source
        self._version = _version(self._source)
        self._value: Tensor | None = None
        self._call_modes = modes()
        # True once it is computed, alone or as part of a fused op.
        self._taken = False
        self._pending = _scope.pending
        self._pending[self] = None

    def dim(self) -> int:
        return self._source.dim()

    def take(self) -> bool:
        """Claim the computation for a fused op; False if it already ran or the modes have changed since the call."""
        if self._taken or self._call_modes != modes():
            return False
        self._take()
        return True

    def _take(self) -> None:
        self._taken = True
        self._pending.pop(self, None)
        if self._version != _version(self._source):
            raise RuntimeError(
                "fuse: the input of a fused layer was modified in place before the layer's output was used; "
                "call gan_fast.unfuse(model) to run this forward"
            )

    def tensor(self) -> Tensor:
        if self._value is None:
            # If a fused op took it, that op has updated the running statistics.
            update_statistics = not self._taken
            self._take()
            if self._call_modes[0] and not torch.is_grad_enabled() and _in_an_autograd_function():
                raise RuntimeError(
                    "fuse: forward passed a fused layer's output to a custom autograd.Function on a path that was not "
                    "traced, which would lose the gradient; call gan_fast.unfuse(model) to run this forward"
                )
            with self._restore_call_modes():
                self._value = self.compute("identity", 0.01, update_statistics)
        return self._value

    def activate(self, activation: str, negative_slope: float, inplace: bool) -> Tensor:
        if self.take():
            output = self.compute(activation, negative_slope)
        else:
            apply = activations.apply_over if inplace else activations.apply
            output = apply(self.tensor(), activation, negative_slope)
        if inplace:
            self._value = output
        return output

    @contextmanager
    def _restore_call_modes(self) -> Iterator[None]:
        if self._call_modes == modes():
            yield
            return
        grad, inference, cast = self._call_modes
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
                return args[0].activate(activation, float(negative_slope), bool(inplace))
        args, kwargs = _pytree.tree_map_only(cls, cls.tensor, (tuple(args), kwargs))
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:
            return lambda: self.activate(name.rstrip("_"), 0.01, name.endswith("_"))
        return getattr(self.tensor(), name)


def _operator(name: str) -> Callable[..., Any]:
    def call(self: DeferredTensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.tensor(), name)(*resolve(args), **resolve(kwargs))

    return call


# Python looks operators up on the class, so that __getattr__ does not see them.
ARITHMETIC = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift",
)  # fmt: skip
_OTHERS = (
    "eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert", "bool", "int", "float", "complex", "index",
    "len", "iter", "reversed", "contains", "getitem", "setitem", "array", "repr", "format", "deepcopy", "reduce_ex",
)  # fmt: skip
for _name in (*(kind + name for kind in ("", "r", "i") for name in ARITHMETIC), *_OTHERS):
    setattr(DeferredTensor, f"__{_name}__", _operator(f"__{_name}__"))
