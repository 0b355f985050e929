"""Adversarial losses in Triton: one launch computes the loss, the means and the gradients.

A single program loops over all logits, in float64 and in an order that depends only on their number. There are hundreds
of logits, or some ten thousand for a patch discriminator. So few that a second launch, to merge the sums of several
programs, would cost more than the parallelism saves.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gan_fast.triton_kernels import launch

_BLOCK = 512
# Four float64 logits per thread: with more, or with more warps, some architectures spill.
_WARPS = 4


@triton.jit
def _load(pointer, i, count):
    return tl.load(pointer + i, mask=i < count, other=0.0).to(tl.float64)


@triton.jit
def _argument(x, paired_pointer, i, count, shift):
    """The argument of phi: x minus its paired logit, or minus an average."""
    if paired_pointer is not None:
        return x - _load(paired_pointer, i, count)
    return x - shift


@triton.jit
def _phi(u, target, KIND: tl.constexpr):
    """phi(u; target) of csrc/common/adversarial_loss.h, its derivative, and sigmoid(u) for minimax."""
    if KIND == "minimax":
        e = tl.exp(-tl.abs(u))
        # log1p is not needed: in float64 the error of log(1 + e) is below the resolution of the logits' dtype.
        softplus = tl.log(1 + e) + tl.where(u < 0, -u, 0.0)
        probability = tl.where(u < 0, e, 1.0) / (1 + e)
        return (1 - target) * u + softplus, probability - target, probability
    elif KIND == "hinge":
        below = 1 - u
        above = 1 + u
        # Skip a side with weight 0, since 0 times infinity is NaN.
        real = tl.where((below <= 0) | (target == 0), 0.0, target * below)
        fake = tl.where((above <= 0) | (target == 1), 0.0, (1 - target) * above)
        # As in ATen, the derivative at a kink is 0, and a NaN argument counts as inside the margin.
        slope = tl.where(above <= 0, 0.0, 1 - target) - tl.where(below <= 0, 0.0, target)
        return real + fake, slope.to(tl.float64), u
    elif KIND == "wasserstein":
        return (1 - 2 * target) * u, tl.zeros_like(u) + (1 - 2 * target), u
    else:
        return (u - target) * (u - target) / 2, u - target, u


@triton.jit
def _store_grads(grad_pointer, paired_grad_pointer, i, count, grad):
    if grad_pointer is not None:
        tl.store(grad_pointer + i, grad.to(tl.float32).to(grad_pointer.dtype.element_ty), mask=i < count)
    if paired_grad_pointer is not None:
        tl.store(
            paired_grad_pointer + i, (-grad).to(tl.float32).to(paired_grad_pointer.dtype.element_ty), mask=i < count
        )


@triton.jit
def _average(pointer, count, share, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        total += _load(pointer, first + tl.arange(0, BLOCK), count)
    return tl.sum(total) * share


@triton.jit
def _sums(
    pointer, paired_pointer, count, target, shift, threshold, grad_pointer, paired_grad_pointer, factor,
    KIND: tl.constexpr, ABOVE: tl.constexpr, PROBABILITY: tl.constexpr, MEANS: tl.constexpr, SLOPES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Store factor phi' and return the sums over one batch of: phi, phi', D's answers, the paired logits, and the
    number of logits on the correct side of the threshold.

    D's answer is sigmoid(x) for minimax and x otherwise.
    """
    losses = tl.zeros((BLOCK,), tl.float64)
    slopes = tl.zeros((BLOCK,), tl.float64)
    answers = tl.zeros((BLOCK,), tl.float64)
    other_answers = tl.zeros((BLOCK,), tl.float64)
    correct = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        x = _load(pointer, i, count)
        value, slope, probability = _phi(_argument(x, paired_pointer, i, count, shift), target, KIND)
        losses += tl.where(i < count, value, 0.0)
        if SLOPES:
            slopes += tl.where(i < count, slope, 0.0)
        _store_grads(grad_pointer, paired_grad_pointer, i, count, slope * factor)
        if MEANS:
            answers += tl.where(i < count, probability if PROBABILITY else x, 0.0)
            limit = threshold
            if paired_pointer is not None:
                limit = _load(paired_pointer, i, count)
                other_answers += limit
            if ABOVE:
                correct += tl.where((i < count) & (x > limit), 1.0, 0.0)
            else:
                correct += tl.where((i < count) & (x < limit), 1.0, 0.0)
    return tl.sum(losses), tl.sum(slopes), tl.sum(answers), tl.sum(other_answers), tl.sum(correct)


