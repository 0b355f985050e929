"""Triton kernels with negative views, batched gradients, other number types and tensor subclasses."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor
from triton_device import DEVICE, interpreted

import gan_fast
from gan_fast import ops

pytestmark = interpreted

OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "batch_norm_act": lambda x: ops.batch_norm_act(x, None, None, training=True, activation="tanh"),
    "conv2d": lambda x: ops.conv2d(x, torch.linspace(-1, 1, 3 * 4 * 9, device=x.device).view(3, 4, 3, 3)),
    "conv_transpose2d_act": lambda x: ops.conv_transpose2d_act(
        x, torch.linspace(-1, 1, 3 * 4 * 9, device=x.device).view(4, 3, 3, 3), activation="tanh"
    ),
    "leaky_relu": lambda x: ops.leaky_relu(x, 0.2),
    "minibatch_discrimination": lambda x: ops.minibatch_discrimination(
        x.flatten(1), torch.linspace(-0.1, 0.1, 100 * 2 * 3, device=x.device).view(100, 2, 3)
    ),
    "minimax_g_loss": lambda x: ops.minimax_g_loss(x),
    "sample_norm_penalty": lambda x: ops.sample_norm_penalty(x, center=1.0)[0],
}


@pytest.mark.parametrize("op", OPS)
def test_negative_views_equal_the_reference(op: str) -> None:
    x = torch.randn(2, 4, 5, 5, device=DEVICE)
    results = []
    for backend in ("reference", "triton"):
        with gan_fast.use_backend(backend):
            negated = torch._neg_view(x.clone()).requires_grad_()
            output = OPS[op](negated)
            grad = torch._neg_view(torch.linspace(-1, 1, output.numel(), device=DEVICE).view(output.shape))
            results.append([output, *torch.autograd.grad(output, negated, grad)])
    for expected, actual in zip(*results):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", OPS)
def test_batched_gradients_equal_the_reference(op: str) -> None:
    x = torch.randn(2, 4, 5, 5, device=DEVICE, requires_grad=True)
    results = []
    for backend in ("reference", "triton"):
        with gan_fast.use_backend(backend):
            output = OPS[op](x)
        grads = torch.linspace(-1, 1, 3 * output.numel(), device=DEVICE).view(3, *output.shape)
        results.append(torch.autograd.grad(output, x, grads, is_grads_batched=True)[0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


def test_options_may_be_numpy_numbers_or_fractions() -> None:
    x = torch.randn(2, 4, 5, 5, device=DEVICE)
    expected = ops.batch_norm_act(x, None, None, training=True, eps=1e-5, negative_slope=0.25)
    with gan_fast.use_backend("triton"):
        actual = ops.batch_norm_act(x, None, None, training=True, eps=np.float32(1e-5), negative_slope=Fraction(1, 4))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_tensor_subclass_raises_if_triton_is_requested() -> None:
    class Named(Tensor):
        pass

    x = torch.randn(2, 4, 5, 5, device=DEVICE).as_subclass(Named)
    for op in ("batch_norm_act", "conv2d", "leaky_relu"):
        OPS[op](x)
        raises = pytest.raises(RuntimeError, match="expected input type Tensor for backend triton, got Named")
        with gan_fast.use_backend("triton"), raises:
            OPS[op](x)
