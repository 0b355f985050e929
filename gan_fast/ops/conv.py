"""Convolutions, plain and transposed, in 1 to 3 dims, whose double backward costs no more than it must.

ops/conv_kernels.py has the kernels; here is how they are joined. Each is linear in both of its tensors, and they are
each other's derivatives: with x the input, W the weight, g the output's gradient,

    y = conv(x, W),    dx = backward_data(g, W),    dW = backward_weight(g, x),
    <dx, v>:  by g conv(v, W),   by W backward_weight(g, v),
    <dW, U>:  by g conv(x, U),   by x backward_data(g, U),

so three nodes that call each other differentiate to any order, each derivative one call of one kernel. ATen's own
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
    """aten::convolution and an activation.

    ``kernels`` are Triton's functions where they serve, here and in all nodes that follow. Where the statistics of the
    output are wanted (by a batch norm behind it, in Triton alone) its parts follow it.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, kernels: Any,
        epilogue: Epilogue = NOTHING, gradient: bool = True,
    ) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
        output, kept, found = conv_kernels.forward(
            input, weight, bias, geometry, kernels, epilogue, gradient and any(ctx.needs_input_grad)
        )
        ctx.factors = per_sample.recording()
        # Each gradient needs the other tensor; what no gradient needs is not kept.
        ctx.save_for_backward(
            input if ctx.needs_input_grad[1] else None,
            weight if ctx.needs_input_grad[0] else None,
            kept,
            bias if ctx.factors is not None else None,
            # Of this the place in the graph alone: see _apply.
            output if epilogue.activation == "leaky_relu" and kept is not None and recompute.allowed() else None,
        )
        ctx.options = (Like.of(input), Like.of(weight), geometry, epilogue, output.stride())
        ctx.kernels = kernels
        ctx.set_materialize_grads(False)
        if found is None:
            return output
        ctx.mark_non_differentiable(*found)
        return output, *found

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 7
        input_like, weight_like, geometry, epilogue, strides = ctx.options
        wanted, factors = dispatch.grads_needed(ctx, 3), ctx.factors
        merging = factors is not None and factors.merging
        input, weight, activated, bias, place = recompute.saved_tensors(
            ctx, (wanted[1] or merging, wanted[0], True, True, True)
        )
        recording = dispatch.records_graph("convolution_backward", grad_output)
        if activated is not None:
            depends = recording and place is not None and not grad_output.requires_grad
            grad_output = epilogue.backward(grad_output, activated, strides, ctx.kernels)
            if depends:
                grad_output = DependOn.apply(grad_output, place)
        if merging:
            seen = None if input is None else input.detach()
            by_input = BackwardData.apply(grad_output, weight, bias, seen, input_like, geometry, ctx.kernels, factors)
            by_weight = by_bias = None
        elif factors is not None and not factors.merged and factors.values is not None:
            return *_backward_with_factors(ctx, grad_output, input, weight, wanted), *(None,) * 4
        elif recording:
            by_input = by_weight = None
            if wanted[0]:
                by_input = BackwardData.apply(grad_output, weight, None, None, input_like, geometry, ctx.kernels)
            if wanted[1]:
                by_weight = BackwardWeight.apply(grad_output, input, weight_like, geometry, ctx.kernels)
            by_bias = conv_kernels.by_bias_of(grad_output) if wanted[2] else None
        else:
            input = input_like if input is None else input
            weight = weight_like if weight is None else weight
            by_input, by_weight, by_bias = conv_kernels.backward(
                grad_output, input, weight, geometry, wanted, ctx.kernels
            )
        return by_input, by_weight, by_bias, *(None,) * 4


