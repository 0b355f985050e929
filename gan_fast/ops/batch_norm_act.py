"""Batch norm and the activation behind it as one op."""

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
from gan_fast.memory_format import empty_output_like, suggest_memory_format
from gan_fast.ops import activation as activations
from gan_fast.ops import checks, dispatch, recompute

OP = "batch_norm_act"
backends.register(OP, "batch_norm_act_forward", triton_file=OP, aten_when_small=True)

# Mean and variance of each channel, where they are given.
Statistics = tuple[Any, Any] | None

_native = SimpleNamespace(
    forward=dispatch.kernel("batch_norm_act_forward"),
    normalize=dispatch.kernel("batch_norm_act_normalize"),
    backward=dispatch.kernel("batch_norm_act_backward"),
    double_backward=dispatch.kernel("batch_norm_act_double_backward"),
)


def _kernels(input: Tensor) -> Any:
    """What serves: functions of the native ops' names and signatures."""
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
    """The same on plain ATen: any device, any dtype, any order of derivative."""
    if weight is None and bias is not None:
        # ATen's double backward fails, or gives none by the bias, for a bias alone.
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
    """Batch norm in ops whose derivatives are right to any order.

    Double backward of ATen's batch norm takes the batch's mean and variance for constants where it is differentiated
    again, so that its third derivatives are wrong; without a weight it fails where the statistics are given.

    Args:
        statistics: mean and variance; None for the batch's.
    """
    dims, of_channels = [0, *range(2, input.dim())], [1, -1, *(1,) * (input.dim() - 2)]
    # Half types are computed in single precision.
    values = input if input.dtype == torch.float64 else input.float()
    if statistics is None:
        centered = values - values.mean(dims, keepdim=True)
        var = centered.square().mean(dims, keepdim=True)
    else:
        mean, var = (t.to(values.dtype).view(of_channels) for t in statistics)
        centered = values - mean
    output = centered * (var + eps).rsqrt()
    if weight is not None:
        output = output * weight.to(values.dtype).view(of_channels)
    if bias is not None:
        output = output + bias.to(values.dtype).view(of_channels)
    return output.to(input.dtype)


def _correct_third_order(
    output: Tensor, input: Tensor, weight: Tensor | None, eps: float, statistics: Statistics
) -> None:
    """Make derivatives of the third order on right for ``output``, which is ATen's batch norm of ``input``.

    The first and second order stay ATen's.
    """
    node = output.grad_fn
    # Where the input has no gradient, neither have its mean and variance.
    if node is None or not input.requires_grad or (statistics is not None and weight is not None):
        return
    # Weak references: the node keeps both tensors, and the hook outlives what the node keeps.
    tensors = tuple(None if t is None else weakref.ref(t) for t in (input, weight))

    def replace(grads: tuple[Tensor | None, ...], grad_outputs: tuple[Tensor | None, ...]) -> Any:
        if not torch.is_grad_enabled() or grad_outputs[0] is None:
            return None
        own = tuple(None if t is None else t() for t in tensors)
        return (*_Corrected.apply(*grads[:3], grad_outputs[0], *own, eps, statistics), *grads[3:])

    node.register_hook(replace)


class _Corrected(torch.autograd.Function):
    """Gradients of ATen's batch norm by input, weight and bias, with right derivatives of their derivatives."""

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
                f"{OP}: expected derivative order at most 2 on ATen's kernels under saved-tensor hooks (checkpointing, "
                "offloading), got a third; without them it is differentiable to any order"
            )
        # Any bias will do: its gradient is that of the output, whatever its value.
        bias = None if cotangents[2] is None else cotangents[2].new_zeros(input.size(1)).requires_grad_()
        by_grad, by_input, by_weight, _ = dispatch.differentiate_reference(
            lambda *values: written_out(*values, *ctx.options), (input, weight, bias), grad_output, cotangents
        )
        return *(None,) * 3, by_grad, by_input, by_weight, None, None


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
    checks.floating(op, "input", input)
    if input.dim() < 2:
        raise ValueError(f"{op}: expected input dimensions at least 2 (N, C, ...), got shape {tuple(input.shape)}")
    if not training and (running_mean is None or running_var is None):
        raise ValueError(f"{op}: expected running_mean and running_var tensors when {mode} is False, got None")
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{op}: expected running_mean and running_var both tensors or both None, got one of each")
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
            raise TypeError(
                f"{op}: expected {name} dtype {checks.name_of(first[1].dtype)} as {first[0]}, "
                f"got {checks.name_of(value.dtype)}"
            )
        first = first or (name, value)
    for name, statistic in statistics.items():
        if statistic is not None and statistic.requires_grad:
            raise ValueError(f"{op}: expected {name} not to require grad, got one that does: it has no gradient")
    for name, number in (("momentum", momentum), ("eps", eps), ("negative_slope", negative_slope)):
        checks.number(op, name, number)
    if training and not eps > 0:
        raise ValueError(f"{op}: expected eps above 0 when {mode}, got {eps!r}")
    if training and input.size(0) * math.prod(input.shape[2:]) == 1:
        raise ValueError(f"{op}: expected input more than 1 value per channel when {mode}, got {tuple(input.shape)}")
    checks.one_of(op, "activation", activation, activations.NAMES)