@triton.jit
def _grads(pointer, count, target, shift, grad_pointer, factor, offset, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """Store factor (phi' - offset)."""
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        _, slope, _ = _phi(_load(pointer, i, count) - shift, target, KIND)
        _store_grads(grad_pointer, None, i, count, (slope - offset) * factor)


@triton.jit
def forward_kernel(
    pointer, other_pointer, grad_loss_pointer, loss_pointer, means_pointer, grad_pointer, other_grad_pointer, count,
    other_count, target, other_target, scale, KIND: tl.constexpr, RELATIVISTIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss, the means, and the gradients, multiplied by the loss gradient if ``grad_loss_pointer`` is given."""
    MEANS: tl.constexpr = means_pointer is not None
    PROBABILITY: tl.constexpr = KIND == "minimax" and RELATIVISTIC == "none"
    factor = scale + tl.zeros((), tl.float64)
    # Infinite for an empty batch, so that its mean is NaN, as in ATen.
    share = (tl.zeros((), tl.float64) + 1.0) / count
    other_share = (tl.zeros((), tl.float64) + 1.0) / other_count
    threshold = tl.zeros((), tl.float64) + (0.5 if KIND == "least_squares" else 0.0)
    zero = tl.zeros((), tl.float64)
    if RELATIVISTIC == "average":
        SLOPES: tl.constexpr = grad_pointer is not None or other_grad_pointer is not None
        mean = _average(pointer, count, share, BLOCK)
        other_mean = _average(other_pointer, other_count, other_share, BLOCK)
        losses, slopes, _, _, correct = _sums(
            pointer, None, count, target, other_mean, other_mean, None, None, zero, KIND, True, False, MEANS, SLOPES,
            BLOCK,
        )  # fmt: skip
        loss = losses * share
        losses, other_slopes, _, _, other_correct = _sums(
            other_pointer, None, other_count, other_target, mean, mean, None, None, zero, KIND, False, False, MEANS,
            SLOPES, BLOCK,
        )  # fmt: skip
        loss += losses * other_share
        accuracy = (correct + other_correct) / (count + other_count)
        if grad_loss_pointer is not None:
            factor *= tl.load(grad_loss_pointer).to(tl.float64)
        # Each batch also gets a gradient through its average, from phi' of the other batch. So all sums come first. An
        # empty other batch contributes nothing.
        if grad_pointer is not None:
            offset = tl.where(other_count > 0, other_slopes * other_share, 0.0)
            _grads(pointer, count, target, other_mean, grad_pointer, factor * share, offset, KIND, BLOCK)
        if other_grad_pointer is not None:
            offset = tl.where(count > 0, slopes * share, 0.0)
            _grads(
                other_pointer, other_count, other_target, mean, other_grad_pointer, factor * other_share, offset, KIND,
                BLOCK,
            )  # fmt: skip
    elif RELATIVISTIC == "paired":
        losses, _, answers, other_answers, correct = _sums(
            pointer, other_pointer, count, target, zero, zero, grad_pointer, other_grad_pointer, factor * share, KIND,
            True, False, MEANS, False, BLOCK,
        )  # fmt: skip
        loss, mean, other_mean, accuracy = losses * share, answers * share, other_answers * share, correct * share
    else:
        if MEANS and KIND == "wasserstein" and other_pointer is not None:
            threshold = (
                _average(pointer, count, share, BLOCK) + _average(other_pointer, other_count, other_share, BLOCK)
            ) / 2
        losses, _, answers, _, correct = _sums(
            pointer, None, count, target, zero, threshold, grad_pointer, None, factor * share, KIND, True, PROBABILITY,
            MEANS, False, BLOCK,
        )  # fmt: skip
        loss, mean, other_mean, accuracy = losses * share, answers * share, zero, zero
        if other_pointer is not None:
            losses, _, answers, _, other_correct = _sums(
                other_pointer, None, other_count, other_target, zero, threshold, other_grad_pointer, None,
                factor * other_share, KIND, False, PROBABILITY, MEANS, False, BLOCK,
            )  # fmt: skip
            loss += losses * other_share
            other_mean = answers * other_share
            accuracy = (correct + other_correct) / (count + other_count)
    if loss_pointer is not None:
        tl.store(loss_pointer, (loss * scale).to(tl.float32).to(loss_pointer.dtype.element_ty))
    if means_pointer is not None:
        dtype = means_pointer.dtype.element_ty
        tl.store(means_pointer, mean.to(tl.float32).to(dtype))
        if other_pointer is not None:
            tl.store(means_pointer + 1, other_mean.to(tl.float32).to(dtype))
            tl.store(means_pointer + 2, accuracy.to(tl.float32).to(dtype))


@triton.jit
def backward_kernel(
    pointer, paired_pointer, grad_loss_pointer, grad_pointer, paired_grad_pointer, count, target, scale,
    KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_loss scale / count phi', for the relations "none" and "paired"."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    _, slope, _ = _phi(_argument(_load(pointer, i, count), paired_pointer, i, count, 0.0), target, KIND)
    grad = tl.load(grad_loss_pointer).to(tl.float64) * scale / count * slope
    _store_grads(grad_pointer, paired_grad_pointer, i, count, grad)


def _in_strides_of(logits: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """Return a contiguous gradient with the strides of the logits."""
    if logits is None or grad is None or logits.is_contiguous():
        return grad
    return torch.empty_like(logits).copy_(grad)


def _launch_forward(
    logits: Tensor,
    target: float,
    other_logits: Tensor | None,
    other_target: float,
    scale: float,
    kind: str,
    relativistic: str,
    wanted: tuple[bool, bool],
    grad_loss: Tensor | None = None,
    loss: Tensor | None = None,
    means: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Launch forward_kernel and return the gradients that are ``wanted``."""
    x = logits.contiguous()
    other = None if other_logits is None else other_logits.contiguous()
    grad = torch.empty_like(x) if wanted[0] else None
    other_grad = torch.empty_like(other) if wanted[1] and other is not None else None
    with launch.on_device_of(logits):
        forward_kernel[(1,)](
            x, other, grad_loss, loss, means, grad, other_grad, x.numel(), 0 if other is None else other.numel(),
            target, other_target, scale, kind, relativistic, _BLOCK, num_warps=_WARPS,
        )  # fmt: skip
    # Paired logits have the same memory order.
    other_like = logits if relativistic == "paired" else other_logits
    return _in_strides_of(logits, grad), _in_strides_of(other_like, other_grad)


@launch.readable_arguments
def forward(
    logits: Tensor,
    target: float,
    other_logits: Tensor | None,
    other_target: float,
    scale: float,
    kind: str,
    relativistic: str,
    means_wanted: bool,
    grad_wanted: bool,
    other_grad_wanted: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """torch.ops.gan_fast.adversarial_loss_forward."""
    loss = logits.new_empty(())
    means = logits.new_empty(1 if other_logits is None else 3) if means_wanted else None
    wanted = (grad_wanted, other_grad_wanted)
    arguments = (logits, target, other_logits, other_target, scale, kind, relativistic)
    return loss, means, *_launch_forward(*arguments, wanted, loss=loss, means=means)


@launch.readable_arguments
def backward(
    grad_loss: Tensor,
    logits: Tensor,
    target: float,
    other_logits: Tensor | None,
    other_target: float,
    scale: float,
    kind: str,
    relativistic: str,
) -> tuple[Tensor | None, Tensor | None]:
    """torch.ops.gan_fast.adversarial_loss_backward."""
    if relativistic == "average":
        return _launch_forward(
            logits, target, other_logits, other_target, scale, kind, relativistic, (True, True), grad_loss=grad_loss
        )

    def one_batch(values: Tensor, paired_logits: Tensor | None, target: float) -> tuple[Tensor | None, Tensor | None]:
        x = values.contiguous()
        paired = None if paired_logits is None else paired_logits.contiguous()
        grad = torch.empty_like(x)
        paired_grad = None if paired is None else torch.empty_like(paired)
        if x.numel():
            grid = (triton.cdiv(x.numel(), _BLOCK),)
            backward_kernel[grid](
                x, paired, grad_loss, grad, paired_grad, x.numel(), target, scale, kind, _BLOCK
            )  # fmt: skip
        return _in_strides_of(values, grad), _in_strides_of(values, paired_grad)

    with launch.on_device_of(logits):
        if relativistic == "paired":
            return one_batch(logits, other_logits, target)
        grad = one_batch(logits, None, target)[0]
        return grad, None if other_logits is None else one_batch(other_logits, None, other_target)[0]
