"""The three kernels of a convolution (forward, backward-data, backward-weight): ATen's, or one matrix product.

A convolution connects two feature maps. Each position of the small one corresponds to one position of the filter over
the big one. A convolution reads the big map and writes the small one; a transposed convolution does the opposite.
View the small map as a matrix (N * positions, C_small), and the weight, without a copy, as (C_small, C_big * taps).
Let columns hold the values of the big map under the filter, one row for each position (im2col). Then

    small = columns @ weight.T      columns of big = small @ weight      gradient of weight = small.T @ columns

oneDNN, which ATen calls, reaches the machine's limit if the maps are large compared to the weight. But at every call it
copies the weight into its own order and back, and it computes fewer than 16 channels of the big map at the price of 16.
In those cases a product with the weight in place is faster. The last layer of most generators (kernel 4, stride 2) has
a dedicated kernel. docs/decisions/2026-11-22-convolutions.md has the measurements.
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
from gan_fast.ops import activations, checks, dispatch
from gan_fast.ops.leaky_relu import BackwardBySigns, ReLUBackward, detach_unless_needed, sign_kernels

# Multiplications below which the Python overhead of a product's extra calls matters.
_LEAST_WORK = 4_000_000
# Most values of columns at a time: 32 MiB in float32.
_MOST_COLUMNS = 8_388_608
# With more channels than this in the small map, a product computes that map faster than ATen does.
_DEEP = 256
# With more positions per sample than this, a batched product (one per sample) is faster than copying the map.
_LONG_PLANE = 256
# Floats in a vector: oneDNN computes fewer channels at the price of this many.
_VECTOR = 16
# Cost of writing a column's value and adding it to the map, in multiplications of a product. Filters with a stride
# overlap less, so that more of the map stays in the caches.
_SCATTERED_VALUE, _SCATTERED_VALUE_STRIDED = 160, 120
# Columns (C_big * taps) below which a product is mostly overhead.
_FEW_COLUMNS = 12
# Values of a single sample up to which ATen may use a matrix product itself, unless the convolution is transposed.
_ONE_SAMPLE = 20_480
# Values of a weight above which oneDNN spends most of its time on copying the weight.
_LARGE_WEIGHT = 1 << 20
_DTYPES = (torch.float32, torch.bfloat16)
# Most channels that csrc/cpu/sub_pixel.h supports. Without AVX-512 registers, columns are faster.
_SUB_PIXEL_CHANNELS = 4
_WIDE_REGISTERS = extension.build_info().get("instruction_set") == "avx512"


class ConvGeometry(NamedTuple):
    """The arguments of aten::convolution after its tensors, in its order; empty tuples mean a linear layer."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


class Epilogue(NamedTuple):
    """The operations on a convolution's output before it is returned."""

    activation: str = "identity"
    negative_slope: float = 0.0
    # None leaves the choice to ATen.
    memory_format: torch.memory_format | None = None
    # Also return the count, the mean and the sum of squared deviations for parts of each channel (Triton only).
    statistics: bool = False

    def fused(self, kernels: Any, device_type: str) -> Epilogue:
        """Return what runs inside the convolution's node; a leaky ReLU without sign bits is a separate node."""
        epilogue = self if kernels is not None or not self.statistics else self._replace(statistics=False)
        if self.activation != "leaky_relu":
            return epilogue
        # Triton's kernel stores only the activation, which has the sign of the raw value unless the slope is negative.
        has_signs = self.negative_slope >= 0 if kernels is not None else sign_kernels(device_type, False) is not None
        return epilogue if has_signs else epilogue._replace(activation="identity")

    def over(self, output: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Overwrite the output with the activation; return it and the tensor that :meth:`backward` needs.

        A leaky ReLU saves sign bits and not its output, which may be overwritten later: ``F.leaky_relu`` saves its
        input.
        """
        if self.memory_format is not None:
            output = output.contiguous(memory_format=self.memory_format)
        if self.activation == "leaky_relu" and gradient:
            return output, sign_kernels(output.device.type, False).over(output, float(self.negative_slope))
        output = activations.apply_over(output, self.activation, self.negative_slope)
        return output, output if gradient and self.activation != "identity" else None

    def after(self, output: Tensor) -> Tensor:
        """Apply the epilogue to the result of a convolution in ATen's graph."""
        if self.memory_format is not None:
            output = output.contiguous(memory_format=self.memory_format)
        return activations.apply_to_result(output, self.activation, self.negative_slope)

    def backward(self, grad_output: Tensor, kept: Tensor, strides: tuple[int, ...], kernels: Any) -> Tensor:
        """Return the activation's gradient, itself differentiable.

        Args:
            kept: the tensor from :meth:`over`.
            strides: those of the output.
            kernels: Triton's functions, or None.
        """
        if self.activation == "tanh":
            return torch.ops.aten.tanh_backward(grad_output, kept)
        if self.activation == "sigmoid":
            return torch.ops.aten.sigmoid_backward(grad_output, kept)
        if self.activation == "relu":
            grad: Tensor = ReLUBackward.apply(grad_output, detach_unless_needed(kept, grad_output), None)
        else:
            by = sign_kernels(kept.device.type, kernels is not None)
            grad = BackwardBySigns.apply(grad_output, kept, strides, float(self.negative_slope), by)
        return grad


NOTHING = Epilogue()


class Like(NamedTuple):
    """The shape and strides of a tensor whose values a kernel does not read."""

    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, t: Tensor) -> Like:
        return cls(t.shape, t.stride())

    def unread(self, like: Tensor, strided: bool) -> Tensor:
        """Return a tensor of this shape without defined values, with the dtype and device of ``like``.

        Args:
            strided: give it the strides too. That allocates memory, which a CPU does not commit until it is written.
                Otherwise the tensor is one expanded value.
        """
        return like.new_empty_strided(self.shape, self.stride) if strided else like.new_empty(()).expand(self.shape)