def _recipe(ctx: Any) -> recompute.Recipe:
    """The output of a BatchNormAct node, from what it keeps."""
    input, weight, bias, mean, invstd = ctx.saved_tensors
    _, activation, negative_slope, _ = ctx.options
    # A copy: an optimizer may step before a gradient is taken that does not go through the norm.
    weight = None if weight is None else weight.detach().clone()
    compute = functools.partial(ctx.kernels.normalize, activation=activation, negative_slope=negative_slope)
    return recompute.Recipe(compute, input, mean, invstd, weight, bias)


class BatchNormAct(torch.autograd.Function):
    """output, mean, invstd of torch.ops.gan_fast.batch_norm_act_forward."""

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
            raise NotImplementedError(f"{OP}: expected running statistics not to require grad, got one that does")
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
        # A node of its own only where somebody will differentiate again.
        recording = dispatch.records_graph("batch_norm_act_backward", grad_output)
        if recording:
            grads = BatchNormActBackward.apply(*arguments, eps, ctx.kernels)
        elif torch._C._functorch.is_legacy_batchedtensor(grad_output):
            # The dispatcher takes a batch of gradients apart.
            grads = _native.backward(*arguments)
        else:
            grads = ctx.kernels.backward(*arguments)
        grad_input, grad_weight, grad_bias = grads
        return grad_input, None, None, grad_weight, grad_bias, *(None,) * 6


