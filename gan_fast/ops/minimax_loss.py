"""The losses of the minimax game: binary cross entropy with logits over real and fake batches, in one kernel."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import autograd, checks

D_LOSS, G_LOSS = "minimax_d_loss", "minimax_g_loss"
backends.register(D_LOSS, "minimax_loss_forward", triton_file="minimax_loss")
backends.register(G_LOSS, "minimax_loss_forward", triton_file="minimax_loss")

_native = SimpleNamespace(
    forward=autograd.kernel("minimax_loss_forward"), backward=autograd.kernel("minimax_loss_backward")
)
_forward_on_cpu = autograd.on_cpu("minimax_loss_forward")


def _kernels(logits: Tensor) -> Any:
    """What serves: functions of the native ops' names and signatures."""
    return backends.triton_kernels(D_LOSS, logits) or _native


def reference(
    logits: Tensor, target: float, other_logits: Tensor | None, other_target: float, scale: float
) -> tuple[Tensor, Tensor]:
    """The same on plain ATen: scale * (mean BCE(logits, target) + mean BCE(other_logits, other_target)), and means."""
    loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
    probabilities = [torch.sigmoid(logits.detach()).mean()]
    if other_logits is not None:
        loss = loss + F.binary_cross_entropy_with_logits(other_logits, torch.full_like(other_logits, other_target))
        probabilities.append(torch.sigmoid(other_logits.detach()).mean())
    return loss if scale == 1 else loss * scale, torch.stack(probabilities)


class _LossNode(torch.autograd.Function):
    """What the two nodes below share: they differ in what they return."""

    @staticmethod
    def save(ctx: Any, logits: Tensor, target: float, other_logits: Tensor | None, *options: float) -> None:
        wanted, _, other_wanted, *_ = ctx.needs_input_grad
        ctx.save_for_backward(logits if wanted else None, other_logits if other_wanted else None)
        ctx.options = (target, *options)
        ctx.unit_grads = None
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        count = len(ctx.needs_input_grad)
        if grad_loss is None:
            return (None,) * count
        logits, other_logits = ctx.saved_tensors  # even where unread: torch objects to changed logits and a freed graph
        # Handed out once: whoever receives them may write to them.
        unit_grads, ctx.unit_grads = ctx.unit_grads, None
        if (
            unit_grads is not None
            and not torch.is_grad_enabled()
            and autograd.plain(grad_loss)
            and grad_loss.item() == 1
        ):
            grad, other_grad = unit_grads
        else:
            target, other_target, scale = ctx.options
            # A node of its own only where somebody will differentiate again.
            recording = autograd.recording("minimax_loss_backward", grad_loss)
            first = (logits, target, other_logits, other_target)
            arguments = (grad_loss, *(first if logits is not None else (other_logits, other_target, None, 0.0)), scale)
            if recording:
                grad, other_grad = MinimaxLossBackward.apply(*arguments, ctx.kernels)
            else:
                # The dispatcher takes a batch of gradients apart.
                batched = torch._C._functorch.is_legacy_batchedtensor(grad_loss)
                grad, other_grad = (_native if batched else ctx.kernels).backward(*arguments)
            if logits is None:
                grad, other_grad = other_grad, grad
        return grad, None, other_grad, *(None,) * (count - 3)


class DispatchedMinimaxLoss(_LossNode):
    """All outputs of torch.ops.gan_fast.minimax_loss_forward; loss alone has a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: float,
        other_logits: Tensor | None,
        other_target: float,
        scale: float,
        *wanted: bool,
    ) -> tuple[Tensor | None, ...]:
        _LossNode.save(ctx, logits, target, other_logits, other_target, scale)
        ctx.kernels = _kernels(logits)
        loss, *others = ctx.kernels.forward(logits, target, other_logits, other_target, scale, *wanted)
        ctx.mark_non_differentiable(*(t for t in others if t is not None))
        return loss, *others


class MinimaxLoss(_LossNode):
    """loss and mean_probabilities of plain CPU tensors.

    The forward kernel has the exponentials at hand, so it writes the gradients for a loss gradient of one too: what
    ``loss.backward()`` starts from, and then has nothing left to compute. Any other goes through the backward kernel.
    Reading which it is costs nothing on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: float,
        other_logits: Tensor | None,
        other_target: float,
        scale: float,
        means_wanted: bool,
    ) -> tuple[Tensor, Tensor | None]:
        _LossNode.save(ctx, logits, target, other_logits, other_target, scale)
        ctx.kernels = _native
        wanted, _, other_wanted, *_ = ctx.needs_input_grad
        loss, means, *grads = _forward_on_cpu(
            logits, target, other_logits, other_target, scale, means_wanted, wanted, other_wanted
        )
        if wanted or other_wanted:
            ctx.unit_grads = grads
        if means is not None:
            ctx.mark_non_differentiable(means)
        return loss, means


