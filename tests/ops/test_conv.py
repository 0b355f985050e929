from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from derivatives import differentiated, in_double, second_order
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pairs import in_dtypes, pairwise
from samples import CONV_SAMPLES, DTYPES, LAYOUTS, ConvSample, conv_samples, every_tap_sees_an_input
from tolerances import assert_as_exact, few_numbers_factor
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gan_fast
from gan_fast import extension, ops
from gan_fast.ops import conv_kernels
from gan_fast.ops.conv_kernels import Like


def check_against_aten(
    sample: ConvSample, dtype: torch.dtype, drawn: bool = False, weight_strides: bool = True, factor: float = 2.0
) -> None:
    arguments = sample.make(dtype)
    actual = second_order(getattr(ops, sample.op), arguments)
    eager = second_order(getattr(F, sample.op), arguments)
    exact = second_order(getattr(F, sample.op), in_double(arguments), dtype)
    for name, value in eager.items():
        if name not in actual:
            assert not value.count_nonzero(), f"{name} is missing"
            continue
        assert_as_exact(actual[name], value, exact[name], name, few_numbers_factor(value) if drawn else factor)
        if not name.startswith("second") and (weight_strides or name != "grad_weight"):
            assert actual[name].stride() == value.stride(), f"{name}: strides"
    # For an empty batch ATen returns no gradient.
    assert all(not actual[name].count_nonzero() for name in set(actual) - set(eager))


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # ATen warns that it pads the input
@pytest.mark.parametrize(*in_dtypes(CONV_SAMPLES, DTYPES))
def test_equals_aten_to_second_order(sample: ConvSample, dtype: torch.dtype) -> None:
    check_against_aten(sample, dtype)


