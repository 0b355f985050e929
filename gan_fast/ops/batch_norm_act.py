"""Batch norm and an activation in one op.

>>> import torch
>>> from gan_fast import ops
>>> x = torch.tensor([[-1.0], [3.0]])
>>> ops.batch_norm_act(x, None, None, training=True, activation="leaky_relu", negative_slope=0.2)
tensor([[-0.2000],
        [ 1.0000]])
"""

from __future__ import annotations

import functools
import math
import weakref
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends
from gan_fast.choices import ACTIVATIONS
from gan_fast.memory_format import empty_output_like, suggest_memory_format
from gan_fast.ops import activations, checks, dispatch, recompute

OP = "batch_norm_act"
backends.register(OP, "batch_norm_act_forward", triton_file=OP, aten_when_small=True)

# Mean and variance of each channel, or None for those of the batch.
Statistics = tuple[Any, Any] | None

_native = SimpleNamespace(
    forward=dispatch.kernel("batch_norm_act_forward"),
    normalize=dispatch.kernel("batch_norm_act_normalize"),
    backward=dispatch.kernel("batch_norm_act_backward"),
    double_backward=dispatch.kernel("batch_norm_act_double_backward"),
)


def _kernels(input: Tensor) -> Any:
    """Return the functions of Triton or of the compiled extension; both have the same names and signatures."""
    return backends.triton_kernels(OP, input) or _native


