"""Convolutions and transposed convolutions with one to three spatial dims and a cheap double backward.

>>> import torch
>>> from gan_fast import ops
>>> x, weight = torch.ones(1, 3, 8, 8), torch.ones(16, 3, 4, 4)
>>> ops.conv2d(x, weight, stride=2, padding=1).shape
torch.Size([1, 16, 4, 4])

This file connects the kernels of ops/conv_kernels.py to autograd. Each kernel is linear in both of its tensors, and
they are each other's derivatives. With input x, weight W and output gradient g:

    y = conv(x, W)      dx = backward_data(g, W)        dW = backward_weight(g, x)
    <dx, v>             d/dg = conv(v, W)               d/dW = backward_weight(g, v)
    <dW, U>             d/dg = conv(x, U)               d/dx = backward_data(g, U)

So three autograd nodes that call each other provide derivatives of any order, at one kernel call per gradient. ATen's
double backward computes a weight gradient as a convolution whose filter is as large as the image.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends, fp32_precision
from gan_fast.ops import activations, checks, conv_kernels, dispatch, per_sample, recompute
from gan_fast.ops.batch_norm_act import norm as batch_norm
from gan_fast.ops.conv_kernels import NOTHING, ConvGeometry, Epilogue, Like
from gan_fast.ops.leaky_relu import DependOn, LeakyReLU
from gan_fast.ops.per_sample import Factors
from gan_fast.ops.spatial_dims import for_1d_2d_3d

OPS = tuple(f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in (1, 2, 3))
for _op in OPS:
    backends.register(_op, None, triton_file="conv" if _op.endswith("2d") else None, aten_when_small=True)


class Convolution(torch.autograd.Function):
    """A convolution and its epilogue.

    ``kernels`` are Triton's functions, or None for ATen's and the CPU's. With Triton the output can be followed by its
    statistics, for a batch norm.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, kernels: Any,
        epilogue: Epilogue = NOTHING, gradient: bool = True,
    ) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
        output, kept, statistics = conv_kernels.forward(
            input, weight, bias, geometry, kernels, epilogue, gradient and any(ctx.needs_input_grad)
        )
        ctx.factors = per_sample.recording()
        # The gradient of each of the two tensors needs the other one.
        ctx.save_for_backward(
            input if ctx.needs_input_grad[1] else None,
            weight if ctx.needs_input_grad[0] else None,
            kept,
            bias if ctx.factors is not None else None,
            # Only the output's position in the graph is needed: _apply drops its values.
            output if epilogue.activation == "leaky_relu" and kept is not None and recompute.allowed() else None,
        )
        ctx.options = (Like.of(input), Like.of(weight), geometry, epilogue, output.stride())
        ctx.kernels = kernels
        ctx.set_materialize_grads(False)
        if statistics is None:
            return output
        ctx.mark_non_differentiable(*statistics)
        return output, *statistics

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 7
        input_like, weight_like, geometry, epilogue, strides = ctx.options
        wanted, factors = dispatch.grads_needed(ctx, 3), ctx.factors
        merging = factors is not None and factors.merging
        input, weight, activated, bias, output_place = recompute.saved_tensors(
            ctx, (wanted[1] or merging, wanted[0], True, True, True)
        )
        recording = dispatch.records_graph("convolution_backward", grad_output)
        if activated is not None:
            depends = recording and output_place is not None and not grad_output.requires_grad
            grad_output = epilogue.backward(grad_output, activated, strides, ctx.kernels)
            if depends:
                grad_output = DependOn.apply(grad_output, output_place)
        if merging:
            known = None if input is None else input.detach()
            grad_input = BackwardData.apply(
                grad_output, weight, bias, known, input_like, geometry, ctx.kernels, factors
            )
            grad_weight = grad_bias = None
        elif factors is not None and not factors.merged and factors.values is not None:
            return *_backward_with_factors(ctx, grad_output, input, weight, wanted), *(None,) * 4
        elif recording:
            grad_input = grad_weight = None
            if wanted[0]:
                grad_input = BackwardData.apply(grad_output, weight, None, None, input_like, geometry, ctx.kernels)
            if wanted[1]:
                grad_weight = BackwardWeight.apply(grad_output, input, weight_like, geometry, ctx.kernels)
            grad_bias = conv_kernels.bias_gradient(grad_output) if wanted[2] else None
        else:
            input = input_like if input is None else input
            weight = weight_like if weight is None else weight
            grad_input, grad_weight, grad_bias = conv_kernels.backward(
                grad_output, input, weight, geometry, wanted, ctx.kernels
            )
        return grad_input, grad_weight, grad_bias, *(None,) * 4


