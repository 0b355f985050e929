"""What the ops share in joining native kernels to autograd.

Every native op that a gradient passes through is an ``autograd.Function`` twice over: the public function applies it
directly, which is the quickest way in eager mode, and it is registered for the op's Autograd dispatch key, so that
``torch.ops.gan_fast.*`` called by hand or from a compiled graph is differentiable by the same code (the losses have a
shorter node for plain CPU tensors beside it). Inside a Function the kernel is called below autograd.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gan_fast import backends, extension

# The kernels under autograd; a private name of torch, but the one torch.library's own autograd support stands on.
below_autograd = torch._C._AutoDispatchBelowAutograd

_subclass_like = torch._C._dispatch_isTensorSubclassLike
_profiling = torch.autograd._profiler_enabled
_tracing = torch._C._get_tracing_state

_library = torch.library.Library("gan_fast", "IMPL") if extension.available() else None


def kernel(op: str) -> Callable[..., Any]:
    """Return a call of ``torch.ops.gan_fast.<op>`` under autograd, its overload looked up once."""
    if not extension.available():

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(f"{op}: expected the native module, got none: {extension.load_error}")

        return missing
    overload = getattr(torch.ops.gan_fast, op).default

    def call(*args: Any, **kwargs: Any) -> Any:
        with below_autograd():
            return overload(*args, **kwargs)

    return call


# Calls with plain tensors may leave out what torch puts before a kernel: it costs more than a kernel on small tensors.


def is_plain_cpu(tensor: Tensor, other: Tensor | None = None) -> bool:
    """Whether no tracer, mode, transform, subclass or profiler stands between one or two tensors and a CPU kernel."""
    return (
        type(tensor) is Tensor
        and tensor.is_cpu
        and not (_subclass_like(tensor) or tensor.is_neg() or _profiling() or _tracing())
        and forward_ad._current_level < 0
        and (other is None or (type(other) is Tensor and not (_subclass_like(other) or other.is_neg())))
    )


def is_traced() -> bool:
    """Whether a compiler or a tracer writes down what runs: it sees into ATen's ops, not into Python's nodes."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def records_graph(op: str, grad_output: Tensor) -> bool:
    """Whether a backward pass must leave nodes of its own behind: somebody differentiates again.

    Raises:
        NotImplementedError: where the nodes would be lost in silence.
    """
    if torch.is_grad_enabled() and torch._C._functorch.is_legacy_batchedtensor(grad_output):
        raise NotImplementedError(
            f"{op}: expected create_graph False beside is_grads_batched True, got both; "
            "torch.func.vmap and gan_fast.use_backend('reference') know the combination"
        )
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def cpu_kernel(op: str) -> Callable[..., Any]:
    """Return a call of ``torch.ops.gan_fast.<op>``'s CPU kernel past the dispatcher's other layers."""
    if not extension.available():
        return kernel(op)
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    return functools.partial(getattr(torch.ops.gan_fast, op).default._handle.redispatch_boxed, cpu)


def fast_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return ``function.apply`` less its Python half, which serves functorch alone."""
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


def register(op: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Make ``function`` the autograd of ``torch.ops.gan_fast.<op>`` and ``fake`` its shapes, strides and dtypes."""
    if _library is None:
        return
    _library.impl(op, function, "Autograd")
    torch.library.register_fake(f"gan_fast::{op}", fake, lib=_library)


def register_triton(native_op: str, file: str, function: str) -> None:
    """Let the dispatcher find ``function`` of triton_kernels/``file`` for a native op on a GPU."""
    call = backends.dispatch_to_triton(native_op, file, function)
    if _library is not None and call is not None:
        _library.impl(native_op, call, "CUDA")


def is_autocast_enabled(device_type: str) -> bool:
    """As torch's, for any device: some have no autocast to ask for."""
    return _has_autocast(device_type) and torch.is_autocast_enabled(device_type)


def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# The compiler of torch 2.11 cannot trace it. Set as torch.compiler.assume_constant_result does, without its imports.
_has_autocast._dynamo_marked_constant = True  # type: ignore[attr-defined]


def without_derivative(op: str) -> Callable[..., Any]:
    """The autograd of an op whose derivative is not written: an error where one is asked for, never silence."""

    under = kernel(op)

    def call(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            raise NotImplementedError(f"{op}: expected no argument to require grad, got one: it has no derivative")
        return under(*args)

    return call


def grads_needed(ctx: Any, count: int) -> tuple[bool, ...]:
    """Which gradients of a node's first ``count`` inputs (tensors, then None) the running backward pass asks for.

    ``ctx.needs_input_grad`` tells what requires a gradient, not what this pass was asked for: a gradient penalty wants
    that of the images alone, and would pay for those of all weights.
    """
    edges = ctx.next_functions
    return tuple(needed and _will_run(edges[i][0]) for i, needed in enumerate(ctx.needs_input_grad[:count]))


def _will_run(node: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:
        # torch does not answer for a leaf that autograd.grad was asked for.
        return True


def differentiate_reference(
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    grad_output: Tensor,
    cotangents: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Double backward through the reference, itself differentiable: what third and higher orders run on.

    Args:
        reference: function of ``inputs`` on plain ATen, with one output.
        inputs: its tensors, None where there is none.
        grad_output: the first backward's gradient.
        cotangents: one for each of the first backward's gradients by ``inputs``; None stands for zero.

    Returns:
        The gradients by ``grad_output`` and then by each of ``inputs``; None where nothing depends on it.
    """
    with torch.enable_grad():
        # Views cut each input from its own history: an input computed from another must not count twice.
        fresh = [t if t is None or not t.requires_grad else t.view_as(t) for t in inputs]
        seed = grad_output.view_as(grad_output) if grad_output.requires_grad else grad_output.detach().requires_grad_()
        wrt = [t for t in fresh if t is not None and t.requires_grad]
        output = reference(*fresh)
        first = torch.autograd.grad(output, wrt, seed, create_graph=True, allow_unused=True)
        by_input = dict(zip((id(t) for t in wrt), first))
        pairs = [
            (by_input[id(t)], c)
            for t, c in zip(fresh, cotangents)
            if c is not None and t is not None and t.requires_grad and by_input[id(t)] is not None
        ]
        if not pairs:
            return (None,) * (1 + len(inputs))
        outputs, grads = zip(*pairs)
        second = torch.autograd.grad(outputs, [seed, *wrt], grads, create_graph=True, allow_unused=True)
    result = dict(zip((id(t) for t in (seed, *wrt)), second))
    return tuple(None if t is None else result.get(id(t)) for t in (seed, *fresh))
