"""The three kernels of a convolution (forward, backward-data, backward-weight), each ATen's or one product of matrices.

A convolution joins two maps, a small one of which every position meets a whole kernel and a big one that the kernels
move over; forward reads the big one, a transposed one the small one. With small as rows of (N, *space) by S channels,
the weight as it lies in memory as S by C * taps, and columns the values of the big map under each kernel (im2col),

    small = columns @ weight.T,    columns of big = small @ weight,    weight's gradient = small.T @ columns.

oneDNN, which ATen calls, is at the machine's limit where maps are large beside the weight. It copies each weight into
an order of its own at every call and back, and computes few channels of the big map as if they were sixteen: there a
product on the weight as it lies is quicker, and for the layer that ends most generators (kernel 4, stride 2) a kernel
of its own (docs/architecture.md has the figures).
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends, extension
from gan_fast.memory_format import CHANNELS_LAST, is_ordered_channels_last
from gan_fast.ops import activation as activations
from gan_fast.ops import checks, dispatch
from gan_fast.ops.leaky_relu import BackwardBySigns, ReLUBackward, flat, sign_kernels

# Below this many multiplications what Python spends on more calls counts.
_LEAST_WORK = 4_000_000
# Columns exist for so many values at a time: 32 MiB in float32.
_MOST_COLUMNS = 8_388_608
# Channels of the small map from which on a product gathers quicker than ATen.
_DEEP = 256
# Positions of one sample that are enough rows for a product of their own.
_LONG_PLANE = 256
# A vector of floats: oneDNN computes fewer channels at the price of as many.
_VECTOR = 16
# What writing a column's value and adding it to the map costs, in multiplications of a product: strided kernels overlap
# less, so that caches hold more of what they add to.
_SCATTERED_VALUE, _SCATTERED_VALUE_STRIDED = 160, 120
# Columns below which a product is mostly overhead.
_FEW_COLUMNS = 12
# Values of one sample up to which ATen may take a product of its own, where the convolution is not a transposed one.
_ONE_SAMPLE = 20_480
# Values of a weight from which on copying it is what oneDNN spends its time on.
_LARGE_WEIGHT = 1 << 20
_DTYPES = (torch.float32, torch.bfloat16)
# csrc/cpu/sub_pixel.h: channels that it takes; with fewer and shorter registers columns are the quicker way.
_SUB_PIXEL_CHANNELS = 4
_WIDE_REGISTERS = extension.build_info().get("instruction_set") == "avx512"


class ConvGeometry(NamedTuple):
    """What aten::convolution takes beside its tensors, in its order; of no dims, a linear layer."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