def _backward_with_factors(
    ctx: Any, grad_output: Tensor, input: Tensor | None, weight: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradient by the input for ``grad_output``, those by weight and bias for that times the factors."""
    input_like, weight_like, geometry, *_ = ctx.options
    _refuse_graph()
    by_input, *_ = conv_kernels.backward(
        grad_output, input_like, weight_like if weight is None else weight, geometry, (wanted[0], False, False),
        ctx.kernels,
    )  # fmt: skip
    # The products are linear in both: the smaller one takes the factors, but for the bias, which sees one alone.
    own = (False, wanted[1], wanted[2])
    if input is not None and input.numel() < grad_output.numel() and not wanted[2]:
        input = ctx.factors.times(input)
    else:
        grad_output = ctx.factors.times(grad_output)
    _, by_weight, by_bias = conv_kernels.backward(
        grad_output, input_like if input is None else input, weight_like, geometry, own, ctx.kernels
    )
    return by_input, by_weight, by_bias


def _refuse_graph() -> None:
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "convolution_backward: expected create_graph False for a loss whose gradients come merged with another's, "
            "got True"
        )


class BackwardData(torch.autograd.Function):
    """The gradient of a convolution by its input.

    With ``factors``, of which somebody will know the values by then, its own backward pass adds the gradients by weight
    and bias of a loss whose cotangents are ``grad_output`` times those: <dx, v> by W is backward_weight(g, v), and the
    loss's gradient backward_weight(f g, x), so that one kernel gives backward_weight(g, v + f x).
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
        by_grad = by_weight = by_bias = None
        if cotangent is not None:
            dispatch.records_graph("convolution_backward", cotangent)
            by_grad = Convolution.apply(cotangent, weight, None, geometry, kernels) if wanted[0] else None
        if factors is not None:
            _refuse_graph()
            if wanted[1]:
                own = factors.times(input)
                cotangent = own if cotangent is None else own.add_(cotangent)
            if wanted[2]:
                by_bias = conv_kernels.by_bias_of(factors.times(grad_output))
        if wanted[1]:
            by_weight = BackwardWeight.apply(grad_output, cotangent, weight_like, geometry, kernels)
        return by_grad, by_weight, by_bias, *(None,) * 5


class BackwardWeight(torch.autograd.Function):
    """The gradient of a convolution by its weight."""

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
        by_grad = Convolution.apply(input, cotangent, None, geometry, kernels) if wanted[0] else None
        by_input = None
        if wanted[1]:
            by_input = BackwardData.apply(grad_output, cotangent, None, None, input_like, geometry, kernels)
        return by_grad, by_input, None, None, None


def _per_dim(op: str, argument: str, value: Any, dims: int, least: int) -> tuple[int, ...]:
    """``value`` once for each dim of space, as F.conv takes it: a number, or one a dim, or a sequence of one."""
    given = tuple(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else (value,)
    try:
        values = tuple(operator.index(v) for v in given if not isinstance(v, bool))
    except TypeError:
        values = ()
    if len(values) not in (1, dims) or len(values) != len(given) or min(values) < least:
        raise ValueError(f"{op}: expected {argument} an int of at least {least} or {dims} of them, got {value!r}")
    return values * dims if len(values) == 1 else values


def _same_padding(
    op: str, input: Tensor, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """Padding "same": half of it on each side, an odd one more at the end, which the input is given beforehand."""
    if any(s != 1 for s in stride):
        raise ValueError(f"{op}: expected stride 1 for padding 'same', got {stride}")
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
        raise ValueError(
            f"{op}: expected input dimensions {dims + 1} (C_in, ...) or {dims + 2} (N, C_in, ...), "
            f"got shape {tuple(input.shape)}"
        )
    if weight.dim() != dims + 2:
        raise ValueError(f"{op}: expected weight dimensions {dims + 2}, got shape {tuple(weight.shape)}")
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"{op}: expected groups an int of at least 1, got {groups!r}")
    channels = input.shape[-dims - 1]
    first, second = weight.shape[:2]
    if geometry.transposed:
        per_input, c_out, split = first, second * groups, first
    else:
        per_input, c_out, split = second * groups, first, first
    if split % groups:
        raise ValueError(f"{op}: expected weight shape divisible by groups {groups} in its first dim, got {split}")
    if channels != per_input:
        raise ValueError(
            f"{op}: expected input channels {per_input} as weight {tuple(weight.shape)} and groups {groups} have them, "
            f"got {channels}"
        )
    if bias is not None:
        checks.shape(op, "bias", bias, (c_out,))
    if geometry.transposed:
        for padding, stride, dilation in zip(geometry.output_padding, geometry.stride, geometry.dilation):
            if padding >= max(stride, dilation):
                raise ValueError(
                    f"{op}: expected output_padding below stride or dilation, got {geometry.output_padding} "
                    f"with stride {geometry.stride} and dilation {geometry.dilation}"
                )
        sizes = conv_kernels.transposed_sizes(input.shape[-dims:], weight.shape[2:], geometry)
        if min(sizes) < 0:
            raise ValueError(f"{op}: expected padding that leaves an output, got {geometry.padding} for one of {sizes}")
        return
    for size, kernel, padding, dilation in zip(
        input.shape[-dims:], weight.shape[2:], geometry.padding, geometry.dilation
    ):
        if size + 2 * padding < dilation * (kernel - 1) + 1:
            raise ValueError(
                f"{op}: expected input at least as large as the kernel, got {tuple(input.shape[-dims:])} with padding "
                f"{geometry.padding} for kernel {tuple(weight.shape[2:])} with dilation {geometry.dilation}"
            )


# Geometries of calls that were checked and found right, by all that was looked at. Python is slow between kernels,
# which leave its caches cold: on a 2-core CPU checks of 25 us took 130.
_checked: dict[tuple[Any, ...], ConvGeometry] = {}
_MOST_CHECKED = 4096


def _plain(op: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a call is of a kind that is remembered: a CPU's, larger than what is ATen's, and nobody looks on."""
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
    """Check the arguments of any convolution of any name, convolve, and do what follows.

    Args:
        epilogue: what is done to the output; its statistics go to ``norm``, where the convolution's kernel has them.
        norm: of the batched output, and of its statistics where there are some; instead of an activation.
    """
    aten: Callable[..., Tensor] = _ATEN[int(transposed)][dims - 1]  # torch 2.11 compiles no index that is a bool
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
    if isinstance(input, Tensor) and _plain(op, input, weight, bias):
        own = None if bias is None else (bias.shape, bias.dtype)
        options = (stride, padding, output_padding, groups, dilation)
        key = (op, input.shape, input.dtype, weight.shape, weight.dtype, own, *options, *map(type, options))
        try:
            known = _checked.get(key)
        except TypeError:  # a list among them
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
            pass  # the checks below say what is wrong in words of ours, or it is served there
        else:
            return epilogue.after(output) if norm is None else norm(output)
    checks.floating(op, "input", input)
    checks.tensor(op, "weight", weight)
    strides, dilations = _per_dim(op, "stride", stride, dims, 1), _per_dim(op, "dilation", dilation, dims, 1)
    output_paddings = _per_dim(op, "output_padding", output_padding, dims, 0)
    if isinstance(padding, str):
        checks.one_of(op, "padding", padding, () if transposed else ("valid", "same"))
        paddings = (0,) * dims
        if padding == "same":
            input, paddings = _same_padding(op, input, weight, strides, dilations)
    else:
        paddings = _per_dim(op, "padding", padding, dims, 0)
    device = input.device.type
    if dispatch.is_autocast_enabled(device):
        # As autocast's own policy for convolutions.
        dtype = torch.get_autocast_dtype(device)
        input, weight = (t if t.dtype == torch.float64 else t.to(dtype) for t in (input, weight))
        bias = bias if bias is None or bias.dtype == torch.float64 else bias.to(dtype)
    geometry = ConvGeometry(strides, paddings, dilations, transposed, output_paddings, groups)
    captured = dispatch.is_traced()
    if not captured:
        _check(op, input, weight, bias, geometry)
    unbatched = input.dim() == dims + 1
    if unbatched:
        input = input.unsqueeze(0)
    elif key is not None and padding != "same":
        if len(_checked) >= _MOST_CHECKED:
            _checked.clear()
        _checked[key] = geometry
    if backends.uses_kernel(op, device, input.dtype) and not captured:
        arguments = (input, weight, bias, geometry, epilogue, norm)
        output = _on_quickest(*arguments) if dims == 2 and backends.is_measured(input) else _serve(*arguments, op=op)
    else:
        output = torch.convolution(input, weight, bias, *geometry)
        if epilogue.memory_format is not None:
            output = output.contiguous(memory_format=epilogue.memory_format)
        if norm is not None:
            output = norm(output)
        else:
            output = activations.apply(output, epilogue.activation, epilogue.negative_slope)
    return output.squeeze(0) if unbatched else output


def _serve(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, epilogue: Epilogue,
    norm: Callable[..., Tensor] | None, op: str = "conv2d",
) -> Tensor:  # fmt: skip
    kernels = backends.triton_kernels("conv2d", input)
    refusal = kernels and kernels.refuses(input, geometry.dilation, geometry.transposed, geometry.groups)
    if refusal:
        raise RuntimeError(f"{op}: expected for backend triton {refusal}")
    return _apply(input, weight, bias, geometry, kernels, epilogue, norm)


def _apply(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, kernels: Any, epilogue: Epilogue,
    norm: Callable[..., Tensor] | None,
) -> Tensor:  # fmt: skip
    own = epilogue.of_node(kernels, input.device.type)
    output = Convolution.apply(input, weight, bias, geometry, kernels, own, torch.is_grad_enabled())
    output, *statistics = output if isinstance(output, tuple) else (output,)
    if output.requires_grad and weight.requires_grad:
        recompute.keep_recipe(output, 0, input)
    if output.requires_grad and own.activation == "leaky_relu":
        recompute.keep_place(output, 4)
    if norm is not None:
        return norm(output, *statistics)
    if own.activation == epilogue.activation:
        return output
    if output.requires_grad:
        activated: Tensor = LeakyReLU.apply(output, epilogue.negative_slope)
        return activated
    return activations.apply_over(output, epilogue.activation, epilogue.negative_slope)


def _on_quickest(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, epilogue: Epilogue,
    norm: Callable[..., Tensor] | None,
) -> Tensor:  # fmt: skip
    """As :func:`_serve`, on ATen's kernels or on Triton's, the norm behind them included."""
    names = ["auto"]
    if "triton" in backends.candidates("conv2d", input.device.type, input.dtype):
        refusal = backends.triton_module("conv2d").refuses(
            input, geometry.dilation, geometry.transposed, geometry.groups
        )
        names += ["triton"] if refusal is None else []
    shape_class = (
        checks.name_of(input.dtype), tuple(input.shape), tuple(weight.shape), input.stride(), weight.stride(),
        *geometry, *epilogue, *_settings(), "" if bias is None else "bias", "" if norm is None else "norm",
    )  # fmt: skip
    arguments = (input, weight, bias, geometry, epilogue)
    result: Tensor = backends.call_fastest_of(
        "conv2d", names, shape_class, _serve, (*arguments, norm),
        trial=(*arguments, _any_norm if epilogue.statistics else None),
    )  # fmt: skip
    return result


def _settings() -> tuple[str, ...]:
    """What cuDNN's speed depends on beside shapes."""
    cudnn = torch.backends.cudnn
    flags = (name for name in ("benchmark", "deterministic") if getattr(cudnn, name))
    return *flags, fp32_precision.of("cuda", "conv")


def _any_norm(output: Tensor, *statistics: Tensor) -> Tensor:
    """What a convolution and the norm behind it are measured with: one that nobody's statistics move by."""
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
    """Convolve as ``F.convnd``, with a lean double backward.

    output[n, k] = bias[k] + sum over c of the cross-correlation of weight[k, c] with input[n, c].

    Args:
        input: (N, C_in, *space) or (C_in, *space), float64, float32, bfloat16 or float16, any strides.
        weight: (C_out, C_in / groups, *kernel), same dtype and device.
        bias: (C_out,) or None, same dtype and device.
        stride, padding, dilation: a number, or one for each dim of space; padding also "valid" or "same".
        groups: C_in and C_out are cut into so many parts, each convolved for itself.

    Returns:
        (N, C_out, *space), with the strides that ATen gives.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape, device, padding, or a kernel larger than the padded input.

    Notes:
        Derivatives: of any order; each is one call of a forward, backward-data or backward-weight kernel, and none is
        taken that the backward pass did not ask for.
        Kernels: ATen's; on the CPU one product of matrices where that is quicker (a weight that is large beside the
        maps, transposed convolutions to few channels) or a kernel for a generator's last layer (csrc/cpu/sub_pixel.h),
        accumulated in float32 at least.
        On a GPU ATen's (cuDNN) or, of 2-d ones, Triton's, whichever is quicker; gradients by a weight are ATen's, and
        those by the input of a dilated one.
        A gradient by a weight may have the weight's strides where ATen gives it the input's.
        Under autocast: in its dtype, as ``F.convnd``.
        Under torch.compile, torch.jit.trace and functorch: ATen's own op and its checks.

    Source: the three kernels as each other's derivatives, as in the StyleGAN3 code's conv2d_gradfix for older torch.
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
    """Convolve transposed as ``F.conv_transposend``, with a lean double backward.

    The gradient of :func:`convnd` by its input, taken as a layer: each input value adds itself times the weight to the
    output, ``stride`` apart.

    Args:
        input: (N, C_in, *space) or (C_in, *space), float64, float32, bfloat16 or float16, any strides.
        weight: (C_in, C_out / groups, *kernel), same dtype and device.
        bias: (C_out,) or None, same dtype and device.
        stride, padding, dilation: a number, or one for each dim of space.
        output_padding: values added to one side of the output in each dim of space; below stride or dilation.
        groups: C_in and C_out are cut into so many parts, each convolved for itself.

    Returns:
        (N, C_out, *space), each dim of space (in - 1) stride - 2 padding + dilation (kernel - 1) + output_padding + 1.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape, device or output_padding.

    Notes:
        As :func:`convnd`.
    """
    return convolve(
        f"conv_transpose{dims}d", dims, True, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


conv1d, conv2d, conv3d = for_1d_2d_3d(convnd)
conv_transpose1d, conv_transpose2d, conv_transpose3d = for_1d_2d_3d(conv_transposend)