_im2col = dispatch.kernel("im2col")
_col2im = dispatch.kernel("col2im")
_sub_pixel_conv = dispatch.kernel("sub_pixel_conv")


def _rows(t: Tensor) -> Tensor:
    return t.movedim(1, -1).reshape(-1, t.size(1))


def _rows_times(t: Tensor, matrix: Tensor) -> Tensor:
    """Return _rows(t) @ matrix, without copying t if it is contiguous and large."""
    samples, positions = t.size(0), math.prod(t.shape[2:])
    if t.stride(1) == 1 or not t.is_contiguous() or positions < _LONG_PLANE:
        return _rows(t) @ matrix
    planes = t.flatten(2).transpose(1, 2)
    return torch.bmm(planes, matrix.expand(samples, -1, -1)).view(samples * positions, -1)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize == 2 else dtype


def _channels_last(input: Like, weight: Like) -> bool:
    """Whether ATen returns a channels-last result."""
    return any(is_ordered_channels_last(t.shape, t.stride) for t in (input, weight))


class _Product(NamedTuple):
    """A convolution as a matrix product, and which of its three kernels are faster that way."""

    small: torch.Size
    big: torch.Size
    weight: Like
    geometry: ConvGeometry
    channels_last: bool
    # The kernels that compute the small map, the big map and the gradient of the weight.
    gather: bool
    scatter: bool
    weigh: bool

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def of(cls, input: Like, weight: Like, geometry: ConvGeometry, output: torch.Size | None = None) -> _Product | None:
        """Return the product, or None if ATen's kernels are faster for all three."""
        output = output or _output_shape(input.shape, weight.shape, geometry)
        if min(*input.shape, *output) == 0:
            return None  # ATen raises or returns an empty result
        small, big = (input.shape, output) if geometry.transposed else (output, input.shape)
        channels, columns = weight.shape[0], math.prod(weight.shape[1:])
        positions = math.prod(small[2:])
        rows = small[0] * positions
        # A 1x1 filter already is a product in ATen.
        worth = rows * channels * columns >= _LEAST_WORK and math.prod(weight.shape[2:]) > 1
        # With a filter as large as the map, the columns are the map itself.
        once = positions == 1
        channels_last = _channels_last(input, weight)
        # A product reads the weight as one matrix, which would copy a channels-last weight.
        in_place = not is_ordered_channels_last(weight.shape, weight.stride)
        # The factors are the most rows per channel for which a product is faster. Without a stride, or with a filter
        # along one dim only (as in 1-d), oneDNN is slow only for weights that are far larger than the maps.
        if max(geometry.stride) == 1 or sum(size > 1 for size in weight.shape[2:]) == 1:
            large = channels * columns >= _LARGE_WEIGHT and small[0] > 1
            gather, scatter, weigh = False, large and in_place and channels >= 16 * rows, large and channels >= 4 * rows
        else:
            # ATen is faster on contiguous maps than on channels-last ones.
            deep = channels >= _DEEP
            gather = deep and in_place and (2 if channels_last else 0.5) * channels >= rows
            scatter = in_place and 4 * channels >= rows
            weigh = (deep or channels_last) and 4 * channels >= rows
        product = cls(
            small, big, weight, geometry, channels_last,
            gather=worth and (once or gather), scatter=scatter, weigh=worth and (once or weigh),
        )  # fmt: skip
        # For a single position, ATen's sums are more accurate.
        scatter = worth and not once and (scatter or product.sub_pixel or product._has_few_channels)
        product = product._replace(scatter=scatter)
        return product if product.gather or product.scatter or product.weigh else None

    @property
    def _has_few_channels(self) -> bool:
        """Whether oneDNN wastes more on padding the big map to 16 channels than a product spends on its columns."""
        channels, few = self.weight.shape[:2]
        lacking = max(_VECTOR - few, 0) * channels
        onednn = self.geometry.transposed or self.small[0] > 1 or math.prod(self.big) > _ONE_SAMPLE
        columns = few * math.prod(self.weight.shape[2:])
        scattered = _SCATTERED_VALUE if max(self.geometry.stride) == 1 else _SCATTERED_VALUE_STRIDED
        return onednn and columns >= _FEW_COLUMNS and lacking >= scattered * few

    @property
    def sub_pixel(self) -> bool:
        """Whether csrc/cpu/sub_pixel.h can compute the big map."""
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
        """The number of samples whose columns are in memory at a time."""
        return max(1, _MOST_COLUMNS // (math.prod(self.small[2:]) * math.prod(self.weight.shape[1:])))

    @property
    def options(self) -> tuple[tuple[int, ...], ...]:
        geometry = self.geometry
        return (tuple(self.weight.shape[2:]), geometry.stride, geometry.padding, geometry.dilation, self.small[2:])

    def to_big(self, small: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the big map: the result of a transposed convolution, or the input gradient of a convolution."""
        big = self._empty(self.big, small.dtype)
        if self.sub_pixel and _is_finite(weight):
            _sub_pixel_conv(small, weight, big, bias, self.geometry.padding)
            return big
        # Single precision, so that sums of half values are rounded once, when they are stored.
        dtype = _compute_dtype(small.dtype)
        matrix = weight.reshape(weight.size(0), -1).to(dtype)
        for part, target in zip(small.split(self.samples), big.split(self.samples)):
            _col2im(_rows_times(part.to(dtype), matrix), target, bias, *self.options)
        return big

    def from_big(
        self, big: Tensor, small: Tensor | None, weight: Tensor | None, bias: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the small map if ``weight`` is given, and the gradient of the weight if ``small`` is given.

        The small map is the result of a convolution, or the input gradient of a transposed convolution. Results are not
        views, because autograd forbids overwriting a view that a Function returned.
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
                # Do not round partial sums to half precision.
                dtype = _compute_dtype(big.dtype)
                partial = _rows(small[part]).t().to(dtype) @ columns.to(dtype)
                total = partial if total is None else total + partial
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
    """Whether all values are finite: an infinite value times a zero of the padding would become NaN.

    The test is whether the sum is finite, which costs a fraction of a product. If the sum overflows, the caller merely
    uses another kernel.
    """
    return t is None or bool(t.sum(dtype=_compute_dtype(t.dtype)).isfinite())


def _product(
    input: Tensor | Like, output: torch.Size | None, weight: Tensor | Like, geometry: ConvGeometry, reads: Tensor
) -> _Product | None:
    """Return the convolution as a matrix product, or None if that is impossible or ATen's kernels are faster."""
    if (
        geometry.groups != 1
        or reads.dtype not in _DTYPES
        or reads.device.type != "cpu"
        or not extension.available()
        or torch._C._functorch.is_legacy_batchedtensor(reads)
        # Fake tensors and other subclasses may have no values.
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
    """Return the spatial sizes of a transposed convolution's output."""
    stride, padding, dilation, _, output_padding, _ = geometry
    return tuple(
        (size - 1) * stride[d] - 2 * padding[d] + dilation[d] * (kernel[d] - 1) + 1 + output_padding[d]
        for d, size in enumerate(space)
    )


def _without_autocast(device_type: str = "cpu") -> AbstractContextManager[Any]:
    """Disable autocast, which would change the dtypes of the products."""
    enabled = dispatch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if enabled else contextlib.nullcontext()


def gain_by_channels_last(input: Tensor) -> bool:
    """Whether gan_fast's convolutions of ``input`` and its successors are faster if it is copied to channels-last."""
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
    """Convolve and apply the epilogue; ``kernels`` are Triton's functions, or None.

    Returns:
        The output; if ``gradient``, the tensor that the epilogue's gradient needs; the statistics, if any.
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


def bias_gradient(grad_output: Tensor) -> Tensor:
    """Return the gradient of the bias."""
    return grad_output.sum([0, *range(2, grad_output.dim())])


def backward(
    grad_output: Tensor, input: Tensor | Like, weight: Tensor | Like, geometry: ConvGeometry, wanted: Sequence[bool],
    kernels: Any = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Return the wanted gradients of input, weight and bias, or None.

    The gradient of the input needs the values of ``weight``, that of the weight the values of ``input``.
    """
    grad_input = grad_weight = grad_bias = None
    input_wanted, weight_wanted, bias_wanted = wanted
    if not geometry.stride:
        return (
            grad_output @ weight if input_wanted and isinstance(weight, Tensor) else None,
            grad_output.t() @ input if weight_wanted and isinstance(input, Tensor) else None,
            bias_gradient(grad_output) if bias_wanted else None,
        )
    if kernels is not None and torch._C._functorch.is_legacy_batchedtensor(grad_output):
        kernels = None  # ATen loops over batched gradients
    if kernels is not None and input_wanted and isinstance(weight, Tensor):
        # The input gradient of a convolution is a transposed convolution with the same weight, and vice versa.
        other = geometry._replace(transposed=not geometry.transposed)
        if kernels.refuses(grad_output, other.dilation, other.transposed, other.groups) is None:
            grad_input, _ = _in_triton(kernels, grad_output, weight, None, other, input.shape)
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
                    grad_input, grad_weight = product.from_big(grad_output, known_input, known_weight)
                    grad_input = grad_input if _is_finite(grad_input) else None
                    grad_weight = grad_weight if _is_finite(known_input) else None
            else:
                if known_weight is not None:
                    grad_input = product.to_big(grad_output, known_weight, None)
                if known_input is not None:
                    _, grad_weight = product.from_big(known_input, grad_output, None)
                    grad_weight = grad_weight if _is_finite(grad_output) else None
    remaining = (input_wanted and grad_input is None, weight_wanted and grad_weight is None, bias_wanted)
    # ATen has special kernels for depthwise convolutions, but not for transposed ones.
    strided = grad_output.is_cpu or 1 < geometry.groups == input.shape[1]
    if remaining[0] and isinstance(input, Like) and isinstance(weight, Tensor) and not strided:
        grad_input = _input_gradient_of_aten(grad_output, input, weight, geometry)
        remaining = (grad_input is None, *remaining[1:])
    if bias_wanted and not remaining[1] and (grad_output.is_cpu or not remaining[0]):
        # To compute the gradient of the bias, oneDNN would compute that of the weight too.
        grad_bias, remaining = bias_gradient(grad_output), (remaining[0], False, False)
    if any(remaining):
        input, weight = (t if isinstance(t, Tensor) else t.unread(grad_output, strided) for t in (input, weight))
        bias_shape = [grad_output.shape[1]] if bias_wanted else None
        grads = torch.ops.aten.convolution_backward(grad_output, input, weight, bias_shape, *geometry, remaining)
        grad_input = grads[0] if grad_input is None else grad_input
        grad_weight = grads[1] if grad_weight is None else grad_weight
        grad_bias = grads[2] if grad_bias is None else grad_bias
    return grad_input, grad_weight, grad_bias


def _input_gradient_of_aten(grad_output: Tensor, input: Like, weight: Tensor, geometry: ConvGeometry) -> Tensor | None:
    """Return the input gradient as a convolution of the other kind, which needs no tensor in place of the input.

    cuDNN runs the same kernel for both. None if that convolution's result would be larger than the input.
    """
    stride, space, transposed = geometry.stride, input.shape[2:], geometry.transposed
    if transposed and any(extra >= step for extra, step in zip(geometry.output_padding, stride)):
        return None
    other = geometry._replace(transposed=not transposed, output_padding=(0,) * len(stride))
    if not transposed:
        least = transposed_sizes(grad_output.shape[2:], weight.shape[2:], other)
        other = other._replace(output_padding=tuple(size - low for size, low in zip(space, least)))
    # Like aten::convolution_backward, return the gradient in the memory format of the input.
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