class Epilogue(NamedTuple):
    """What is done to a convolution's output before anybody sees it."""

    activation: str = "identity"
    negative_slope: float = 0.0
    # None: the one that ATen gives.
    memory_format: torch.memory_format | None = None
    # Also return count, mean and sum of squares about it of parts of each channel; Triton's kernels alone do.
    statistics: bool = False

    def of_node(self, kernels: Any, device_type: str) -> Epilogue:
        """What a convolution's node does itself; a leaky ReLU that it has no sign bits of is a node of its own."""
        own = self if kernels is not None or not self.statistics else self._replace(statistics=False)
        if self.activation != "leaky_relu":
            return own
        # Triton's kernel stores the activation alone, whose sign is that of the raw value for some slopes only.
        has_signs = self.negative_slope >= 0 if kernels is not None else sign_kernels(device_type, False) is not None
        return own if has_signs else own._replace(activation="identity")

    def over(self, output: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Return the output with the activation written over it, and what :meth:`backward` needs.

        A leaky ReLU leaves sign bits, for its output may be written to: ``F.leaky_relu`` keeps its input.
        """
        if self.memory_format is not None:
            output = output.contiguous(memory_format=self.memory_format)
        if self.activation == "leaky_relu" and gradient:
            return output, sign_kernels(output.device.type, False).over(output, float(self.negative_slope))
        output = activations.apply_over(output, self.activation, self.negative_slope)
        return output, output if gradient and self.activation != "identity" else None

    def after(self, output: Tensor) -> Tensor:
        """The same of a convolution in ATen's graph."""
        if self.memory_format is not None:
            output = output.contiguous(memory_format=self.memory_format)
        return activations.apply_to_result(output, self.activation, self.negative_slope)

    def backward(self, grad_output: Tensor, kept: Tensor, strides: tuple[int, ...], kernels: Any) -> Tensor:
        """The activation's gradient, from what was kept of it, in a form that can be differentiated again.

        Args:
            strides: of the output.
            kernels: as for :func:`forward`.
        """
        if self.activation == "tanh":
            return torch.ops.aten.tanh_backward(grad_output, kept)
        if self.activation == "sigmoid":
            return torch.ops.aten.sigmoid_backward(grad_output, kept)
        if self.activation == "relu":
            grad: Tensor = ReLUBackward.apply(grad_output, flat(kept, grad_output), None)
        else:
            by = sign_kernels(kept.device.type, kernels is not None)
            grad = BackwardBySigns.apply(grad_output, kept, strides, float(self.negative_slope), by)
        return grad


NOTHING = Epilogue()


class Like(NamedTuple):
    """A tensor of which a kernel asks shape and strides alone."""

    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, t: Tensor) -> Like:
        return cls(t.shape, t.stride())

    def unread(self, beside: Tensor, strided: bool) -> Tensor:
        """Return a tensor that stands for one whose values are not read, on the device of ``beside``.

        Args:
            strided: with the strides, which takes memory, though on a CPU none that is not written to. Else it is one
                value, expanded.
        """
        return beside.new_empty_strided(self.shape, self.stride) if strided else beside.new_empty(()).expand(self.shape)


_im2col = dispatch.kernel("im2col")
_col2im = dispatch.kernel("col2im")
_sub_pixel_conv = dispatch.kernel("sub_pixel_conv")


def _rows(t: Tensor) -> Tensor:
    return t.movedim(1, -1).reshape(-1, t.size(1))


def _rows_times(t: Tensor, matrix: Tensor) -> Tensor:
    """Return _rows(t) @ matrix, and spare the copy where t has each channel's values side by side."""
    samples, positions = t.size(0), math.prod(t.shape[2:])
    if t.stride(1) == 1 or not t.is_contiguous() or positions < _LONG_PLANE:
        return _rows(t) @ matrix
    planes = t.flatten(2).transpose(1, 2)
    return torch.bmm(planes, matrix.expand(samples, -1, -1)).view(samples * positions, -1)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize == 2 else dtype


def _channels_last(input: Like, weight: Like) -> bool:
    """Whether ATen's result is."""
    return any(is_ordered_channels_last(t.shape, t.stride) for t in (input, weight))