def _backward_with_factors(
    ctx: Any, grad_output: Tensor, input: Tensor | None, weight: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of input, weight and bias, the last two for ``grad_output`` times the factors."""
    input_like, weight_like, geometry, *_ = ctx.options
    _check_graph_is_not_recorded()
    grad_input, *_ = conv_kernels.backward(
        grad_output, input_like, weight_like if weight is None else weight, geometry, (wanted[0], False, False),
        ctx.kernels,
    )  # fmt: skip
    # The weight gradient is linear in both tensors, so scale the smaller one. The bias only depends on grad_output.
    wanted_here = (False, wanted[1], wanted[2])
    if input is not None and input.numel() < grad_output.numel() and not wanted[2]:
        input = ctx.factors.times(input)
    else:
        grad_output = ctx.factors.times(grad_output)
    _, grad_weight, grad_bias = conv_kernels.backward(
        grad_output, input_like if input is None else input, weight_like, geometry, wanted_here, ctx.kernels
    )
    return grad_input, grad_weight, grad_bias


def _check_graph_is_not_recorded() -> None:
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "convolution_backward: expected create_graph False in the backward pass of a loss and penalty that share "
            "it, got True"
        )


class BackwardData(torch.autograd.Function):
    """The gradient of a convolution with respect to its input.

    With ``factors`` f, whose values are set before this node's backward pass runs, that pass adds the weight and bias
    gradients of a loss whose cotangents are f times ``grad_output``. The weight gradient of <dx, v> is
    backward_weight(g, v), and the loss's is backward_weight(f g, x), so one kernel call computes both:
    backward_weight(g, v + f x).
    """

    @staticmethod
    def forward(
        ctx: Any, grad_output: Tensor, weight: Tensor, bias: Tensor | None, input: Tensor | None, input_like: Like,
        geometry: ConvGeometry, kernels: Any, factors: Factors | None = None,
    ) -> Tensor | None:  # fmt: skip
        ctx.save_for_backward(
            grad_output if ctx.needs_input_grad[1] or factors is not None else None,
            weight if ctx.needs_input_grad[0] else None,
            input,
        )
        ctx.factors = factors
        ctx.options = (Like.of(weight), geometry, kernels)
        ctx.set_materialize_grads(False)
        return conv_kernels.backward(grad_output, input_like, weight, geometry, (True, False, False), kernels)[0]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
        factors = ctx.factors if ctx.factors is not None and ctx.factors.values is not None else None
        if cotangent is None and factors is None:
            return (None,) * 8
        grad_output, weight, input = ctx.saved_tensors
        weight_like, geometry, kernels = ctx.options
        wanted = dispatch.grads_needed(ctx, 3)
        grad_grad_output = grad_weight = grad_bias = None
        if cotangent is not None:
            dispatch.records_graph("convolution_backward", cotangent)
            grad_grad_output = Convolution.apply(cotangent, weight, None, geometry, kernels) if wanted[0] else None
        if factors is not None:
            _check_graph_is_not_recorded()
            if wanted[1]:
                scaled = factors.times(input)
                cotangent = scaled if cotangent is None else scaled.add_(cotangent)
            if wanted[2]:
                grad_bias = conv_kernels.bias_gradient(factors.times(grad_output))
        if wanted[1]:
            grad_weight = BackwardWeight.apply(grad_output, cotangent, weight_like, geometry, kernels)
        return grad_grad_output, grad_weight, grad_bias, *(None,) * 5


class BackwardWeight(torch.autograd.Function):
    """The gradient of a convolution with respect to its weight."""

    @staticmethod
    def forward(
        ctx: Any, grad_output: Tensor, input: Tensor, weight_like: Like, geometry: ConvGeometry, kernels: Any
    ) -> Tensor | None:
        ctx.save_for_backward(
            grad_output if ctx.needs_input_grad[1] else None, input if ctx.needs_input_grad[0] else None
        )
        ctx.options = (Like.of(input), geometry, kernels)
        ctx.set_materialize_grads(False)
        return conv_kernels.backward(grad_output, input, weight_like, geometry, (False, True, False), kernels)[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
        if cotangent is None:
            return (None,) * 5
        dispatch.records_graph("convolution_backward", cotangent)
        grad_output, input = ctx.saved_tensors
        input_like, geometry, kernels = ctx.options
        wanted = dispatch.grads_needed(ctx, 2)
        grad_grad_output = Convolution.apply(input, cotangent, None, geometry, kernels) if wanted[0] else None
        grad_input = None
        if wanted[1]:
            grad_input = BackwardData.apply(grad_output, cotangent, None, None, input_like, geometry, kernels)
        return grad_grad_output, grad_input, None, None, None


def _per_dim(op: str, argument: str, value: Any, dims: int, least: int) -> tuple[int, ...]:
    """Return one int per spatial dim from an int, a sequence of one int, or a sequence of one int per dim."""
    given = tuple(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else (value,)
    wanted = f"an int of at least {least}" if dims == 1 else f"an int of at least {least}, or {dims} such ints"
    try:
        values = tuple(operator.index(v) for v in given)
    except TypeError:
        raise TypeError(f"{op}: expected {argument} {wanted}, got {value!r}") from None
    if any(isinstance(v, bool) for v in given):
        raise TypeError(f"{op}: expected {argument} {wanted}, got {value!r}")
    if len(values) not in (1, dims) or min(values) < least:
        raise checks.ArgumentError(f"{op}: expected {argument} {wanted}, got {value!r}")
    return values * dims if len(values) == 1 else values


def _same_padding(
    op: str, input: Tensor, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """Return the input and the padding for "same": an odd total pads the input by one more at its end."""
    if any(s != 1 for s in stride):
        raise checks.ArgumentError(f"{op}: expected stride 1 for padding 'same', got {stride}")
    totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
    if any(total % 2 for total in totals):
        input = F.pad(input, [extra for total in reversed(totals) for extra in (0, total % 2)])
    return input, tuple(total // 2 for total in totals)


def _check(op: str, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> None:
    dims, groups = len(geometry.stride), geometry.groups
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        checks.tensor(op, name, value)
        checks.same_device(op, name, value, "input", input)
        checks.dtype(op, name, value, input.dtype)
    if input.dim() not in (dims + 1, dims + 2):
        raise checks.ArgumentError(
            f"{op}: expected input dimensions {dims + 1} (C_in, ...) or {dims + 2} (N, C_in, ...), "
            f"got shape {tuple(input.shape)}"
        )
    if weight.dim() != dims + 2:
        raise checks.ArgumentError(f"{op}: expected weight dimensions {dims + 2}, got shape {tuple(weight.shape)}")
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"{op}: expected groups an int of at least 1, got {groups!r}")
    if groups < 1:
        raise checks.ArgumentError(f"{op}: expected groups an int of at least 1, got {groups!r}")
    channels = input.shape[-dims - 1]
    first, second = weight.shape[:2]
    if geometry.transposed:
        per_input, c_out, split = first, second * groups, first
    else:
        per_input, c_out, split = second * groups, first, first
    if split % groups:
        raise checks.ArgumentError(f"{op}: expected weight size in dim 0 divisible by groups {groups}, got {split}")
    if channels != per_input:
        raise checks.ArgumentError(
            f"{op}: expected input with {per_input} channels for weight {tuple(weight.shape)} and groups {groups}, "
            f"got {channels}"
        )
    if bias is not None:
        checks.shape(op, "bias", bias, (c_out,))
    if geometry.transposed:
        for padding, stride, dilation in zip(geometry.output_padding, geometry.stride, geometry.dilation):
            if padding >= max(stride, dilation):
                raise checks.ArgumentError(
                    f"{op}: expected output_padding smaller than stride or dilation, got {geometry.output_padding} "
                    f"with stride {geometry.stride} and dilation {geometry.dilation}"
                )
        sizes = conv_kernels.transposed_sizes(input.shape[-dims:], weight.shape[2:], geometry)
        if min(sizes) < 0:
            raise checks.ArgumentError(
                f"{op}: expected padding that leaves an output, got {geometry.padding}, which leaves size {sizes}"
            )
        return
    for size, kernel, padding, dilation in zip(
        input.shape[-dims:], weight.shape[2:], geometry.padding, geometry.dilation
    ):
        if size + 2 * padding < dilation * (kernel - 1) + 1:
            raise checks.ArgumentError(
                f"{op}: expected padded input at least as large as the kernel, got {tuple(input.shape[-dims:])} with "
                f"padding {geometry.padding} for kernel {tuple(weight.shape[2:])} with dilation {geometry.dilation}"
            )


# The geometries of calls that passed the checks, by everything that the checks read. Kernels evict the interpreter from
# the CPU's caches: between kernels, checks that alone take 25 us took 130 us on a 2-core CPU.
_checked: dict[tuple[Any, ...], ConvGeometry] = {}
_MAX_CHECKED = 4096


def _is_cacheable(op: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a call's checks may be cached: on plain CPU tensors too large for ATen, without autocast or compiler."""
    return (
        not torch.compiler.is_compiling()
        and dispatch.is_plain_cpu(input)
        and backends.uses_cpu_kernel(op)
        and not torch._C._is_any_autocast_enabled()
        and input.numel() > backends.SMALL
        and not backends.is_measured(input)
        and isinstance(weight, Tensor)
        and weight.is_cpu
        and (bias is None or (isinstance(bias, Tensor) and bias.is_cpu))
    )


_ATEN = ((F.conv1d, F.conv2d, F.conv3d), (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d))


def convolve(
    op: str,
    dims: int,
    transposed: bool,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    output_padding: int | Sequence[int],
    groups: int,
    dilation: int | Sequence[int],
    epilogue: Epilogue = NOTHING,
    norm: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Check the arguments of any convolution, run it, and apply what follows it.

    Args:
        epilogue: what to do with the output.
        norm: called with the batched output, and with its statistics if the kernel computed them, in place of an
            activation.
    """
    aten: Callable[..., Tensor] = _ATEN[int(transposed)][dims - 1]  # torch 2.11 cannot compile a bool as an index
    if checks.is_for_torch(op, input, weight, bias):
        if transposed:
            output = aten(input, weight, bias, stride, padding, output_padding, groups, dilation)
        else:
            output = aten(input, weight, bias, stride, padding, dilation, groups)
        if norm is not None:
            return norm(output)
        if epilogue.memory_format is not None:
            output = output.contiguous(memory_format=epilogue.memory_format)
        return activations.apply(output, epilogue.activation, epilogue.negative_slope)
    key = None
    if isinstance(input, Tensor) and _is_cacheable(op, input, weight, bias):
        bias_key = None if bias is None else (bias.shape, bias.dtype)
        options = (stride, padding, output_padding, groups, dilation)
        key = (op, input.shape, input.dtype, weight.shape, weight.dtype, bias_key, *options, *map(type, options))
        try:
            known = _checked.get(key)
        except TypeError:  # a list is not hashable
            key = known = None
        if known is not None:
            return _apply(input, weight, bias, known, None, epilogue, norm)
    elif backends.is_small(input, weight, bias) and per_sample.recording() is None:
        try:
            if transposed:
                output = aten(input, weight, bias, stride, padding, output_padding, groups, dilation)
            else:
                output = aten(input, weight, bias, stride, padding, dilation, groups)
        except (RuntimeError, TypeError, ValueError, IndexError):
            pass  # the checks below raise a clearer error, or a kernel accepts the arguments
        else:
            return epilogue.after(output) if norm is None else norm(output)
    checks.floating(op, "input", input)
    checks.tensor(op, "weight", weight)
    strides, dilations = _per_dim(op, "stride", stride, dims, 1), _per_dim(op, "dilation", dilation, dims, 1)
    output_paddings = _per_dim(op, "output_padding", output_padding, dims, 0)
    if isinstance(padding, str):
        if transposed:
            raise TypeError(f"{op}: expected padding an int or {dims} ints, got {padding!r}")
        checks.one_of(op, "padding", padding, ("valid", "same"))
        paddings = (0,) * dims
        if padding == "same":
            input, paddings = _same_padding(op, input, weight, strides, dilations)
    else:
        paddings = _per_dim(op, "padding", padding, dims, 0)
    device = input.device.type
    if dispatch.is_autocast_enabled(device):
        # torch's autocast policy for convolutions.
        dtype = torch.get_autocast_dtype(device)
        input, weight = (t if t.dtype == torch.float64 else t.to(dtype) for t in (input, weight))
        bias = bias if bias is None or bias.dtype == torch.float64 else bias.to(dtype)
    geometry = ConvGeometry(strides, paddings, dilations, transposed, output_paddings, groups)
    traced = dispatch.is_traced()
    if not traced:
        _check(op, input, weight, bias, geometry)
    unbatched = input.dim() == dims + 1
    if unbatched:
        input = input.unsqueeze(0)
    elif key is not None and padding != "same":
        if len(_checked) >= _MAX_CHECKED:
            _checked.clear()
        _checked[key] = geometry
    if backends.uses_kernel(op, device, input.dtype) and not traced:
        arguments = (input, weight, bias, geometry, epilogue, norm)
        measured = dims == 2 and backends.is_measured(input)
        output = _convolve_on_fastest(*arguments) if measured else _convolve_on_requested(*arguments, op=op)
    else:
        output = torch.convolution(input, weight, bias, *geometry)
        if epilogue.memory_format is not None:
            output = output.contiguous(memory_format=epilogue.memory_format)
        if norm is not None:
            output = norm(output)
        else:
            output = activations.apply(output, epilogue.activation, epilogue.negative_slope)
    return output.squeeze(0) if unbatched else output


def _convolve_on_requested(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, epilogue: Epilogue,
    norm: Callable[..., Tensor] | None, op: str = "conv2d",
) -> Tensor:  # fmt: skip
    kernels = backends.triton_kernels("conv2d", input)
    unsupported = kernels and kernels.refuses(input, geometry.dilation, geometry.transposed, geometry.groups)
    if unsupported:
        raise RuntimeError(f"{op}: expected {unsupported} (backend triton)")
    return _apply(input, weight, bias, geometry, kernels, epilogue, norm)


def _apply(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, kernels: Any, epilogue: Epilogue,
    norm: Callable[..., Tensor] | None,
) -> Tensor:  # fmt: skip
    fused = epilogue.fused(kernels, input.device.type)
    output = Convolution.apply(input, weight, bias, geometry, kernels, fused, torch.is_grad_enabled())
    output, *statistics = output if isinstance(output, tuple) else (output,)
    if output.requires_grad and weight.requires_grad:
        recompute.keep_recipe(output, 0, input)
    if output.requires_grad and fused.activation == "leaky_relu":
        recompute.keep_place(output, 4)
    if norm is not None:
        return norm(output, *statistics)
    if fused.activation == epilogue.activation:
        return output
    if output.requires_grad:
        activated: Tensor = LeakyReLU.apply(output, epilogue.negative_slope)
        return activated
    return activations.apply_over(output, epilogue.activation, epilogue.negative_slope)


def _convolve_on_fastest(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, epilogue: Epilogue,
    norm: Callable[..., Tensor] | None,
) -> Tensor:  # fmt: skip
    """Convolve with the faster of ATen's and Triton's kernels, measured together with the norm."""
    names = ["auto"]
    if "triton" in backends.candidates("conv2d", input.device.type, input.dtype):
        unsupported = backends.triton_module("conv2d").refuses(
            input, geometry.dilation, geometry.transposed, geometry.groups
        )
        names += ["triton"] if unsupported is None else []
    shape_class = (
        checks.name_of(input.dtype), tuple(input.shape), tuple(weight.shape), input.stride(), weight.stride(),
        *geometry, *epilogue, *_settings(), "" if bias is None else "bias", "" if norm is None else "norm",
    )  # fmt: skip
    arguments = (input, weight, bias, geometry, epilogue)
    result: Tensor = backends.call_fastest_of(
        "conv2d", names, shape_class, _convolve_on_requested, (*arguments, norm),
        trial=(*arguments, _trial_norm if epilogue.statistics else None),
    )  # fmt: skip
    return result


def _settings() -> tuple[str, ...]:
    """Return the settings that change cuDNN's speed."""
    cudnn = torch.backends.cudnn
    flags = (name for name in ("benchmark", "deterministic") if getattr(cudnn, name))
    return *flags, fp32_precision.of("cuda", "conv")


def _trial_norm(output: Tensor, *statistics: Tensor) -> Tensor:
    """Run a batch norm for a measurement, without running statistics that the measurement would update."""
    return batch_norm("conv2d_bn_act", "bn_", output, None, None, None, None, True, 0.1, 1e-5, "relu", 0.0, statistics)


def convnd(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve like ``F.convnd``, with a cheaper double backward.

    output[n, k] = bias[k] + sum over c of the cross-correlation of weight[k, c] with input[n, c].

    Args:
        input: (N, C_in, *spatial) or (C_in, *spatial), float64, float32, bfloat16 or float16, any strides.
        weight: (C_out, C_in / groups, *kernel), same dtype and device.
        bias: (C_out,) or None, same dtype and device.
        stride, padding, dilation: an int, or one for each spatial dim; padding also "valid" or "same".
        groups: number of groups of channels that are convolved separately.

    Returns:
        (N, C_out, *spatial), or (C_out, *spatial) without a batch, with the strides of ATen's result.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shape, device or padding, or a kernel larger than the padded input. Errors that torch raises
            as RuntimeError are RuntimeErrors too.

    Notes:
        Derivatives: of any order; each gradient is one call of a forward, backward-data or backward-weight kernel, and
            a backward pass computes only the gradients that it was called for.
        CPU: ATen's kernels, one matrix product where that is faster (a weight much larger than the feature maps,
            transposed convolutions to few channels), or a kernel for the last layer of generators (4x4, stride 2, at
            most 4 channels). Accumulates in float32 or float64.
        GPU: ATen's kernels (cuDNN), or Triton's for 2-d convolutions where they are faster. The gradients of the weight
            and of a dilated convolution's input are ATen's.
        Strides: the gradient of the weight may have the weight's strides where ATen's has the input's.
        Autocast: computes in the autocast dtype, like ``F.convnd``.
        torch.compile, torch.jit.trace and functorch: run ATen's op.

    Source: the three kernels as each other's derivatives, as in conv2d_gradfix of the StyleGAN3 code.
    """
    return convolve(f"conv{dims}d", dims, False, input, weight, bias, stride, padding, 0, groups, dilation)


def conv_transposend(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Apply a transposed convolution like ``F.conv_transposend``, with a cheaper double backward.

    The gradient of :func:`convnd` with respect to its input, as a layer: each input value times the weight is added to
    the output, at steps of ``stride``.

    Args:
        input: (N, C_in, *spatial) or (C_in, *spatial), float64, float32, bfloat16 or float16, any strides.
        weight: (C_in, C_out / groups, *kernel), same dtype and device.
        bias: (C_out,) or None, same dtype and device.
        stride, padding, dilation: an int, or one for each spatial dim.
        output_padding: size added at the end of each spatial dim of the output; smaller than stride or dilation.
        groups: number of groups of channels that are convolved separately.

    Returns:
        (N, C_out, *spatial), or (C_out, *spatial) without a batch. Each spatial size is
        (in - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shape, device, padding or output_padding. Errors that torch raises as RuntimeError are
            RuntimeErrors too.

    Notes:
        Derivatives, kernels, autocast and compilation: see :func:`convnd`.
    """
    return convolve(
        f"conv_transpose{dims}d", dims, True, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


conv1d, conv2d, conv3d = for_1d_2d_3d(convnd)
conv_transpose1d, conv_transpose2d, conv_transpose3d = for_1d_2d_3d(conv_transposend)
