"""Providers of a network or block: PyTorch as people write it, PyTorch tuned by hand, torch.compile, gan_fast."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.harness import COMPILED, EAGER, GAN_FAST, TUNED, Work, compiled, forward_backward

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

Forward = Callable[[Tensor], Tensor]
# Makes the work of a case from a forward function, the module that holds its parameters, and a memory format.
MakeWork = Callable[[Forward, nn.Module, torch.memory_format], Work]


def in_layouts(make: Callable[[torch.memory_format], Work]) -> dict[str, Work]:
    return {name: make(layout) for name, layout in LAYOUTS.items()}


def with_weights(model: nn.Module, source: nn.Module, device: torch.device) -> nn.Module:
    """Copy parameters in order: the same network has other parameter names in another library."""
    for parameter, value in zip(model.parameters(), source.parameters(), strict=True):
        parameter.data.copy_(value.data)
    return model.to(device)


def in_layout(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    return tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor


def training_work(input: Tensor, grad: Tensor, dtype: torch.dtype | None = None, input_grad: bool = False) -> MakeWork:
    """Return what makes forward and backward passes; results are the output and numbered gradients.

    Args:
        input: of the network.
        grad: gradient of the output.
        dtype: runs the forward pass under autocast to it; None runs it without autocast.
        input_grad: whether the input's gradient is computed, as it is for a block inside a network.
    """

    def make(forward: Forward, model: nn.Module, layout: torch.memory_format) -> Work:
        x = in_layout(input, layout)
        if input_grad:
            x = x.clone(memory_format=torch.preserve_format).requires_grad_()
        leaves = [x] * input_grad + [*model.parameters()]

        def run() -> Tensor:
            with torch.autocast(x.device.type, dtype) if dtype else contextlib.nullcontext():
                output = forward(x)
            return output.to(grad.dtype)

        return forward_backward(run, {str(i): leaf for i, leaf in enumerate(leaves)}, in_layout(grad, layout))

    return make


def sampling_work(input: Tensor) -> MakeWork:
    """Return what makes forward passes in evaluation mode without gradients."""

    def make(forward: Forward, model: nn.Module, layout: torch.memory_format) -> Work:
        model.eval()
        x = in_layout(input, layout)

        def run() -> dict[str, Tensor]:
            with torch.no_grad():
                return {"output": forward(x)}

        return run

    return make


def eager_providers(
    build_eager: Callable[[bool], nn.Sequential],
    source: nn.Module,
    make_work: MakeWork,
    device: torch.device,
    layouts: Mapping[str, torch.memory_format] = LAYOUTS,
) -> dict[str, Work]:
    """Return the ways people write a network: contiguous or channels-last, activations in place or not."""
    works = {}
    for name, layout in layouts.items():
        for inplace in (True, False):
            model = with_weights(build_eager(inplace), source, device).to(memory_format=layout)
            works[f"{name}, in place" if inplace else name] = make_work(model, model, layout)
    return works


def network_providers(
    build_eager: Callable[[bool], nn.Sequential],
    build_gan_fast: Callable[[], nn.Module],
    make_work: MakeWork,
    device: torch.device,
    tune: Callable[[nn.Sequential], Forward] | None = None,
    layouts: Mapping[str, torch.memory_format] = LAYOUTS,
) -> dict[str, Work | Mapping[str, Work]]:
    """Return the four providers of a network, all with the same weights.

    - eager: modules of torch.nn; variants: contiguous or channels-last, activations in place or not.
    - eager, tuned by hand: activations in place, after ``tune`` (default: :func:`without_modules`); both layouts.
    - torch.compile: channels-last, which inductor chooses for convolutions on a CPU anyway.
    - gan_fast; variants: contiguous or channels-last.

    Args:
        build_eager: makes the network; the argument says whether activations work in place.
        build_gan_fast: makes the same network from gan_fast.
        make_work: see ``MakeWork``.
        layouts: the allowed memory formats; the last one is used for the compiled network.
    """
    last = [*layouts.values()][-1]
    source = build_gan_fast()

    def place(model: nn.Module, layout: torch.memory_format) -> nn.Module:
        return with_weights(model, source, device).to(memory_format=layout)

    def gan_fast(layout: torch.memory_format) -> Work:
        model = place(build_gan_fast(), layout)
        return make_work(model, model, layout)

    def tuned(layout: torch.memory_format) -> Work:
        model = place(build_eager(True), layout)
        return make_work((tune or without_modules)(model), model, layout)

    to_compile = place(build_eager(False), last)
    return {
        EAGER: eager_providers(build_eager, source, make_work, device, layouts),
        TUNED: {name: tuned(layout) for name, layout in layouts.items()},
        COMPILED: make_work(compiled(to_compile), to_compile, last),
        GAN_FAST: {name: gan_fast(layout) for name, layout in layouts.items()},
    }


def without_modules(model: nn.Sequential) -> Forward:
    """Return a function that calls ATen on the model's tensors: no module calls, activations in place.

    Batch norm does not count its batches: with a fixed momentum nothing reads the count.
    """
    calls = [_as_function(layer) for layer in model]

    def forward(x: Tensor) -> Tensor:
        for call in calls:
            x = call(x)
        return x

    return forward


def _as_function(layer: nn.Module) -> Forward:
    if isinstance(layer, nn.ConvTranspose2d):
        return lambda x: torch.conv_transpose2d(
            x, layer.weight, layer.bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        )
    if isinstance(layer, nn.Conv2d):
        return lambda x: torch.conv2d(
            x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )
    if isinstance(layer, nn.BatchNorm2d):
        return lambda x: torch.batch_norm(
            x, layer.weight, layer.bias, layer.running_mean, layer.running_var, layer.training, layer.momentum,
            layer.eps, False,
        )  # fmt: skip
    if isinstance(layer, nn.InstanceNorm2d):
        return lambda x: torch.instance_norm(x, layer.weight, layer.bias, None, None, True, 0.0, layer.eps, False)
    if isinstance(layer, nn.LeakyReLU):
        return lambda x: F.leaky_relu_(x, layer.negative_slope)
    if isinstance(layer, nn.ReLU):
        return torch.relu_
    if isinstance(layer, nn.Tanh):
        return torch.tanh_
    return layer


def folded(model: nn.Sequential) -> Forward:
    """Return the model for evaluation: batch norm folded into the convolution before it, no module calls."""
    layers: list[nn.Module] = []
    for layer in model.eval():
        if isinstance(layer, nn.BatchNorm2d):
            convolution = layers.pop()
            transposed = isinstance(convolution, nn.ConvTranspose2d)
            layer = fuse_conv_bn_eval(convolution, layer, transposed)
        layers.append(layer)
    return without_modules(nn.Sequential(*layers))


def in_place_in_sequentials(model: nn.Module) -> nn.Module:
    """Let activations that directly follow a convolution or a norm in a Sequential work in place.

    Neither needs its output for backward. Other activations are left as written: their input may be used elsewhere.
    """
    for sequential in (m for m in model.modules() if isinstance(m, nn.Sequential)):
        layers = list(sequential)
        for before, layer in itertools.pairwise(layers):
            if hasattr(layer, "inplace") and isinstance(before, _OVERWRITABLE):
                layer.inplace = True
    return model


_OVERWRITABLE = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.Linear
)  # fmt: skip


def channels_last(value: Any) -> Any:
    """Convert tensors and the parameters of modules, 4-d and 5-d, to channels-last; return anything else as it is."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if isinstance(value, nn.Module):
        for parameter in value.parameters():
            parameter.data = channels_last(parameter.data)
    elif isinstance(value, Tensor) and value.dim() in formats:
        return value.contiguous(memory_format=formats[value.dim()])
    return value