class _Product(NamedTuple):
    """A convolution as a product of matrices: its shapes, its memory format, and which of its kernels gain by it."""

    small: torch.Size
    big: torch.Size
    weight: Like
    geometry: ConvGeometry
    channels_last: bool
    gather: bool
    scatter: bool
    weigh: bool

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def of(cls, input: Like, weight: Like, geometry: ConvGeometry, output: torch.Size | None = None) -> _Product | None:
        """The product; None where ATen's kernels are the quicker ones, whatever is asked for."""
        output = output or _output_shape(input.shape, weight.shape, geometry)
        if min(*input.shape, *output) == 0:
            return None  # ATen knows what to say or do
        small, big = (input.shape, output) if geometry.transposed else (output, input.shape)
        channels, columns = weight.shape[0], math.prod(weight.shape[1:])
        positions = math.prod(small[2:])
        rows = small[0] * positions
        # What a kernel of one position makes of a map is a product as it is.
        worth = rows * channels * columns >= _LEAST_WORK and math.prod(weight.shape[2:]) > 1
        # A kernel as large as the map meets it once: its columns are the map.
        once = positions == 1
        channels_last = _channels_last(input, weight)
        # A product reads the weight as one matrix, which is a copy where it is channels-last.
        lies = not is_ordered_channels_last(weight.shape, weight.stride)
        # Rows to a channel up to which a product is the quicker one. Where there is no stride, and where a kernel
        # reaches along one dim alone, as in 1-d, oneDNN is slow at weights alone that are far larger than the maps.
        if max(geometry.stride) == 1 or sum(size > 1 for size in weight.shape[2:]) == 1:
            large = channels * columns >= _LARGE_WEIGHT and small[0] > 1
            gather, scatter, weigh = False, large and lies and channels >= 16 * rows, large and channels >= 4 * rows
        else:
            # ATen knows how to hurry where maps are contiguous.
            deep = channels >= _DEEP
            gather = deep and lies and (2 if channels_last else 0.5) * channels >= rows
            scatter = lies and 4 * channels >= rows
            weigh = (deep or channels_last) and 4 * channels >= rows
        product = cls(
            small, big, weight, geometry, channels_last,
            gather=worth and (once or gather), scatter=scatter, weigh=worth and (once or weigh),
        )  # fmt: skip
        # Of one position ATen sums up more exactly.
        scatter = worth and not once and (scatter or product.sub_pixel or product._has_few_channels)
        product = product._replace(scatter=scatter)
        return product if product.gather or product.scatter or product.weigh else None

    @property
    def _has_few_channels(self) -> bool:
        """Whether oneDNN spends more on channels that the big map lacks than a product on its columns."""
        channels, few = self.weight.shape[:2]
        lacking = max(_VECTOR - few, 0) * channels
        onednn = self.geometry.transposed or self.small[0] > 1 or math.prod(self.big) > _ONE_SAMPLE
        columns = few * math.prod(self.weight.shape[2:])
        scattered = _SCATTERED_VALUE if max(self.geometry.stride) == 1 else _SCATTERED_VALUE_STRIDED
        return onednn and columns >= _FEW_COLUMNS and lacking >= scattered * few

    @property
    def sub_pixel(self) -> bool:
        """Whether csrc/cpu/sub_pixel.h gives the big map: its kernel, a vector of positions, few channels."""
        return (
            _WIDE_REGISTERS
            and self.weight.shape[2:] == (4, 4)
            and self.geometry.stride == (2, 2)
            and self.geometry.dilation == (1, 1)
            and self.weight.shape[1] <= _SUB_PIXEL_CHANNELS
            and self.small[3] >= _VECTOR
        )

    @property
    def samples(self) -> int:
        """How many samples are columns at a time."""
        return max(1, _MOST_COLUMNS // (math.prod(self.small[2:]) * math.prod(self.weight.shape[1:])))

    @property
    def options(self) -> tuple[tuple[int, ...], ...]:
        geometry = self.geometry
        return (tuple(self.weight.shape[2:]), geometry.stride, geometry.padding, geometry.dilation, self.small[2:])

    def to_big(self, small: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the big map: the transposed convolution, and the gradient of the plain one by its input."""
        big = self._empty(self.big, small.dtype)
        if self.sub_pixel and _is_finite(weight):
            _sub_pixel_conv(small, weight, big, bias, self.geometry.padding)
            return big
        # In single precision: the values under a kernel are rounded once, when their sum is stored.
        dtype = _compute_dtype(small.dtype)
        matrix = weight.reshape(weight.size(0), -1).to(dtype)
        for part, target in zip(small.split(self.samples), big.split(self.samples)):
            _col2im(_rows_times(part.to(dtype), matrix), target, bias, *self.options)
        return big

    def from_big(
        self, big: Tensor, small: Tensor | None, weight: Tensor | None, bias: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the small map, for a weight, and the weight's gradient, for a small map.

        The former is the plain convolution, and the gradient of the transposed one by its input. Results own their
        memory: autograd forbids writing over a view that a Function returns.
        """
        result = grad_weight = total = None
        if weight is not None:
            result, matrix = self._empty(self.small, big.dtype), weight.reshape(weight.size(0), -1).t()
        if small is not None:
            grad_weight = torch.empty(self.weight.shape, dtype=big.dtype)
        for first in range(0, big.size(0), self.samples):
            part = slice(first, first + self.samples)
            columns = _im2col(big[part], *self.options)
            if result is not None:
                rows = columns @ matrix if bias is None else torch.addmm(bias, columns, matrix)
                result[part] = rows.view(-1, *self.small[2:], self.small[1]).movedim(-1, 1)
            if small is not None and grad_weight is not None:
                if self.samples >= big.size(0):
                    torch.mm(_rows(small).t(), columns, out=grad_weight.view(grad_weight.size(0), -1))
                    continue
                # Parts of a sum are not rounded to half precision.
                dtype = _compute_dtype(big.dtype)
                own = _rows(small[part]).t().to(dtype) @ columns.to(dtype)
                total = own if total is None else total + own
        if grad_weight is not None:
            if total is not None:
                grad_weight.copy_(total.view(grad_weight.shape))
            if is_ordered_channels_last(self.weight.shape, self.weight.stride):
                grad_weight = grad_weight.contiguous(memory_format=CHANNELS_LAST[len(self.weight.shape)])
        return result, grad_weight

    def _empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        memory_format = CHANNELS_LAST[len(shape)] if self.channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, memory_format=memory_format)


def _is_finite(t: Tensor | None) -> bool:
    """Whether what meets the zeros of a padding may be trusted: an infinite value times one of them would be NaN.

    A sum is finite where all values are (or overflows, and another kernel serves), and costs a fraction of a product.
    """
    return t is None or bool(t.sum(dtype=_compute_dtype(t.dtype)).isfinite())


def _product(
    input: Tensor | Like, output: torch.Size | None, weight: Tensor | Like, geometry: ConvGeometry, reads: Tensor
) -> _Product | None:
    """The convolution as a product, or None where that cannot be or where ATen's kernels are the quicker ones."""
    if (
        geometry.groups != 1
        or reads.dtype not in _DTYPES
        or reads.device.type != "cpu"
        or not extension.available()
        or torch._C._functorch.is_legacy_batchedtensor(reads)
        # Fake tensors and their like have no values to look at.
        or type(reads) not in (Tensor, torch.nn.Parameter)
    ):
        return None
    input, weight = (Like.of(t) if isinstance(t, Tensor) else t for t in (input, weight))
    return _Product.of(input, weight, geometry, output)


def _output_shape(input: torch.Size, weight: torch.Size, geometry: ConvGeometry) -> torch.Size:
    if geometry.transposed:
        space = transposed_sizes(input[2:], weight[2:], geometry)
    else:
        space = tuple(
            (size + 2 * geometry.padding[d] - geometry.dilation[d] * (weight[2 + d] - 1) - 1) // geometry.stride[d] + 1
            for d, size in enumerate(input[2:])
        )
    return torch.Size((input[0], weight[1] if geometry.transposed else weight[0], *space))


def transposed_sizes(space: Sequence[int], kernel: Sequence[int], geometry: ConvGeometry) -> tuple[int, ...]:
    """The output's dims of space, of a transposed convolution."""
    stride, padding, dilation, _, output_padding, _ = geometry
    return tuple(
        (size - 1) * stride[d] - 2 * padding[d] + dilation[d] * (kernel[d] - 1) + 1 + output_padding[d]
        for d, size in enumerate(space)
    )


def _without_autocast(device_type: str = "cpu") -> AbstractContextManager[Any]:
    """The products have the dtypes they are meant to have."""
    enabled = dispatch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if enabled else contextlib.nullcontext()


def gain_by_channels_last(input: Tensor) -> bool:
    """Whether convolutions of ours, from ``input`` on, are quicker when it is copied into that format first."""
    return (
        not checks.subclassed(input)
        and input.dim() == 4
        and input.device.type == "cpu"
        and input.dtype in _DTYPES
        and not dispatch.is_traced()
        and backends.uses_kernel("conv2d", "cpu")
        and not is_ordered_channels_last(input.shape, input.stride())
    )


def _in_triton(
    kernels: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, output: torch.Size,
    epilogue: Epilogue = NOTHING,
) -> tuple[Tensor, tuple[Tensor, ...] | None]:  # fmt: skip
    if epilogue.memory_format is None:
        as_aten = torch.channels_last if _channels_last(Like.of(input), Like.of(weight)) else torch.contiguous_format
        epilogue = epilogue._replace(memory_format=as_aten)
    options = (geometry.stride, geometry.padding, geometry.dilation, geometry.transposed, tuple(output[2:]))
    result: tuple[Tensor, tuple[Tensor, ...] | None] = kernels.convolve(input, weight, bias, *options, *epilogue)
    return result


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, kernels: Any = None,
    epilogue: Epilogue = NOTHING, gradient: bool = False,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...] | None]:  # fmt: skip
    """aten::convolution and its epilogue, in Triton where ``kernels`` are its functions.

    Returns:
        The output; what the epilogue's gradient needs, where ``gradient`` asks for it; the statistics, if any.
    """
    if kernels is None:
        return *epilogue.over(_convolution(input, weight, bias, geometry), gradient), None
    shape = _output_shape(input.shape, weight.shape, geometry)
    output, statistics = _in_triton(kernels, input, weight, bias, geometry, shape, epilogue)
    kept = output if gradient and epilogue.activation != "identity" else None
    if kept is not None and epilogue.activation == "leaky_relu":
        kept = sign_kernels(output.device.type, True).signs(output)
    return output, kept, statistics


