"""Connect the ops of the compiled extension to autograd and to PyTorch's dispatcher.

A differentiable op has one ``autograd.Function``, used in two ways. The public function applies it directly, which is
fastest in eager mode. The Function is also registered for the op's Autograd dispatch key, so that a direct call of
``torch.ops.gan_fast.*``, or one from a compiled graph, has the same derivatives. (The losses have a second, shorter
node for plain CPU tensors.) Inside a Function the kernel is called below autograd.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gan_fast import backends, extension

# A private name of torch, but torch.library's autograd support relies on it too.
below_autograd = torch._C._AutoDispatchBelowAutograd

_subclass_like = torch._C._dispatch_isTensorSubclassLike
_profiling = torch.autograd._profiler_enabled
_tracing = torch._C._get_tracing_state

_library = torch.library.Library("gan_fast", "IMPL") if extension.available() else None


def kernel(op: str) -> Callable[..., Any]:
    """Return a function that calls ``torch.ops.gan_fast.<op>`` below autograd."""
    if not extension.available():

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(f"{op}: expected the compiled extension to be available, got: {extension.load_error}")

        return missing
    overload = getattr(torch.ops.gan_fast, op).default

    def call(*args: Any, **kwargs: Any) -> Any:
        with below_autograd():
            return overload(*args, **kwargs)

    return call


def is_plain_cpu(tensor: Tensor, other: Tensor | None = None) -> bool:
    """Whether a CPU kernel may be called on the tensors directly, past the dispatcher.

    False under a profiler, a tracer, a transform or forward-mode AD, and for tensor subclasses. On small tensors the
    dispatcher costs more than the kernel.
    """
    return (
        type(tensor) is Tensor
        and tensor.is_cpu
        and not (_subclass_like(tensor) or tensor.is_neg() or _profiling() or _tracing())
        and forward_ad._current_level < 0
        and (other is None or (type(other) is Tensor and not (_subclass_like(other) or other.is_neg())))
    )


def is_traced() -> bool:
    """Whether torch.compile or torch.jit.trace is recording: they record ATen's ops, but no Python autograd nodes."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def records_graph(op: str, grad_output: Tensor) -> bool:
    """Whether the running backward pass must itself be differentiable.

    Raises:
        NotImplementedError: it must, but the gradients are batched, and autograd would silently drop the graph.
    """
    if torch.is_grad_enabled() and torch._C._functorch.is_legacy_batchedtensor(grad_output):
        raise NotImplementedError(
            f"{op}: expected create_graph False with is_grads_batched True, got both True; use torch.func.vmap or "
            "gan_fast.use_backend('reference')"
        )
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def cpu_kernel(op: str) -> Callable[..., Any]:
    """Return a function that calls the CPU kernel of ``torch.ops.gan_fast.<op>`` past the dispatcher."""
    if not extension.available():
        return kernel(op)
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    return functools.partial(getattr(torch.ops.gan_fast, op).default._handle.redispatch_boxed, cpu)


def fast_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return ``function.apply`` without its Python part, which only functorch needs."""
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


def register(op: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register autograd for ``torch.ops.gan_fast.<op>``, and ``fake``, which returns results without values."""
    if _library is None:
        return
    _library.impl(op, function, "Autograd")
    torch.library.register_fake(f"gan_fast::{op}", fake, lib=_library)


def register_triton(op: str, file: str, function: str) -> None:
    """Register ``function`` of triton_kernels/``file`` as the CUDA kernel of an op that has none in C++."""
    call = backends.dispatch_to_triton(op, file, function)
    if _library is not None and call is not None:
        _library.impl(op, call, "CUDA")


def is_autocast_enabled(device_type: str) -> bool:
    """Like torch.is_autocast_enabled, but False on devices without autocast, where torch's raises."""
    return _has_autocast(device_type) and torch.is_autocast_enabled(device_type)


def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# torch 2.11 cannot compile this function. torch.compiler.assume_constant_result sets the same attribute, but imports
# all of torch.compile.
_has_autocast._dynamo_marked_constant = True  # type: ignore[attr-defined]


def without_derivative(op: str) -> Callable[..., Any]:
    """Return an autograd function that raises if an argument requires grad: the op has no derivative."""
    below = kernel(op)

    def call(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            raise NotImplementedError(f"{op}: expected no argument to require grad, got one: it has no derivative")
        return below(*args)

    return call


def grads_needed(ctx: Any, count: int) -> tuple[bool, ...]:
    """Return, for each of a node's first ``count`` inputs, whether the running backward pass computes its gradient.

    ``ctx.needs_input_grad`` says which inputs require grad. A gradient penalty differentiates with respect to the
    images only, and must not pay for the gradients of all weights.
    """
    edges = ctx.next_functions
    return tuple(needed and _will_run(edges[i][0]) for i, needed in enumerate(ctx.needs_input_grad[:count]))


def _will_run(node: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:
        # torch raises for a leaf that autograd.grad differentiates with respect to.
        return True


def differentiate_reference(
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    grad_output: Tensor,
    cotangents: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Return the double backward of ``reference``, itself differentiable: third and higher orders use it.

    Args:
        reference: function of ``inputs`` in ATen's ops, with one output.
        inputs: its arguments, tensors or None.
        grad_output: gradient with respect to the output.
        cotangents: one for each first gradient with respect to ``inputs``; None means zero.

    Returns:
        The gradients with respect to ``grad_output`` and each of ``inputs``; None where there is no dependence.
    """
    with torch.enable_grad():
        # Differentiate with respect to views: an input that was computed from another input must not count twice.
        fresh = [t if t is None or not t.requires_grad else t.view_as(t) for t in inputs]
        seed = grad_output.view_as(grad_output) if grad_output.requires_grad else grad_output.detach().requires_grad_()
        wrt = [t for t in fresh if t is not None and t.requires_grad]
        output = reference(*fresh)
        first = torch.autograd.grad(output, wrt, seed, create_graph=True, allow_unused=True)
        first_by_id = dict(zip((id(t) for t in wrt), first))
        pairs = [
            (first_by_id[id(t)], c)
            for t, c in zip(fresh, cotangents)
            if c is not None and t is not None and t.requires_grad and first_by_id[id(t)] is not None
        ]
        if not pairs:
            return (None,) * (1 + len(inputs))
        outputs, grads = zip(*pairs)
        second = torch.autograd.grad(outputs, [seed, *wrt], grads, create_graph=True, allow_unused=True)
    result = dict(zip((id(t) for t in (seed, *wrt)), second))
    return tuple(None if t is None else result.get(id(t)) for t in (seed, *fresh))