class BatchNormActBackward(torch.autograd.Function):
    """The three gradients of torch.ops.gan_fast.batch_norm_act_backward.

    mean and invstd are those of input: in training their dependence on it is part of the gradient by input.
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
        by_grad, by_input, by_weight, by_bias = ctx.kernels.double_backward(
            *cotangents, grad_output, input, mean, invstd, weight, bias, training, activation, negative_slope,
            ctx.needs_input_grad[0], ctx.needs_input_grad[1],
        )  # fmt: skip
        return by_grad, by_input, None, None, by_weight, by_bias, *(None,) * 7

    @staticmethod
    def _higher_order(ctx: Any, cotangents: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        grad_output, input, mean, invstd, weight, bias = ctx.saved_tensors
        training, activation, negative_slope, eps = ctx.options
        if eps is None:
            raise NotImplementedError(
                "batch_norm_act_backward: expected derivative order at most 2, got a third; "
                "gan_fast.ops.batch_norm_act is differentiable to any order"
            )

        def forward(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            output = written_out(input, weight, bias, eps, None if training else (mean, invstd**-2 - eps))
            return activations.apply(output, activation, negative_slope)

        by_grad, by_input, by_weight, by_bias = dispatch.differentiate_reference(
            forward, (input, weight, bias), grad_output, cotangents
        )
        return by_grad, by_input, None, None, by_weight, by_bias, *(None,) * 7


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
    """Normalise each channel and apply an activation, as ``F.batch_norm`` and the activation do one after the other.

    mean, var = running_mean, running_var, or in training the batch's over (N, *spatial), var biased;
    z = (input - mean) / sqrt(var + eps) * weight + bias; output = activation(z).
    In training running_mean and running_var become (1 - momentum) * old + momentum * new, in place, where the new
    variance is the unbiased one.

    Args:
        input: (N, C, *spatial) with any number of spatial dims, float64, float32, bfloat16 or float16, any strides.
        running_mean, running_var: (C,), both or neither; needed when ``training`` is False.
        weight, bias: (C,) or None (ones and zeros). Statistics and parameters share one dtype: the input's, or float32
            beside a bfloat16 or float16 input.
        training: normalise by the batch's statistics and update the running ones.
        momentum: weight of the batch in the running statistics, in [0, 1] as a rule.
        eps: added to the variance; above 0 in training.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: slope of "leaky_relu" below zero; unused by the others.

    Returns:
        Tensor of input's shape and dtype with the strides that ATen gives: channels-last in, channels-last out.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shape, device, activation, missing statistics, one value per channel in training.

    Notes:
        Derivatives: first and second by kernels, higher ones by ATen's ops on the formula above, since ATen's own batch
            norm has wrong third derivatives in training; gradients reach input, weight, bias.
        Memory: backward keeps input and two vectors of C; the activation is recomputed.
        Accumulation: sums in float64; statistics and arithmetic in float32 for the half types.
        Deterministic, and the same to the last bit for any number of threads and any CPU instruction set.
        No elements: an empty result, zero gradients, running statistics left alone.
        Backends: native CPU kernel; on a GPU the quickest of CUDA C++ (where it was built), Triton's (not for float64)
            and ATen's; the reference elsewhere and under functorch transforms.

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
    """batch_norm_act as part of ``op``, whose names for weight and bias begin with ``prefix``.

    Args:
        statistics: of the input, where the kernel that wrote it has them: of Triton, as its norm then is.
    """
    if checks.is_for_torch(op, input, running_mean, running_var, weight, bias):
        output = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return activations.apply(output, activation, negative_slope)
    # What ATen would take without a word, or refuse when it has moved the statistics, is left to the checks.
    if (
        not backends.is_transformed()
        and (bias is None or weight is not None)
        and backends.is_small(input, running_mean, running_var, weight, bias)
        and type(momentum) is type(eps) is type(negative_slope) is float
        and eps > 0
        and activation in activations.NAMES
        and (weight is None or weight.dim() == 1)
        and (bias is None or bias.dim() == 1)
        and not (training and input.dim() > 1 and input.numel() == input.size(1))
    ):
        try:
            output = torch.batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, False)
        except (RuntimeError, TypeError, ValueError, IndexError):
            pass  # the checks below say what is wrong in words of ours, or it is served there
        else:
            _correct_third_order(output, input, weight, eps, None if training else (running_mean, running_var))
            return activations.apply_to_result(output, activation, negative_slope)
    arguments = (input, running_mean, running_var, weight, bias, training, momentum, eps, activation, negative_slope)
    if torch.jit.is_tracing():
        # A trace holds ATen's ops, and no shapes that were looked at.
        return reference(*arguments)
    check(op, prefix, *arguments)
    if statistics and training:
        return _apply_node(*arguments, statistics)
    # An op by itself and as part of another is one class: the same kernels run.
    return backends.call_fastest(
        OP, functools.partial(_serve, op=op), arguments, lambda: shape_class(input, training, activation)
    )


def shape_class(input: Tensor, by_batch: bool, activation: str) -> tuple[Any, ...]:
    """What a norm's time depends on, sizes to a power of two."""
    channels = input.size(1).bit_length()
    memory_format = "contiguous" if suggest_memory_format(input) is torch.contiguous_format else "channels-last"
    return (
        checks.name_of(input.dtype), memory_format, f"2^{input.numel().bit_length()} values", f"2^{channels} channels",
        "own statistics" if by_batch else "given statistics", activation,
    )  # fmt: skip


def _serve(*arguments: Any, op: str) -> Tensor:
    input = arguments[0]
    return apply(*arguments) if backends.uses_kernel(op, input.device.type, input.dtype) else reference(*arguments)


def apply(*arguments: Any) -> Tensor:
    """batch_norm_act on our kernel, its arguments checked."""
    if torch.compiler.is_compiling():
        output: Tensor = torch.ops.gan_fast.batch_norm_act_forward(*arguments)[0]
        return output
    return _apply_node(*arguments)


def _apply_node(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, *options: Any,
) -> Tensor:  # fmt: skip
    # The node keeps the bias to compute the activation again. ATen's batch norm does not keep it, so a bias may be
    # written to between forward and backward: the node gets a copy.
    if bias is not None and torch.is_grad_enabled():
        bias = bias.clone()
    output: Tensor = BatchNormAct.apply(input, running_mean, running_var, weight, bias, *options)[0]
    return output