def reference(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "leaky_relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """Compute batch_norm_act with ATen's ops, on any device and dtype, with correct derivatives of any order."""
    if weight is None and bias is not None:
        # With a bias but no weight ATen's double backward fails, or returns no gradient for the bias.
        weight = torch.ones_like(bias, requires_grad=False)
    statistics = None if training else (running_mean, running_var)
    if backends.is_transformed():
        if training and running_mean is not None:
            F.batch_norm(input.detach(), running_mean, running_var, None, None, True, momentum, eps)
        output = written_out(input, weight, bias, eps, statistics)
    else:
        output = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        if not dispatch.is_traced():
            _correct_third_order(output, input, weight, eps, statistics)
    return activations.apply(output, activation, negative_slope)


def written_out(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, statistics: Statistics = None
) -> Tensor:
    """Compute batch norm in elementary ops, whose derivatives are correct to any order.

    ATen's batch norm has wrong third derivatives: its double backward treats the batch's mean and variance as
    constants. Without a weight and with given statistics, its double backward fails.
    """
    dims, per_channel = [0, *range(2, input.dim())], [1, -1, *(1,) * (input.dim() - 2)]
    # Compute half types in single precision.
    values = input if input.dtype == torch.float64 else input.float()
    if statistics is None:
        centered = values - values.mean(dims, keepdim=True)
        var = centered.square().mean(dims, keepdim=True)
    else:
        mean, var = (t.to(values.dtype).view(per_channel) for t in statistics)
        centered = values - mean
    output = centered * (var + eps).rsqrt()
    if weight is not None:
        output = output * weight.to(values.dtype).view(per_channel)
    if bias is not None:
        output = output + bias.to(values.dtype).view(per_channel)
    return output.to(input.dtype)


def _correct_third_order(
    output: Tensor, input: Tensor, weight: Tensor | None, eps: float, statistics: Statistics
) -> None:
    """Correct the third and higher derivatives of ``output``, the result of ATen's batch norm of ``input``."""
    node = output.grad_fn
    # If the input requires no gradient, its mean and variance are constants, and ATen's derivatives are correct.
    if node is None or not input.requires_grad or (statistics is not None and weight is not None):
        return
    # Weak references, because the node already saves both tensors and frees them earlier than the hook.
    references = tuple(None if t is None else weakref.ref(t) for t in (input, weight))

    def replace(grads: tuple[Tensor | None, ...], grad_outputs: tuple[Tensor | None, ...]) -> Any:
        if not torch.is_grad_enabled() or grad_outputs[0] is None:
            return None
        tensors = tuple(None if r is None else r() for r in references)
        return (*_Corrected.apply(*grads[:3], grad_outputs[0], *tensors, eps, statistics), *grads[3:])

    node.register_hook(replace)


class _Corrected(torch.autograd.Function):
    """Pass on the gradients of ATen's batch norm, and correct their second and higher derivatives."""

    @staticmethod
    def forward(
        ctx: Any, grad_input: Tensor | None, grad_weight: Tensor | None, grad_bias: Tensor | None, grad_output: Tensor,
        input: Tensor | None, weight: Tensor | None, eps: float, statistics: Statistics,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        ctx.save_for_backward(grad_output, input, weight)
        ctx.options = (eps, statistics)
        ctx.set_materialize_grads(False)
        return grad_input, grad_weight, grad_bias

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return *cotangents, *(None,) * 5
        grad_output, input, weight = ctx.saved_tensors
        if input is None:
            raise NotImplementedError(
                f"{OP}: expected derivative order at most 2 with ATen's kernels under saved-tensor hooks "
                "(checkpointing, offloading), got 3; without such hooks every order works"
            )
        # The values of the bias do not matter: no gradient depends on them.
        bias = None if cotangents[2] is None else cotangents[2].new_zeros(input.size(1)).requires_grad_()
        grad_grad_output, grad_input, grad_weight, _ = dispatch.differentiate_reference(
            lambda *values: written_out(*values, *ctx.options), (input, weight, bias), grad_output, cotangents
        )
        return *(None,) * 3, grad_grad_output, grad_input, grad_weight, None, None


def check(
    op: str,
    prefix: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    negative_slope: float,
    mode: str = "training",
) -> None:
    """Raise for invalid arguments; ``mode`` is the caller's name of ``training``, ``prefix`` is for weight and bias."""
    checks.floating(op, "input", input)
    if input.dim() < 2:
        raise checks.ArgumentError(
            f"{op}: expected input dimensions at least 2 (N, C, ...), got shape {tuple(input.shape)}"
        )
    if not training and (running_mean is None or running_var is None):
        raise checks.ArgumentError(
            f"{op}: expected running_mean and running_var tensors when {mode} is False, got None"
        )
    if (running_mean is None) != (running_var is None):
        raise checks.ArgumentError(
            f"{op}: expected running_mean and running_var both tensors or both None, got one of each"
        )
    statistics = {"running_mean": running_mean, "running_var": running_var}
    parameters = {**statistics, f"{prefix}weight": weight, f"{prefix}bias": bias}
    allowed = (input.dtype,) if input.dtype.itemsize > 2 else (input.dtype, torch.float32)
    first: tuple[str, Tensor] | None = None
    for name, value in parameters.items():
        if value is None:
            continue
        checks.tensor(op, name, value)
        checks.same_device(op, name, value, "input", input)
        checks.shape(op, name, value, (input.size(1),))
        checks.dtype(op, name, value, *allowed)
        if first is not None and value.dtype != first[1].dtype:
            raise checks.DtypeError(
                f"{op}: expected {name} dtype {checks.name_of(first[1].dtype)} to match {first[0]}, "
                f"got {checks.name_of(value.dtype)}"
            )
        first = first or (name, value)
    for name, statistic in statistics.items():
        if statistic is not None and statistic.requires_grad:
            raise checks.ArgumentError(
                f"{op}: expected {name} not to require grad, got one that does: it has no gradient"
            )
    for name, number in (("momentum", momentum), ("eps", eps), ("negative_slope", negative_slope)):
        checks.number(op, name, number)
    if training and not eps > 0:
        raise checks.ArgumentError(f"{op}: expected eps a positive number when {mode}, got {eps!r}")
    if training and input.size(0) * math.prod(input.shape[2:]) == 1:
        raise checks.ArgumentError(
            f"{op}: expected input with more than 1 value per channel when {mode}, got shape {tuple(input.shape)}"
        )
    checks.one_of(op, "activation", activation, ACTIVATIONS)


def _recipe(ctx: Any) -> recompute.Recipe:
    """Return a recipe for the output of a BatchNormAct node, from the tensors that the node saved."""
    input, weight, bias, mean, invstd = ctx.saved_tensors
    _, activation, negative_slope, _ = ctx.options
    # Copy the weight: an optimizer may step before a backward pass that uses the output but not this node.
    weight = None if weight is None else weight.detach().clone()
    compute = functools.partial(ctx.kernels.normalize, activation=activation, negative_slope=negative_slope)
    return recompute.Recipe(compute, input, mean, invstd, weight, bias)


class BatchNormAct(torch.autograd.Function):
    """Autograd node of torch.ops.gan_fast.batch_norm_act_forward: output, mean, invstd."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        activation: str,
        negative_slope: float,
        statistics: tuple[Tensor, ...] = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            raise NotImplementedError(
                f"{OP}: expected running_mean and running_var not to require grad, got one that does"
            )
        ctx.kernels = _kernels(input)
        output, mean, invstd = ctx.kernels.forward(
            input, running_mean, running_var, weight, bias, training, momentum, eps, activation, negative_slope,
            *statistics,
        )  # fmt: skip
        if training and running_mean is not None and running_var is not None:
            torch.autograd.graph.increment_version((running_mean, running_var))
        ctx.save_for_backward(input, weight, bias, mean, invstd)
        ctx.options = (training, activation, negative_slope, eps)
        ctx.recipe = _recipe if recompute.allowed() else None
        ctx.mark_non_differentiable(mean, invstd)
        ctx.set_materialize_grads(False)
        return output, mean, invstd

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 11
        input, weight, bias, mean, invstd = ctx.saved_tensors
        training, activation, negative_slope, eps = ctx.options
        input_wanted = ctx.needs_input_grad[0]
        affine_wanted = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        arguments = (
            grad_output, input, mean, invstd, weight, bias, training, activation, negative_slope,
            input_wanted, affine_wanted,
        )  # fmt: skip
        # A node for the backward pass is only needed if that will be differentiated.
        if dispatch.records_graph("batch_norm_act_backward", grad_output):
            grads = BatchNormActBackward.apply(*arguments, eps, ctx.kernels)
        elif torch._C._functorch.is_legacy_batchedtensor(grad_output):
            # The dispatcher loops over batched gradients.
            grads = _native.backward(*arguments)
        else:
            grads = ctx.kernels.backward(*arguments)
        grad_input, grad_weight, grad_bias = grads
        return grad_input, None, None, grad_weight, grad_bias, *(None,) * 6


class BatchNormActBackward(torch.autograd.Function):
    """Autograd node of torch.ops.gan_fast.batch_norm_act_backward: gradients of input, weight and bias.

    In training mode the gradient of the input includes its effect through mean and invstd.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        input: Tensor,
        mean: Tensor,
        invstd: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        training: bool,
        activation: str,
        negative_slope: float,
        input_wanted: bool,
        affine_wanted: bool,
        eps: float | None = None,
        kernels: Any = None,
    ) -> tuple[Tensor | None, ...]:
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            raise NotImplementedError(
                "batch_norm_act_backward: expected mean and invstd not to require grad, got one that does"
            )
        ctx.kernels = kernels or _kernels(input)
        grads = ctx.kernels.backward(
            grad_output, input, mean, invstd, weight, bias, training, activation, negative_slope,
            input_wanted, affine_wanted,
        )  # fmt: skip
        ctx.save_for_backward(grad_output, input, mean, invstd, weight, bias)
        ctx.options = (training, activation, negative_slope, eps)
        ctx.set_materialize_grads(False)
        return grads

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_output, input, mean, invstd, weight, bias = ctx.saved_tensors
        training, activation, negative_slope, _ = ctx.options
        if all(c is None for c in cotangents):
            return (None,) * 13
        if torch.is_grad_enabled():
            return BatchNormActBackward._higher_order(ctx, cotangents)
        grad_grad_output, grad_input, grad_weight, grad_bias = ctx.kernels.double_backward(
            *cotangents, grad_output, input, mean, invstd, weight, bias, training, activation, negative_slope,
            ctx.needs_input_grad[0], ctx.needs_input_grad[1],
        )  # fmt: skip
        return grad_grad_output, grad_input, None, None, grad_weight, grad_bias, *(None,) * 7

    @staticmethod
    def _higher_order(ctx: Any, cotangents: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        grad_output, input, mean, invstd, weight, bias = ctx.saved_tensors
        training, activation, negative_slope, eps = ctx.options
        if eps is None:
            raise NotImplementedError(
                "batch_norm_act_backward: expected derivative order at most 2, got 3; "
                "gan_fast.ops.batch_norm_act supports every order"
            )

        def forward(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            output = written_out(input, weight, bias, eps, None if training else (mean, invstd**-2 - eps))
            return activations.apply(output, activation, negative_slope)

        grad_grad_output, grad_input, grad_weight, grad_bias = dispatch.differentiate_reference(
            forward, (input, weight, bias), grad_output, cotangents
        )
        return grad_grad_output, grad_input, None, None, grad_weight, grad_bias, *(None,) * 7


def _forward_fake(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, training: bool, momentum: float, eps: float, activation: str, negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    statistics = torch.float64 if input.dtype == torch.float64 else torch.float32
    return (
        empty_output_like(input),
        input.new_empty(input.size(1), dtype=statistics),
        input.new_empty(input.size(1), dtype=statistics),
    )


def _normalize_fake(
    input: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str,
    negative_slope: float,
) -> Tensor:  # fmt: skip
    return empty_output_like(input)


def _parameter_grad(parameter: Tensor | None, wanted: bool = True) -> Tensor | None:
    return None if parameter is None or not wanted else torch.empty_like(parameter)


def _backward_fake(
    grad_output: Tensor, input: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None,
    training: bool, activation: str, negative_slope: float, input_wanted: bool, affine_wanted: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    return (
        empty_output_like(input) if input_wanted else None,
        _parameter_grad(weight, affine_wanted),
        _parameter_grad(bias, affine_wanted),
    )


def _double_backward_fake(
    cotangent_input: Tensor | None, cotangent_weight: Tensor | None, cotangent_bias: Tensor | None,
    grad_output: Tensor, input: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None,
    training: bool, activation: str, negative_slope: float, grad_output_wanted: bool, input_wanted: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    return (
        empty_output_like(input) if grad_output_wanted else None,
        empty_output_like(input) if input_wanted else None,
        _parameter_grad(weight),
        _parameter_grad(bias),
    )


for _name in ("forward", "normalize", "backward", "double_backward"):
    dispatch.register_triton(f"batch_norm_act_{_name}", OP, _name)
dispatch.register("batch_norm_act_forward", BatchNormAct.apply, _forward_fake)
dispatch.register("batch_norm_act_normalize", dispatch.without_derivative("batch_norm_act_normalize"), _normalize_fake)
dispatch.register("batch_norm_act_backward", BatchNormActBackward.apply, _backward_fake)
dispatch.register(
    "batch_norm_act_double_backward",
    dispatch.without_derivative("batch_norm_act_double_backward"),
    _double_backward_fake,
)


def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "leaky_relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """Normalize each channel and apply an activation, like ``F.batch_norm`` followed by the activation.

    mean, var = running_mean, running_var, or in training mode those of the batch over (N, *spatial), var biased;
    z = (input - mean) / sqrt(var + eps) * weight + bias; output = activation(z).
    In training mode running_mean and running_var are updated in place to (1 - momentum) * old + momentum * new, where
    the new variance is the unbiased one.

    Args:
        input: (N, C, *spatial) with any number of spatial dims, float64, float32, bfloat16 or float16, any strides.
        running_mean, running_var: (C,), both or neither; required when ``training`` is False.
        weight, bias: (C,) or None (ones and zeros). Statistics and parameters share one dtype: the input's, or float32
            if the input is bfloat16 or float16.
        training: normalize by the statistics of the batch and update the running ones.
        momentum: weight of the batch in the running statistics, usually from 0 to 1.
        eps: added to the variance; positive in training mode.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: slope of "leaky_relu" below zero; the others ignore it.

    Returns:
        Tensor of input's shape and dtype, channels-last if the input is, like ATen's.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shape or device, unknown activation, missing statistics, one value per channel in training.

    Notes:
        Derivatives: first and second from kernels, higher ones from the formula above in ATen's ops, because ATen's
            batch norm has wrong third derivatives in training mode. With respect to input, weight and bias.
        Memory: saves the input and two vectors of C for backward, and recomputes the activation.
        Accumulation: sums in float64; statistics and arithmetic on half types in float32.
        Determinism: bitwise the same results for any number of threads and any CPU instruction set.
        Empty input: an empty result, zero gradients, unchanged running statistics.
        Backends: a CPU kernel; on a GPU the fastest of CUDA C++ (if built), Triton (not for float64) and ATen; ATen
            elsewhere and under functorch transforms.

    Source: Ioffe and Szegedy, Batch Normalization, 2015 (arXiv 1502.03167).
    """
    return norm(
        OP, "", input, running_mean, running_var, weight, bias, training, momentum, eps, activation, negative_slope
    )


def norm(
    op: str,
    prefix: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    negative_slope: float,
    statistics: tuple[Tensor, ...] = (),
) -> Tensor:
    """Run batch_norm_act as part of ``op``, whose names for weight and bias begin with ``prefix``.

    Args:
        statistics: those of the input, if Triton's convolution computed them; the norm then runs in Triton too.
    """
    if checks.is_for_torch(op, input, running_mean, running_var, weight, bias):
        output = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return activations.apply(output, activation, negative_slope)
    # Small inputs go to ATen, except with arguments that it accepts silently, or rejects only after it has updated the
    # running statistics: the checks below reject those.
    if (
        not backends.is_transformed()
        and (bias is None or weight is not None)
        and backends.is_small(input, running_mean, running_var, weight, bias)
        and type(momentum) is type(eps) is type(negative_slope) is float
        and eps > 0
        and activation in ACTIVATIONS
        and (weight is None or weight.dim() == 1)
        and (bias is None or bias.dim() == 1)
        and not (training and input.dim() > 1 and input.numel() == input.size(1))
    ):
        try:
            output = torch.batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, False)
        except (RuntimeError, TypeError, ValueError, IndexError):
            pass  # the checks below raise a clearer error, or a kernel accepts the arguments
        else:
            _correct_third_order(output, input, weight, eps, None if training else (running_mean, running_var))
            return activations.apply_to_result(output, activation, negative_slope)
    arguments = (input, running_mean, running_var, weight, bias, training, momentum, eps, activation, negative_slope)
    if torch.jit.is_tracing():
        # A trace must not depend on shapes, so skip the checks.
        return reference(*arguments)
    check(op, prefix, *arguments)
    if statistics and training:
        return _apply_node(*arguments, statistics)
    # Measure the norm under its own name even as part of another op, because the same kernels run.
    return backends.call_fastest(
        OP, functools.partial(_batch_norm_act, op=op), arguments, lambda: shape_class(input, training, activation)
    )


def shape_class(input: Tensor, by_batch: bool, activation: str) -> tuple[Any, ...]:
    """Return the properties that determine a norm's time, with sizes rounded to powers of two."""
    channels = input.size(1).bit_length()
    memory_format = "contiguous" if suggest_memory_format(input) is torch.contiguous_format else "channels-last"
    return (
        checks.name_of(input.dtype), memory_format, f"2^{input.numel().bit_length()} values", f"2^{channels} channels",
        "own statistics" if by_batch else "given statistics", activation,
    )  # fmt: skip


def _batch_norm_act(*arguments: Any, op: str) -> Tensor:
    input = arguments[0]
    return apply(*arguments) if backends.uses_kernel(op, input.device.type, input.dtype) else reference(*arguments)


def apply(*arguments: Any) -> Tensor:
    """Run batch_norm_act on gan_fast's kernel; the arguments must have been checked."""
    if torch.compiler.is_compiling():
        output: Tensor = torch.ops.gan_fast.batch_norm_act_forward(*arguments)[0]
        return output
    return _apply_node(*arguments)


def _apply_node(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, *options: Any,
) -> Tensor:  # fmt: skip
    # The node saves the bias to recompute the activation. In eager mode a bias may change between forward and backward,
    # because ATen's batch norm does not save it: so the node gets a copy.
    if bias is not None and torch.is_grad_enabled():
        bias = bias.clone()
    output: Tensor = BatchNormAct.apply(input, running_mean, running_var, weight, bias, *options)[0]
    return output
