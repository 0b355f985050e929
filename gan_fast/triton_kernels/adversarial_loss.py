"""The minimax losses in Triton: one launch gives the loss, the mean probabilities and the gradients.

One program walks over all logits, in float64 and in an order that their number alone decides: losses have hundreds of
logits, a patch discriminator's some ten thousand, and a second launch would cost more than a wider first one saves.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gan_fast.triton_kernels import launch

_BLOCK = 512
# Four logits in float64 for each thread: with more, or more warps, some architecture spills.
_WARPS = 4


@triton.jit
def _one_side(pointer, grad_pointer, count, target, scale, BLOCK: tl.constexpr):
    """Sums of bce(x, target) and sigmoid(x) over one batch of logits, and scale / count (sigmoid(x) - target)."""
    losses = tl.zeros((BLOCK,), tl.float64)
    probabilities = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        x = tl.load(pointer + i, mask=i < count, other=0.0).to(tl.float64)
        e = tl.exp(-tl.abs(x))
        # In float64, what log(1 + e) loses for a small e is below what any logit's dtype can show.
        softplus = tl.log(1 + e) + tl.where(x < 0, -x, 0.0)
        probability = tl.where(x < 0, e, 1.0) / (1 + e)
        losses += tl.where(i < count, (1 - target) * x + softplus, 0.0)
        probabilities += tl.where(i < count, probability, 0.0)
        if grad_pointer is not None:
            grad = (probability - target) * scale / count
            tl.store(grad_pointer + i, grad.to(tl.float32).to(grad_pointer.dtype.element_ty), mask=i < count)
    return tl.sum(losses) / count, tl.sum(probabilities) / count


@triton.jit
def forward_kernel(
    pointer, other_pointer, loss_pointer, means_pointer, grad_pointer, other_grad_pointer, count, other_count,
    target, other_target, scale, BLOCK: tl.constexpr,
):  # fmt: skip
    """scale (mean bce(logits, target) + mean bce(other, other_target)), mean probabilities, gradients."""
    kind = loss_pointer.dtype.element_ty
    loss, mean = _one_side(pointer, grad_pointer, count, target, scale, BLOCK)
    if means_pointer is not None:
        tl.store(means_pointer, mean.to(tl.float32).to(kind))
    if other_pointer is not None:
        other_loss, other_mean = _one_side(other_pointer, other_grad_pointer, other_count, other_target, scale, BLOCK)
        loss += other_loss
        if means_pointer is not None:
            tl.store(means_pointer + 1, other_mean.to(tl.float32).to(kind))
    tl.store(loss_pointer, (loss * scale).to(tl.float32).to(kind))


@triton.jit
def backward_kernel(pointer, grad_loss_pointer, grad_pointer, count, target, scale, BLOCK: tl.constexpr):
    """grad_loss scale / count (sigmoid(x) - target)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(pointer + i, mask=i < count, other=0.0).to(tl.float64)
    e = tl.exp(-tl.abs(x))
    probability = tl.where(x < 0, e, 1.0) / (1 + e)
    grad = tl.load(grad_loss_pointer).to(tl.float64) * scale / count * (probability - target)
    tl.store(grad_pointer + i, grad.to(tl.float32).to(grad_pointer.dtype.element_ty), mask=i < count)


def _like(logits: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """A gradient of contiguous values in the strides that one has."""
    if logits is None or grad is None or logits.is_contiguous():
        return grad
    return torch.empty_like(logits).copy_(grad)


@launch.of_values
def forward(
    logits: Tensor,
    target: float,
    other_logits: Tensor | None,
    other_target: float,
    scale: float,
    means_wanted: bool,
    grad_wanted: bool,
    other_grad_wanted: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """torch.ops.gan_fast.minimax_loss_forward."""
    loss = logits.new_empty(())
    means = logits.new_empty(1 if other_logits is None else 2) if means_wanted else None
    x = logits.contiguous()
    other = None if other_logits is None else other_logits.contiguous()
    grad = torch.empty_like(x) if grad_wanted else None
    other_grad = torch.empty_like(other) if other_grad_wanted and other is not None else None
    with launch.on(logits):
        forward_kernel[(1,)](
            x, other, loss, means, grad, other_grad, x.numel(), 0 if other is None else other.numel(),
            target, other_target, scale, _BLOCK, num_warps=_WARPS,
        )  # fmt: skip
    return loss, means, _like(logits, grad), _like(other_logits, other_grad)


@launch.of_values
def backward(
    grad_loss: Tensor, logits: Tensor, target: float, other_logits: Tensor | None, other_target: float, scale: float
) -> tuple[Tensor, Tensor | None]:
    """torch.ops.gan_fast.minimax_loss_backward."""

    def one_side(values: Tensor, target: float) -> Tensor:
        x = values.contiguous()
        grad = torch.empty_like(x)
        if x.numel():
            grid = (triton.cdiv(x.numel(), _BLOCK),)
            backward_kernel[grid](x, grad_loss, grad, x.numel(), target, scale, _BLOCK)
        result = _like(values, grad)
        assert result is not None
        return result

    with launch.on(logits):
        return one_side(logits, target), None if other_logits is None else one_side(other_logits, other_target)