@pytest.mark.parametrize(
    "sample", [s for s in CONV_SAMPLES if s.layout != "expanded" and 0 not in s.input_shape], ids=str
)
def test_gradcheck_to_second_order(sample: ConvSample) -> None:
    arguments = sample.make(torch.float64)
    named = differentiated(arguments)

    def function(*values: Tensor) -> Tensor:
        output: Tensor = getattr(ops, sample.op)(**{**arguments, **dict(zip(named, values))})
        return output

    assert torch.autograd.gradcheck(function, tuple(named.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tuple(named.values()), fast_mode=True)


@pytest.mark.parametrize("transposed", [False, True])
def test_fourth_derivative_equals_aten(transposed: bool) -> None:
    def third(namespace: Any) -> Tensor:
        sample = ConvSample((2, 2, 5, 5), (2, 2, 3, 3), transposed, options=(("stride", 2),))
        arguments = sample.make(torch.float64)
        grad = getattr(namespace, sample.op)(**arguments).tanh()
        for _ in range(3):
            (grad,) = torch.autograd.grad((grad**2).sum(), arguments["input"], create_graph=True)
        (grad_weight,) = torch.autograd.grad((grad**2).sum(), arguments["weight"])
        return grad_weight

    torch.testing.assert_close(third(ops), third(F))


def large_samples() -> list[ConvSample]:
    """Shapes that use a matrix product in the forward pass, in one gradient or in both."""
    down = (("stride", 2), ("padding", 1))
    samples = [
        ConvSample((8, 64, 8, 8), (300, 64, 4, 4), bias=bias, options=down, layout=layout)
        for bias, layout in ((True, "contiguous"), (False, "channels_last"), (True, "gaps"), (True, "transposed"))
    ]
    samples += [
        ConvSample((8, 300, 4, 4), (300, 64, 4, 4), True, bias, down, layout)
        for bias, layout in ((True, "contiguous"), (False, "channels_last"), (True, "sliced_channels_last"))
    ]
    samples += [
        ConvSample((8, 64, 16, 15), (64, 3, 4, 4), True, options=down),
        ConvSample((9, 64, 16, 15), (64, 3, 4, 4), True, options=down, layout="channels_last"),
        ConvSample((8, 64, 9, 16), (64, 4, 5, 5), True, options=(*down, ("output_padding", (1, 0)))),
        ConvSample((8, 64, 24, 24), (64, 2, 3, 3), True, options=(("stride", 3),), layout="channels_last"),
        ConvSample((4, 64, 16, 16), (64, 4, 4, 4), True, options=(("dilation", 2), ("padding", (3, 0)))),
        ConvSample((32, 100, 1, 1), (100, 512, 4, 4), True, bias=False),
        ConvSample((16, 512, 4, 4), (40, 512, 4, 4)),
        ConvSample((4, 64, 700), (64, 2, 25), True, options=(("stride", 4), ("padding", 11))),
        ConvSample((5, 300, 12), (600, 300, 7), options=(("padding", "same"),)),
        ConvSample((6, 200, 2, 3, 2), (200, 40, 3, 3, 3), True, options=down),
        ConvSample((9, 64, 6, 5, 7), (200, 64, 3, 3, 3), options=down, layout="channels_last"),
    ]
    return samples


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sample", large_samples(), ids=str)
def test_products_equal_aten_to_second_order(
    sample: ConvSample, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    products: list[str] = []
    for name in ("to_big", "from_big"):
        method = getattr(conv_kernels._Product, name)
        monkeypatch.setattr(
            conv_kernels._Product,
            name,
            lambda *args, method=method, name=name: products.append(name) or method(*args),
        )
    # Few columns at a time, so that there are several parts and a smaller last one.
    monkeypatch.setattr(conv_kernels, "_MOST_COLUMNS", 200_000)
    # MKL's sums of 2,000 terms have on average 1.65 times the error of oneDNN's (both grow with the square root of the
    # number of terms). The largest of 30,000 errors depends on the number of threads; up to 2.1 times was measured.
    check_against_aten(sample, dtype, weight_strides=False, factor=2.5)
    assert products, "no kernel was a product"


def _choice(input: tuple[int, ...], weight: tuple[int, ...], channels_last: bool = False, **options: int) -> set[str]:
    """Return which kernels of a convolution are products: gather, scatter, weigh."""
    dims = len(input) - 2
    values = {"stride": 1, "padding": 0, "dilation": 1, "transposed": False, "output_padding": 0, **options}
    each = {name: (value,) * dims for name, value in values.items() if name != "transposed"}
    geometry = conv_kernels.ConvGeometry(**each, transposed=bool(values["transposed"]), groups=1)
    x = torch.empty(input)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    product = conv_kernels._Product.of(Like.of(x), Like.of(torch.empty(weight)), geometry)
    return {name for name in ("gather", "scatter", "weigh") if getattr(product, name, False)}


ATEN_IS_FASTER = [
    # Layers of vocoders: few channels on long signals, residual blocks, upsamplers.
    ((4, 8, 8192), (8, 8, 7), {"padding": 3}),
    ((16, 8, 4096), (8, 8, 4), {"stride": 2, "transposed": True}),
    ((4, 80, 32), (128, 80, 7), {"padding": 3}),
    ((1, 80, 32), (512, 80, 7), {"padding": 3}),
    ((4, 32, 8192), (32, 32, 3), {"padding": 1}),
    ((4, 64, 2048), (64, 64, 11), {"padding": 25, "dilation": 5}),
    ((1, 256, 256), (256, 256, 7), {"padding": 9, "dilation": 3}),
    ((16, 256, 256), (256, 128, 16), {"stride": 8, "padding": 4, "transposed": True}),
    ((16, 128, 2048), (128, 64, 4), {"stride": 2, "padding": 1, "transposed": True}),
    ((4, 64, 4096), (128, 64, 3), {"padding": 128, "dilation": 128}),
    ((4, 64, 4096), (128, 64, 25), {"stride": 4, "padding": 11}),
    ((4, 256, 1024), (512, 256, 25), {"stride": 4, "padding": 11}),
    ((4, 32, 8192), (1, 32, 7), {"padding": 3}),
    ((2, 1, 8192), (128, 1, 7), {"padding": 3}),
    ((1, 1, 16384), (64, 1, 25), {"stride": 4, "padding": 11}),
    # In 2-d: filters along one dim, and filters without a stride.
    ((4, 1, 1024, 3), (32, 1, 5, 1), {"stride": 3}),
    ((4, 128, 100, 3), (512, 128, 5, 1), {"stride": 3}),
    ((4, 256, 8, 8), (256, 256, 3, 3), {"padding": 1}),
    ((4, 32, 128, 128), (3, 32, 9, 9), {"padding": 4}),
    ((4, 3, 128, 128), (32, 3, 9, 9), {"padding": 4}),
    ((4, 32, 4, 8, 8), (32, 16, 4, 4, 4), {"stride": 2, "padding": 1, "transposed": True}),
]


@pytest.mark.parametrize(("input", "weight", "options"), ATEN_IS_FASTER, ids=str)
def test_no_kernel_is_a_product_if_aten_is_faster(
    input: tuple[int, ...], weight: tuple[int, ...], options: dict[str, int]
) -> None:
    assert _choice(input, weight, **options) == set()
    if len(input) == 4:
        assert _choice(input, weight, channels_last=True, **options) == set()


@pytest.mark.parametrize(
    ("input", "weight", "options", "products"),
    [
        # The last layer of WaveGAN's generator, and the input gradient of a critic's first layer.
        ((4, 64, 4096), (64, 1, 25), {"stride": 4, "padding": 11, "transposed": True}, {"scatter"}),
        ((1, 64, 4096), (64, 1, 25), {"stride": 4, "padding": 11, "transposed": True}, {"scatter"}),
        ((4, 1, 8192), (16, 1, 15), {"padding": 7}, {"scatter"}),
        # Weights far larger than the maps.
        ((4, 1024, 16), (1024, 512, 25), {"stride": 4, "padding": 11, "transposed": True}, {"scatter", "weigh"}),
        ((4, 1024, 32), (1024, 1024, 5), {"padding": 2}, {"weigh"}),
        ((4, 256, 16), (256, 256, 16), {}, {"gather", "weigh"}),
        # Layers of DCGAN-64, and last layers of generators.
        ((32, 512, 4, 4), (512, 256, 4, 4), {"stride": 2, "padding": 1, "transposed": True}, {"scatter", "weigh"}),
        ((32, 256, 8, 8), (512, 256, 4, 4), {"stride": 2, "padding": 1}, {"scatter", "weigh"}),
        ((32, 64, 16, 16), (64, 3, 5, 5), {"stride": 2, "padding": 2, "transposed": True}, {"scatter"}),
        ((4, 3, 64, 64), (64, 3, 7, 7), {"padding": 3}, {"scatter"}),
        ((2, 3, 8, 32, 32), (32, 3, 4, 4, 4), {"stride": 2, "padding": 1}, {"scatter"}),
        ((4, 512, 4, 4), (512, 512, 3, 3), {"padding": 1}, {"weigh"}),
    ],
    # Sort the names: pytest-xdist needs the same ids in every process, and sets have no fixed order.
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_kernels_are_products_if_those_are_faster(
    input: tuple[int, ...], weight: tuple[int, ...], options: dict[str, int], products: set[str]
) -> None:
    assert _choice(input, weight, **options) == products


def test_channels_last_weight_uses_a_product_only_for_its_own_gradient() -> None:
    """Other products would copy the weight first."""
    geometry = conv_kernels.ConvGeometry((2, 2), (1, 1), (1, 1), True, (0, 0), 1)
    x, weight = torch.empty(32, 512, 4, 4), torch.empty(512, 256, 4, 4)
    for memory_format, scatter in ((torch.contiguous_format, True), (torch.channels_last, False)):
        weight_like = Like.of(weight.contiguous(memory_format=memory_format))
        product = conv_kernels._Product.of(
            Like.of(x.contiguous(memory_format=torch.channels_last)), weight_like, geometry
        )
        assert product is not None
        assert (product.gather, product.scatter, product.weigh) == (scatter, scatter, True)


@pytest.mark.parametrize(
    *pairwise(
        geometry=[
            # kernel, stride, padding, dilation, size of the map, positions
            ((4, 4), (2, 2), (1, 1), (1, 1), (10, 7), (5, 3)),
            ((4, 4), (2, 2), (0, 0), (1, 1), (13, 9), (5, 3)),  # some values are under no filter position
            ((3, 5), (1, 3), (2, 4), (1, 1), (4, 6), (6, 4)),  # filter positions entirely in the padding
            ((2, 3), (3, 1), (0, 1), (2, 2), (9, 6), (3, 4)),
            ((7,), (2,), (3,), (1,), (21,), (11,)),
            ((2, 4, 4), (1, 2, 2), (1, 1, 0), (1, 1, 1), (3, 6, 8), (4, 3, 3)),
        ],
        dtype=DTYPES,
        layout=["contiguous", "channels_last", "gaps", "expanded"],
    )
)
def test_columns_equal_unfold_and_fold(geometry: Any, dtype: torch.dtype, layout: str) -> None:
    kernel, stride, padding, dilation, size, positions = geometry
    n, c = 3, 11
    x = LAYOUTS[layout](torch.randn(n, c, *size).to(dtype))
    columns = torch.ops.gan_fast.im2col(x, kernel, stride, padding, dilation, positions)
    count = torch.Size(positions).numel()
    # A convolution with one unit weight per tap extracts the values under the filter.
    taps = torch.Size(kernel).numel()
    weight = torch.eye(taps, dtype=torch.float64).view(taps, 1, *kernel)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
    under = convolve(x.double().reshape(n * c, 1, *size), weight, None, stride, padding, dilation)
    under = under.reshape(n, c, taps, count).permute(0, 3, 1, 2).reshape(n * count, c * taps)
    assert torch.equal(columns.double(), under)

    compute = torch.float64 if dtype == torch.float64 else torch.float32
    values = torch.randint(-8, 8, columns.shape).to(compute)  # sums of small integers are exact
    bias = torch.arange(c).to(dtype)
    output = LAYOUTS["contiguous" if layout == "expanded" else layout](torch.empty(n, c, *size, dtype=dtype))
    torch.ops.gan_fast.col2im(values, output, bias, kernel, stride, padding, dilation, positions)
    back = values.double().view(n, count, c, taps).permute(0, 2, 3, 1).reshape(n * c, taps, *positions)
    transpose = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[len(kernel)]
    full = transpose(back, weight, None, stride, 0, 0, 1, dilation)
    # Negative padding crops.
    ends = [(-pad, pad + s - f) for pad, s, f in zip(padding, size, full.shape[2:])]
    full = F.pad(full, [v for end in reversed(ends) for v in end]).view(n, c, *size)
    assert torch.equal(output.double(), full + bias.double().view(-1, *[1] * len(size)))


@pytest.mark.parametrize(
    *pairwise(
        case=[
            # input channels, output channels, size of the input, padding, output padding
            (64, 3, (32, 32), (1, 1), (0, 0)),
            (33, 1, (1, 17), (1, 2), (1, 1)),
            (5, 2, (9, 40), (0, 3), (0, 1)),
            (70, 4, (2, 16), (2, 0), (0, 0)),
            (1, 3, (40, 5), (3, 1), (1, 0)),
        ],
        layout=["contiguous", "channels_last", "gaps", "offset", "transposed"],
        dtype=[torch.float32, torch.bfloat16, torch.float16],
    )
)
def test_sub_pixel_conv_equals_a_transposed_convolution(case: Any, layout: str, dtype: torch.dtype) -> None:
    c_in, c_out, size, padding, output_padding = case
    x = LAYOUTS[layout](torch.randn(3, c_in, *size).to(dtype))
    weight = LAYOUTS[layout](torch.randn(c_in, c_out, 4, 4).to(dtype))
    bias = torch.randn(c_out).to(dtype)
    for shift in (None, bias):
        exact = F.conv_transpose2d(
            x.double(), weight.double(), None if shift is None else shift.double(), 2, padding, output_padding
        )
        eager = F.conv_transpose2d(x, weight, shift, 2, padding, output_padding)
        output = LAYOUTS[layout](torch.full(exact.shape, float("nan"), dtype=dtype))
        torch.ops.gan_fast.sub_pixel_conv(x, weight, output, shift, padding)
        assert_as_exact(output, eager, exact, "output")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_last_layer_of_a_generator_uses_sub_pixel_conv(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kernel = conv_kernels._sub_pixel_conv
    monkeypatch.setattr(conv_kernels, "_sub_pixel_conv", lambda *args: calls.append(1) or kernel(*args))
    x = LAYOUTS[layout](torch.randn(2, 64, 32, 32))
    output = ops.conv_transpose2d(x, torch.randn(64, 3, 4, 4), None, 2, 1)
    assert len(calls) == (extension.build_info()["instruction_set"] == "avx512")
    assert output.stride() == LAYOUTS[layout](output).stride()


def test_raw_sub_pixel_conv_rejects_shapes_that_would_read_out_of_bounds() -> None:
    op = torch.ops.gan_fast.sub_pixel_conv
    x, weight, output = torch.ones(2, 8, 6, 16), torch.ones(8, 3, 4, 4), torch.ones(2, 3, 12, 32)
    rejected = [
        ((x.double(), weight.double(), output.double(), None, (1, 1)), "input dtype float32, bfloat16 or float16"),
        ((x, weight.bfloat16(), output, None, (1, 1)), "weight dtype Float"),
        ((x, weight, output.bfloat16(), None, (1, 1)), "output dtype Float"),
        ((x[0], weight, output, None, (1, 1)), "input dimensions 4"),
        ((x, torch.ones(8, 5, 4, 4), output, None, (1, 1)), r"weight shape \(8, 1 to 4, 4, 4\), got \(8, 5, 4, 4\)"),
        ((x, torch.ones(8, 3, 3, 4), output, None, (1, 1)), r"weight shape \(8, 1 to 4, 4, 4\), got \(8, 3, 3, 4\)"),
        ((x, weight, output[:1], None, (1, 1)), r"output shape \(2, 3, ...\), got \(1, 3, 12, 32\)"),
        ((x, weight, output, torch.ones(2), (1, 1)), r"bias shape \(3,\), got \(2,\)"),
        ((x, weight, output, None, (1,)), "padding two numbers, got 1 of them"),
        ((x, weight, output, None, (1, -1)), r"padding between 0 and 18, got -1"),
        ((x, weight, output, None, (1, 100)), r"padding between 0 and 18, got 100"),
        ((x, weight, output, None, (2**63 - 1, 1)), "padding between 0 and 8"),
    ]
    for arguments, message in rejected:
        with pytest.raises(RuntimeError, match=f"sub_pixel_conv: expected {message}"):
            op(*arguments)
    with pytest.raises(NotImplementedError, match="sub_pixel_conv: expected no argument to require grad"):
        op(x.clone().requires_grad_(), weight, output, None, (1, 1))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op.default, (x, weight, output, None, (1, 1)), test_utils=checks)
    # An output beyond the filters' reach consists of the bias there.
    big = torch.empty(2, 3, 20, 50)
    op(x, weight, big, torch.arange(3.0), (1, 1))
    assert all(bool((big[:, c, 14:] == c).all() and (big[:, c, :, 34:] == c).all()) for c in range(3))


def test_columns_opcheck() -> None:
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    geometry = ((4, 4), (2, 2), (1, 1), (1, 1), (3, 2))
    x, columns = torch.randn(2, 3, 6, 4), torch.randn(12, 48)
    torch.library.opcheck(torch.ops.gan_fast.im2col.default, (x, *geometry), test_utils=checks)
    torch.library.opcheck(torch.ops.gan_fast.col2im.default, (columns, x, None, *geometry), test_utils=checks)


def test_raw_columns_reject_shapes_that_would_read_out_of_bounds() -> None:
    x, columns = torch.ones(2, 3, 6, 4), torch.ones(12, 48)
    im2col, col2im = torch.ops.gan_fast.im2col, torch.ops.gan_fast.col2im
    geometry = [(4, 4), (2, 2), (1, 1), (1, 1), (3, 2)]
    with pytest.raises(RuntimeError, match="im2col: expected 3 to 5 dimensions"):
        im2col(x[0, 0], *geometry)
    with pytest.raises(RuntimeError, match="im2col: expected kernel_size length 2, got 1"):
        im2col(x, (4,), *geometry[1:])
    with pytest.raises(RuntimeError, match="im2col: expected stride at least 1, got 0"):
        im2col(x, (4, 4), (0, 1), *geometry[2:])
    with pytest.raises(RuntimeError, match=r"col2im: expected columns shape \(12, 48\), got \(11, 48\)"):
        col2im(columns[:11], x, None, *geometry)
    with pytest.raises(RuntimeError, match="col2im: expected columns dtype Float, got Double"):
        col2im(columns.double(), x, None, *geometry)
    with pytest.raises(RuntimeError, match=r"col2im: expected bias shape \(3,\), got \(2,\)"):
        col2im(columns, x, torch.ones(2), *geometry)
    with pytest.raises(NotImplementedError, match="im2col: expected no argument to require grad"):
        im2col(x.clone().requires_grad_(), *geometry)


def test_products_ignore_autocast() -> None:
    x, weight = torch.randn(8, 64, 16, 16), torch.randn(64, 3, 4, 4)
    geometry = conv_kernels.ConvGeometry((2, 2), (1, 1), (1, 1), True, (0, 0), 1)
    plain = conv_kernels.forward(x, weight, None, geometry)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv_kernels.forward(x, weight, None, geometry)[0], plain)


def test_results_of_products_may_be_overwritten() -> None:
    """autograd forbids that for views that a Function returns."""
    x, weight = torch.randn(8, 64, 8, 8, requires_grad=True), torch.randn(300, 64, 4, 4, requires_grad=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        output = ops.conv2d(x.contiguous(memory_format=layout), weight, None, 2, 1)
        grads = torch.autograd.grad(torch.relu_(output).sum(), (x, weight), create_graph=True)
        for grad in grads:
            grad.mul_(2)
    row = torch.randn(16, 300, 1, 1, requires_grad=True)
    torch.relu_(ops.conv2d(row, torch.randn(900, 300, 1, 1))).sum().backward()


@pytest.mark.parametrize("where", ["input", "weight", "grad_output"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_return_infinities_where_aten_does(transposed: bool, value: float, where: str) -> None:
    down = {"stride": 2, "padding": 1}
    if transposed:
        x, weight = torch.rand(8, 300, 4, 4), torch.rand(300, 64, 4, 4)
    else:
        x, weight = torch.rand(8, 64, 8, 8), torch.rand(300, 64, 4, 4)
    grad_output = torch.rand(8, *((64, 8, 8) if transposed else (300, 4, 4)))
    {"input": x, "weight": weight, "grad_output": grad_output}[where].view(-1)[0] = value
    results = []
    for namespace in (ops, F):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        output = getattr(namespace, "conv_transpose2d" if transposed else "conv2d")(*leaves, **down)
        results.append([output, *torch.autograd.grad(output, leaves, grad_output)])
    for actual, want in zip(*results):
        assert torch.equal(actual.isnan(), want.isnan())
        assert torch.equal(actual.isinf(), want.isinf())


def test_batched_gradients_of_a_product() -> None:
    x, weight = torch.randn(8, 64, 8, 8, requires_grad=True), torch.randn(300, 64, 4, 4, requires_grad=True)
    output = ops.conv2d(x, weight, None, 2, 1)
    batch = torch.randn(3, *output.shape)
    actual = torch.autograd.grad(output, (x, weight), batch, is_grads_batched=True, retain_graph=True)
    for index in range(3):
        for batched, want in zip(actual, torch.autograd.grad(output, (x, weight), batch[index], retain_graph=True)):
            torch.testing.assert_close(batched[index], want, rtol=1e-4, atol=1e-3)


class Calls(TorchDispatchMode):
    """Records calls of ATen's convolutions: "forward", or the gradients that a backward computes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.seen.append("forward")
        elif func is torch.ops.aten.convolution_backward.default:
            self.seen.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))


def test_penalty_computes_only_the_gradients_it_needs() -> None:
    """No weight gradients in its first pass; in its second, a forward pass through all layers except the last."""
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    weights = [torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(1, 4, 6, 6, requires_grad=True)]
    with Calls() as calls:
        output = ops.conv2d(ops.leaky_relu(ops.conv2d(x, weights[0]), 0.2), weights[1])
        (grad,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        assert calls.seen == ["forward"] * 2 + [(True, False, False)] * 2
        calls.seen.clear()
        grad.square().sum().backward()
    assert sorted(map(str, calls.seen)) == sorted(map(str, ["forward"] + [(False, True, False)] * 2))
    assert x.grad is None or not x.grad.count_nonzero()


def test_saves_only_what_gradients_need() -> None:
    saved: list[Tensor] = []
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.conv2d(x, weight)
    assert [t.data_ptr() for t in saved] == [x.data_ptr()]


def test_autocast_equals_aten() -> None:
    arguments = ConvSample((2, 3, 6, 5), (4, 3, 3, 3)).make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual, eager = ops.conv2d(**arguments), F.conv2d(**arguments)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, eager)
    actual.sum().backward()
    assert arguments["weight"].grad.dtype == torch.float32


def test_compiles_without_graph_breaks_and_under_vmap() -> None:
    arguments = ConvSample((2, 3, 6, 5), (4, 3, 3, 3)).make(torch.float32)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return ops.leaky_relu(ops.conv2d(x, weight, stride=2), 0.2)

    x, weight = arguments["input"], arguments["weight"]
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for actual, want in zip(
        torch.autograd.grad(compiled(x, weight).sum(), (x, weight)),
        torch.autograd.grad(run(x, weight).sum(), (x, weight)),
    ):
        torch.testing.assert_close(actual, want)

    def loss(weight: Tensor, sample: Tensor) -> Tensor:
        return run(sample.unsqueeze(0), weight).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    torch.testing.assert_close(per_sample.sum(0), torch.autograd.grad(run(x, weight).sum(), weight)[0])


def test_jit_trace_contains_only_aten_ops() -> None:
    module = torch.nn.Sequential(gan_fast.nn.Conv2d(3, 4, 3), gan_fast.nn.LeakyReLU(0.2))
    x = torch.randn(2, 3, 6, 5)
    traced = torch.jit.trace(module, x)
    assert torch.equal(traced(x), module(x))
    assert "PythonOp" not in str(traced.inlined_graph)


@settings(max_examples=300)
@given(sample=conv_samples(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_random_inputs_equal_aten(sample: ConvSample, dtype: torch.dtype) -> None:
    assume(dtype.itemsize > 2 or every_tap_sees_an_input(sample))
    check_against_aten(sample, dtype, drawn=True)


BAD_INPUTS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("conv2d", {"input": 1.0}, TypeError, "expected input type Tensor, got float"),
    ("conv2d", {"weight": None}, TypeError, "expected weight type Tensor, got NoneType"),
    ("conv2d", {"input": torch.ones(1, 3, 5, 5, dtype=torch.int64)}, TypeError,
     "expected input dtype float64, float32, bfloat16 or float16, got int64"),
    ("conv2d", {"weight": torch.ones(4, 3, 3, 3, dtype=torch.float64)}, TypeError,
     "expected weight dtype float32, got float64"),
    ("conv2d", {"weight": torch.ones(4, 3, 3, 3, device="meta")}, ValueError,
     "expected weight device cpu to match input, got meta"),
    ("conv2d", {"bias": torch.ones(4, device="meta")}, ValueError, "expected bias device cpu to match input, got meta"),
    ("conv2d", {"input": torch.ones(5, 5)}, ValueError,
     "expected input dimensions 3 (C_in, ...) or 4 (N, C_in, ...), got shape (5, 5)"),
    ("conv2d", {"input": torch.ones(1, 2, 5, 5)}, ValueError,
     "expected input with 3 channels for weight (4, 3, 3, 3) and groups 1, got 2"),
    ("conv2d", {"bias": torch.ones(3)}, ValueError, "expected bias shape (4,), got (3,)"),
    ("conv2d", {"stride": 0}, ValueError, "expected stride an int of at least 1, or 2 such ints, got 0"),
    ("conv2d", {"padding": (1, 1, 1)}, ValueError,
     "expected padding an int of at least 0, or 2 such ints, got (1, 1, 1)"),
    ("conv2d", {"stride": 2.0}, TypeError, "expected stride an int of at least 1, or 2 such ints, got 2.0"),
    ("conv2d", {"padding": None}, TypeError, "expected padding an int of at least 0, or 2 such ints, got None"),
    ("conv2d", {"padding": True}, TypeError, "expected padding an int of at least 0, or 2 such ints, got True"),
    ("conv2d", {"groups": True}, TypeError, "expected groups an int of at least 1, got True"),
    ("conv2d", {"input": torch.ones(1, 3, 5, 5, dtype=torch.complex64)}, TypeError,
     "expected input dtype float64, float32, bfloat16 or float16, got complex64"),
    ("conv2d", {"padding": "full"}, ValueError, "expected padding one of valid, same, got 'full'"),
    ("conv2d", {"padding": "same", "stride": 2}, ValueError, "expected stride 1 for padding 'same', got (2, 2)"),
    ("conv2d", {"groups": 0}, ValueError, "expected groups an int of at least 1, got 0"),
    ("conv2d", {"input": torch.ones(1, 3, 2, 2)}, ValueError,
     "expected padded input at least as large as the kernel, got (2, 2) with padding (0, 0) for kernel (3, 3) "
     "with dilation (1, 1)"),
    ("conv_transpose2d", {"weight": torch.ones(3, 4, 3, 3), "output_padding": 1}, ValueError,
     "expected output_padding smaller than stride or dilation, got (1, 1) with stride (1, 1) and dilation (1, 1)"),
    ("conv_transpose2d", {"weight": torch.ones(3, 4, 3, 3), "padding": 4}, ValueError,
     "expected padding that leaves an output, got (4, 4), which leaves size (-1, -1)"),
    ("conv_transpose2d", {"weight": torch.ones(3, 4, 3, 3), "padding": "same"}, TypeError,
     "expected padding an int or 2 ints, got 'same'"),
    ("conv_transpose2d", {"weight": torch.ones(3, 4, 3, 3), "groups": 2}, ValueError,
     "expected weight size in dim 0 divisible by groups 2, got 3"),
]  # fmt: skip


@pytest.mark.parametrize("small", [-1, 8192])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("op", "change", "error", "message"), BAD_INPUTS, ids=[m[3][:60] for m in BAD_INPUTS])
def test_bad_input(
    op: str,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    backend: str,
    small: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gan_fast.backends, "SMALL", small)
    arguments = {"input": torch.ones(1, 3, 5, 5), "weight": torch.ones(4, 3, 3, 3)}
    with gan_fast.use_backend(backend), pytest.raises(error) as caught:
        getattr(ops, op)(**{**arguments, **change})
    assert str(caught.value) == f"{op}: {message}"
    # Code around a replaced torch function must catch the error as before.
    torch_error: Exception = caught.value
    try:
        getattr(F, op)(**{**arguments, **change})
    except (TypeError, ValueError, RuntimeError) as raised:
        torch_error = raised
    assert isinstance(caught.value, type(torch_error))


def test_accepts_fake_tensors() -> None:
    with torch._subclasses.FakeTensorMode():
        x, weight = torch.randn(32, 64, 32, 32, requires_grad=True), torch.randn(64, 3, 4, 4)
        output = ops.conv_transpose2d(x, weight, None, 2, 1)
        output.sum().backward()
    assert output.shape == (32, 3, 64, 64)
    assert x.grad.shape == x.shape


def _input_gradient_samples() -> list[tuple[tuple[int, ...], tuple[int, ...], conv_kernels.ConvGeometry]]:
    """Shapes of input and weight, and geometries with remainders, dilation, groups and output padding."""
    return [
        ((2, 4, 11), (6, 4, 4), conv_kernels.ConvGeometry((3,), (2,), (2,), False, (0,), 1)),
        ((2, 6, 9, 8), (4, 3, 3, 2), conv_kernels.ConvGeometry((2, 3), (1, 0), (1, 2), False, (0, 0), 2)),
        (
            (1, 3, 5, 4, 6),
            (2, 3, 2, 2, 3),
            conv_kernels.ConvGeometry((2, 1, 2), (0, 1, 1), (1, 1, 1), False, (0, 0, 0), 1),
        ),
        ((2, 4, 7), (4, 3, 5), conv_kernels.ConvGeometry((3,), (1,), (1,), True, (2,), 1)),
        ((2, 6, 5, 4), (6, 2, 4, 3), conv_kernels.ConvGeometry((2, 2), (1, 1), (1, 1), True, (1, 0), 3)),
    ]


@pytest.mark.parametrize(
    ("sample", "channels_last"),
    [
        (sample, last)
        for sample in _input_gradient_samples()
        for last in (False, True)
        if not (last and len(sample[0]) == 3)
    ],
    ids=str,
)
def test_input_gradient_without_the_input_equals_aten(sample: Any, channels_last: bool) -> None:
    """GPUs use this path; here it runs on the CPU, and must return the same memory format."""
    shape, weight_shape, geometry = sample
    memory_format = (
        {4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)] if channels_last else torch.contiguous_format
    )
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format)
    weight = torch.randn(weight_shape, dtype=torch.float64)
    output = torch.convolution(x, weight, None, *geometry)
    grad = torch.randn_like(output)
    have = conv_kernels._input_gradient_of_aten(grad, conv_kernels.Like.of(x), weight, geometry)
    want = torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, (True, False, False))[0]
    assert have is not None
    torch.testing.assert_close(have, want)
    assert have.stride() == want.stride()


def test_input_gradient_is_not_a_convolution_with_a_larger_result_than_the_input() -> None:
    geometry = conv_kernels.ConvGeometry((1,), (0,), (3,), True, (2,), 1)
    like = conv_kernels.Like(torch.Size((1, 2, 4)), (8, 4, 1))
    output = torch.convolution(torch.randn(like.shape), torch.randn(2, 2, 2), None, *geometry)
    assert conv_kernels._input_gradient_of_aten(output, like, torch.randn(2, 2, 2), geometry) is None


class Allocations(TorchDispatchMode):
    """Records the number of values in the storage of each newly allocated tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "empty" in func.__name__:
            self.values.append(result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.parametrize("sample", _input_gradient_samples(), ids=str)
@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, True, True), (True, False, True)]
)
def test_unread_tensors_need_no_memory_on_a_gpu(sample: Any, wanted: tuple[bool, ...]) -> None:
    """The meta device takes the same path as a GPU and allocates nothing."""
    shape, weight_shape, geometry = sample
    x, weight = torch.empty(shape, device="meta"), torch.empty(weight_shape, device="meta")
    grad = torch.empty_like(torch.convolution(x, weight, None, *geometry))
    known_x = x if wanted[1] else conv_kernels.Like.of(x)
    known_weight = weight if wanted[0] else conv_kernels.Like.of(weight)
    with Allocations() as seen:
        grads = conv_kernels.backward(grad, known_x, known_weight, geometry, wanted)
    assert all(count <= 1 for count in seen.values)
    bias = grad.shape[1:2]
    assert [None if g is None else g.shape for g in grads] == [
        like if computed else None for like, computed in zip((x.shape, weight.shape, bias), wanted)
    ]