def _convolution(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    if not geometry.stride:
        return F.linear(input, weight, bias)
    product = _product(input, None, weight, geometry, input)
    if product is not None and (product.scatter if geometry.transposed else product.gather):
        with _without_autocast():
            if geometry.transposed:
                return product.to_big(input, weight, bias)
            output, _ = product.from_big(input, None, weight, bias)
            if output is not None and _is_finite(output):
                return output
    return torch.convolution(input, weight, bias, *geometry)


def by_bias_of(grad_output: Tensor) -> Tensor:
    """The gradient by the bias."""
    return grad_output.sum([0, *range(2, grad_output.dim())])


def backward(
    grad_output: Tensor, input: Tensor | Like, weight: Tensor | Like, geometry: ConvGeometry, wanted: Sequence[bool],
    kernels: Any = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """aten::convolution_backward; ``input`` and ``weight`` are read where the gradient by the other one is wanted."""
    by_input = by_weight = by_bias = None
    input_wanted, weight_wanted, bias_wanted = wanted
    if not geometry.stride:
        return (
            grad_output @ weight if input_wanted and isinstance(weight, Tensor) else None,
            grad_output.t() @ input if weight_wanted and isinstance(input, Tensor) else None,
            by_bias_of(grad_output) if bias_wanted else None,
        )
    if kernels is not None and torch._C._functorch.is_legacy_batchedtensor(grad_output):
        kernels = None  # ATen takes a batch of gradients apart
    if kernels is not None and input_wanted and isinstance(weight, Tensor):
        # The gradient by the input is the convolution of the other kind, on the weight as it is.
        other = geometry._replace(transposed=not geometry.transposed)
        if kernels.refuses(grad_output, other.dilation, other.transposed, other.groups) is None:
            by_input, _ = _in_triton(kernels, grad_output, weight, None, other, input.shape)
            input_wanted = False
    shape = grad_output.shape
    product = None if kernels is not None else _product(input, shape, weight, geometry, grad_output)
    if product is not None:
        known_input = input if isinstance(input, Tensor) and weight_wanted and product.weigh else None
        by_product = product.gather if geometry.transposed else product.scatter
        known_weight = weight if isinstance(weight, Tensor) and input_wanted and by_product else None
        with _without_autocast():
            if geometry.transposed:
                if known_input is not None or known_weight is not None:
                    by_input, by_weight = product.from_big(grad_output, known_input, known_weight)
                    by_input = by_input if _is_finite(by_input) else None
                    by_weight = by_weight if _is_finite(known_input) else None
            else:
                if known_weight is not None:
                    by_input = product.to_big(grad_output, known_weight, None)
                if known_input is not None:
                    _, by_weight = product.from_big(known_input, grad_output, None)
                    by_weight = by_weight if _is_finite(grad_output) else None
    left = (input_wanted and by_input is None, weight_wanted and by_weight is None, bias_wanted)
    # ATen has kernels of its own for depthwise convolutions, not for the other kind of them.
    strided = grad_output.is_cpu or 1 < geometry.groups == input.shape[1]
    if left[0] and isinstance(input, Like) and isinstance(weight, Tensor) and not strided:
        by_input = _by_input_of_aten(grad_output, input, weight, geometry)
        left = (by_input is None, *left[1:])
    if bias_wanted and not left[1] and (grad_output.is_cpu or not left[0]):
        # As part of a call for the weight's gradient alone: oneDNN would compute that one on the way.
        by_bias, left = by_bias_of(grad_output), (left[0], False, False)
    if any(left):
        input, weight = (t if isinstance(t, Tensor) else t.unread(grad_output, strided) for t in (input, weight))
        bias_shape = [grad_output.shape[1]] if bias_wanted else None
        grads = torch.ops.aten.convolution_backward(grad_output, input, weight, bias_shape, *geometry, left)
        by_input = grads[0] if by_input is None else by_input
        by_weight = grads[1] if by_weight is None else by_weight
        by_bias = grads[2] if by_bias is None else by_bias
    return by_input, by_weight, by_bias


def _by_input_of_aten(grad_output: Tensor, input: Like, weight: Tensor, geometry: ConvGeometry) -> Tensor | None:
    """The gradient by an input without a tensor in its place: the convolution of the other kind.

    cuDNN runs the same kernel for both. None where that convolution would be larger than the input.
    """
    stride, space, transposed = geometry.stride, input.shape[2:], geometry.transposed
    if transposed and any(extra >= step for extra, step in zip(geometry.output_padding, stride)):
        return None
    other = geometry._replace(transposed=not transposed, output_padding=(0,) * len(stride))
    if not transposed:
        least = transposed_sizes(grad_output.shape[2:], weight.shape[2:], other)
        other = other._replace(output_padding=tuple(size - low for size, low in zip(space, least)))
    # aten::convolution_backward takes the gradient in the format of the input, and so gives that to the result.
    if len(input.shape) in CHANNELS_LAST:
        ordered = is_ordered_channels_last(input.shape, input.stride)
        memory_format = CHANNELS_LAST[len(input.shape)] if ordered else torch.contiguous_format
        grad_output = grad_output.contiguous(memory_format=memory_format)
    with _without_autocast(grad_output.device.type):
        return torch.convolution(grad_output, weight, None, *other)


def _im2col_fake(
    input: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    positions: Sequence[int],
) -> Tensor:  # fmt: skip
    return input.new_empty(input.size(0) * math.prod(positions), input.size(1) * math.prod(kernel_size))


def _col2im_fake(
    columns: Tensor, output: Tensor, bias: Tensor | None, kernel_size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], positions: Sequence[int],
) -> None:  # fmt: skip
    return None


def _sub_pixel_conv_fake(
    input: Tensor, weight: Tensor, output: Tensor, bias: Tensor | None, padding: Sequence[int]
) -> None:
    return None


dispatch.register("im2col", dispatch.without_derivative("im2col"), _im2col_fake)
dispatch.register("sub_pixel_conv", dispatch.without_derivative("sub_pixel_conv"), _sub_pixel_conv_fake)
dispatch.register("col2im", dispatch.without_derivative("col2im"), _col2im_fake)