_apply = autograd.eager(MinimaxLoss)


class MinimaxLossBackward(torch.autograd.Function):
    """grad_logits, grad_other_logits of torch.ops.gan_fast.minimax_loss_backward.

    grad_logits = grad_loss * scale / count * (sigmoid(logits) - target).
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad_loss: Tensor,
        logits: Tensor,
        target: float,
        other_logits: Tensor | None,
        other_target: float,
        scale: float,
        kernels: Any = None,
    ) -> tuple[Tensor, Tensor | None]:
        arguments = (grad_loss, logits, target, other_logits, other_target, scale)
        grads: tuple[Tensor, Tensor | None] = (kernels or _kernels(logits)).backward(*arguments)
        ctx.save_for_backward(grad_loss, logits, other_logits)
        ctx.options = (target, other_target, scale)
        ctx.set_materialize_grads(False)
        return grads

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None, other_cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
        # Written in differentiable ATen: a handful of logits, and any order of derivative. In float64, since a chain of
        # roundings in the logits' own dtype would be less exact than eager's.
        grad_loss, logits, other_logits = ctx.saved_tensors
        target, other_target, scale = ctx.options
        by_grad_loss: Tensor | None = None
        by_logits: list[Tensor | None] = [None, None]
        pairs = ((cotangent, logits, target), (other_cotangent, other_logits, other_target))
        for index, (v, x, t) in enumerate(pairs):
            if v is None or x is None:
                continue
            probability = torch.sigmoid(x.double())
            weighted = v.double() * (scale / max(x.numel(), 1))
            if ctx.needs_input_grad[0]:
                term = (weighted * (probability - t)).sum()
                by_grad_loss = term if by_grad_loss is None else by_grad_loss + term
            if ctx.needs_input_grad[1 if index == 0 else 3]:
                by_logits[index] = (grad_loss.double() * weighted * probability * (1 - probability)).to(x.dtype)
        if by_grad_loss is not None:
            by_grad_loss = by_grad_loss.to(grad_loss.dtype).reshape(grad_loss.shape)
        return by_grad_loss, by_logits[0], None, by_logits[1], *(None,) * 3


def _forward_fake(
    logits: Tensor, target: float, other_logits: Tensor | None, other_target: float, scale: float,
    means_wanted: bool, grad_wanted: bool, other_grad_wanted: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    return (
        logits.new_empty(()),
        logits.new_empty(1 if other_logits is None else 2) if means_wanted else None,
        torch.empty_like(logits) if grad_wanted else None,
        torch.empty_like(other_logits) if other_grad_wanted and other_logits is not None else None,
    )


def _backward_fake(
    grad_loss: Tensor, logits: Tensor, target: float, other_logits: Tensor | None, other_target: float, scale: float
) -> tuple[Tensor, Tensor | None]:
    return torch.empty_like(logits), None if other_logits is None else torch.empty_like(other_logits)


for _name in ("forward", "backward"):
    autograd.register_triton(f"minimax_loss_{_name}", "minimax_loss", _name)
autograd.register("minimax_loss_forward", DispatchedMinimaxLoss.apply, _forward_fake)
autograd.register("minimax_loss_backward", MinimaxLossBackward.apply, _backward_fake)


def _loss(
    op: str,
    logits: Tensor,
    target: float,
    other_logits: Tensor | None,
    other_target: float,
    scale: float,
    means_wanted: bool = False,
) -> tuple[Tensor, Tensor]:
    """The loss and the mean probabilities, those only where they are wanted, from what serves the op here."""
    # The kernel checks tensors too, and for some hundred logits `_check` would take as long as it does. What it refuses
    # goes the general way, which serves it or names the fault.
    if (
        not torch.compiler.is_compiling()
        and autograd.plain(logits, other_logits)
        and (op == G_LOSS or other_logits is not None)
        and isinstance(target, (int, float))
        and isinstance(other_target, (int, float))
        and not torch.is_autocast_enabled("cpu")
        and backends.native(op, "cpu", logits.dtype)
        and backends.triton_kernels(op, logits) is None
    ):
        try:
            return _apply(logits, target, other_logits, other_target, scale, means_wanted)
        except RuntimeError as refusal:
            if "minimax_loss_forward: expected" not in str(refusal):
                raise
            backends.logger.debug("%s: the general way, because %s", op, refusal)
    _check(op, logits, target, other_logits, other_target)
    device = logits.device.type
    if autograd.is_autocast_enabled(device):
        # As autocast's own policy for this loss: in float32, whatever the logits come in.
        logits = logits.float() if logits.dtype != torch.float64 else logits
        if other_logits is not None and other_logits.dtype != torch.float64:
            other_logits = other_logits.float()
    arguments = (logits, other_logits, target, other_target, scale, means_wanted)

    def shape_class() -> tuple[str, ...]:
        sizes = [f"2^{t.numel().bit_length()}" for t in (logits, other_logits) if t is not None]
        return (checks.name_of(logits.dtype), *sizes, "logits", "and means" if means_wanted else "")

    return backends.serve(op, functools.partial(_serve, op), arguments, shape_class)


def _serve(
    op: str, logits: Tensor, other_logits: Tensor | None, target: float, other_target: float, scale: float,
    means_wanted: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if not backends.native(op, logits.device.type, logits.dtype):
        return reference(logits, target, other_logits, other_target, scale)
    forward = torch.ops.gan_fast.minimax_loss_forward
    return forward(logits, target, other_logits, other_target, scale, means_wanted, False, False)[:2]


def _check(op: str, logits: Tensor, target: float, other_logits: Tensor | None, other_target: float) -> None:
    """What minimax_d_loss and minimax_g_loss check, in the words of their arguments."""
    if op == G_LOSS:
        checks.floating(op, "fake_logits", logits)
        return
    checks.floating(op, "real_logits", logits)
    fake_logits = checks.floating(op, "fake_logits", other_logits)
    checks.same_device(op, "fake_logits", fake_logits, "real_logits", logits)
    if fake_logits.dtype != logits.dtype:
        have, want = checks.name_of(fake_logits.dtype), checks.name_of(logits.dtype)
        raise TypeError(f"{op}: expected fake_logits dtype {want} as real_logits, got {have}")
    checks.in_range(op, "real_target", target, 0, 1)
    checks.in_range(op, "fake_target", other_target, 0, 1)


def minimax_d_loss(
    real_logits: Tensor, fake_logits: Tensor, *, real_target: float = 1.0, fake_target: float = 0.0
) -> Tensor:
    """Return the discriminator's loss of the minimax game, -V(D, G) at targets 1 and 0.

    loss = mean(bce(real_logits, real_target)) + mean(bce(fake_logits, fake_target)),
    bce(x, t) = (1 - t) * x + log(1 + exp(-x)), binary cross entropy with logits.

    Args:
        real_logits: D's logits for real samples, any shape, float64, float32, bfloat16 or float16.
        fake_logits: D's logits for generated samples, any shape, same dtype and device.
        real_target: label of real samples, in [0, 1]; below 1 is one-sided label smoothing.
        fake_target: label of fake samples, in [0, 1].

    Returns:
        Scalar tensor of the logits' dtype; float32 under autocast, as for torch's own loss.

    Raises:
        TypeError: wrong type or dtype, or two dtypes.
        ValueError: target outside [0, 1], or two devices.

    Notes:
        Derivatives: first by a native kernel, higher ones of any order through ATen.
        Accumulation: float64; deterministic for any number of threads and any CPU instruction set.
        No logits: NaN, a mean over nothing, as in torch.
        Backends: native CPU kernel; on a GPU the quickest of CUDA C++ (where it was built), Triton's (not for float64)
            and ATen's; the reference elsewhere and under functorch transforms.

    Source: Goodfellow et al., Generative Adversarial Nets, 2014 (arXiv 1406.2661), equation 1.
    """
    return _loss(D_LOSS, real_logits, real_target, fake_logits, fake_target, 1.0)[0]


def minimax_d_loss_and_means(
    real_logits: Tensor, fake_logits: Tensor, *, real_target: float = 1.0, fake_target: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return :func:`minimax_d_loss` and, from the same kernel, (mean D(x), mean D(G(z))) without gradient."""
    return _loss(D_LOSS, real_logits, real_target, fake_logits, fake_target, 1.0, means_wanted=True)


def minimax_g_loss(fake_logits: Tensor, *, saturating: bool = False) -> Tensor:
    """Return the generator's loss of the minimax game.

    non-saturating (default): mean(-log(sigmoid(fake_logits))); saturating: mean(log(1 - sigmoid(fake_logits))), the
    minimax game's own, whose gradient vanishes where D is sure.

    Args:
        fake_logits: D's logits for generated samples, any shape, float64, float32, bfloat16 or float16.
        saturating: which of the two.

    Returns:
        Scalar tensor of the logits' dtype; float32 under autocast.

    Raises:
        TypeError: wrong type or dtype.

    Notes:
        As :func:`minimax_d_loss`.

    Source: Goodfellow et al., Generative Adversarial Nets, 2014 (arXiv 1406.2661), section 3.
    """
    # log(1 - sigmoid(x)) = -bce(x, 0); -log(sigmoid(x)) = bce(x, 1).
    target, scale = (0.0, -1.0) if saturating else (1.0, 1.0)
    return _loss(G_LOSS, fake_logits, target, None, 0.0, scale)[0]
