"""The adversarial losses of logits, each with its gradients and D's mean outputs in one fused kernel.

    loss = scale * (mean phi(u; target) + mean phi(v; other_target))

``kind`` selects phi, ``relativistic`` what u and v are:

    minimax        phi(u; t) = (1 - t) u + log(1 + exp(-u))         none     u = logits, v = other_logits if given
    hinge          phi(u; t) = t relu(1 - u) + (1 - t) relu(1 + u)  paired   u = logits - other_logits, no v
    wasserstein    phi(u; t) = (1 - 2 t) u                          average  u = logits - mean(other_logits),
    least_squares  phi(u; t) = (u - t)^2 / 2                                 v = other_logits - mean(logits)

Reductions of the discriminator's losses:

    mean  mean of phi(u) + mean of phi(v)
    sum   sum of phi(u) + sum of phi(v)
    none  phi(u) + phi(v), element by element; u and v must have one shape

The means inside an average relativistic loss stay means under every reduction.

Derivatives are of any order: the first comes from a kernel, higher ones from ATen in float64. ``"mean"`` sums in
float64 and is deterministic for any number of threads and any CPU instruction set. Its backends are a CPU kernel; on a
GPU the fastest of CUDA C++ (where built), Triton (not for float64) and ATen; ATen elsewhere and under functorch
transforms. ``"sum"`` and ``"none"`` use ATen on every device, in float32 for the half types. A mean over no logits is
NaN, as in torch.

>>> import torch
>>> from gan_fast import ops
>>> real_logits, fake_logits = torch.tensor([2.0, -1.0]), torch.tensor([-3.0, 0.5])
>>> round(ops.minimax_d_loss(real_logits, fake_logits).item(), 4)
1.2314
>>> ops.hinge_d_loss(real_logits, fake_logits, reduction="none")
tensor([0.0000, 3.5000])
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends, choices
from gan_fast.ops import checks, dispatch

# target, other_target, scale, kind, relativistic
_Options = tuple[float, float, float, str, str]

KINDS = ("minimax", "hinge", "wasserstein", "least_squares")
REDUCTIONS = ("mean", "sum", "none")

OPS = tuple(f"{loss}_{player}_loss" for loss in (*KINDS, "relativistic") for player in ("d", "g"))
for _op in OPS:
    backends.register(_op, "adversarial_loss_forward", triton_file="adversarial_loss")

_native = SimpleNamespace(
    forward=dispatch.kernel("adversarial_loss_forward"), backward=dispatch.kernel("adversarial_loss_backward")
)
_forward_on_cpu = dispatch.cpu_kernel("adversarial_loss_forward")


def _kernels(logits: Tensor) -> Any:
    """The forward and backward kernels for these logits, with the signatures of the ops of the same names."""
    return backends.triton_kernels("minimax_d_loss", logits) or _native


def reduce(values: Tensor, reduction: str) -> Tensor:
    """Return the mean, the sum or the values themselves."""
    return values if reduction == "none" else values.sum() if reduction == "sum" else values.mean()


def _hinge(u: Tensor, target: float) -> Tensor:
    # A side of weight zero is left out: zero times infinity would be NaN.
    if target == 1:
        return F.relu(1 - u)
    if target == 0:
        return F.relu(1 + u)
    return target * F.relu(1 - u) + (1 - target) * F.relu(1 + u)


_PHI: dict[str, Callable[[Tensor, float, str], Tensor]] = {
    "minimax": lambda u, target, reduction: F.binary_cross_entropy_with_logits(
        u, torch.full_like(u, target), reduction=reduction
    ),
    "hinge": lambda u, target, reduction: reduce(_hinge(u, target), reduction),
    "wasserstein": lambda u, target, reduction: (1 - 2 * target) * reduce(u, reduction),
    "least_squares": lambda u, target, reduction: F.mse_loss(u, torch.full_like(u, target), reduction=reduction) / 2,
}


def reference_loss(
    logits: Tensor,
    target: float,
    other_logits: Tensor | None,
    other_target: float,
    scale: float,
    kind: str,
    relativistic: str,
    reduction: str = "mean",
) -> Tensor:
    """The loss in plain ATen, for any device and dtype."""
    phi = _PHI[kind]
    if other_logits is None or relativistic == "none":
        loss = phi(logits, target, reduction)
        if other_logits is not None:
            loss = loss + phi(other_logits, other_target, reduction)
    elif relativistic == "paired":
        loss = phi(logits - other_logits, target, reduction)
    else:
        first = phi(logits - other_logits.mean(), target, reduction)
        loss = first + phi(other_logits - logits.mean(), other_target, reduction)
    return loss if scale == 1 else loss * scale


def reference(
    logits: Tensor,
    target: float,
    other_logits: Tensor | None,
    other_target: float,
    scale: float,
    kind: str,
    relativistic: str,
) -> tuple[Tensor, Tensor]:
    """The mean loss and the means in plain ATen, for any device and dtype."""
    loss = reference_loss(logits, target, other_logits, other_target, scale, kind, relativistic)
    with torch.no_grad():
        means = _means(logits, other_logits, kind, relativistic)
    return loss, means


def _means(logits: Tensor, other_logits: Tensor | None, kind: str, relativistic: str) -> Tensor:
    """Mean D(x), mean D(G(z)) and D's accuracy (see :func:`d_loss_and_means`); for one batch its mean D alone."""
    batches = [logits] if other_logits is None else [logits, other_logits]
    outputs = [t.sigmoid() if (kind, relativistic) == ("minimax", "none") else t for t in batches]
    means = [t.mean() for t in outputs]
    if other_logits is None:
        return torch.stack(means)
    count = logits.numel() + other_logits.numel()
    if relativistic == "paired":
        correct, count = (logits > other_logits).sum(), logits.numel()
    elif relativistic == "average":
        correct = (logits > means[1]).sum() + (other_logits < means[0]).sum()
    else:
        threshold = (means[0] + means[1]) / 2 if kind == "wasserstein" else 0.5 if kind == "least_squares" else 0
        correct = (logits > threshold).sum() + (other_logits < threshold).sum()
    # Divide in float32 at least: a number of logits can exceed the range of the half types.
    accuracy = correct.to(torch.promote_types(logits.dtype, torch.float32)) / count
    return torch.stack([*means, accuracy.to(logits.dtype)])


def _save(
    ctx: Any, logits: Tensor, other_logits: Tensor | None, options: _Options, needed: tuple[bool, ...], kernels: Any
) -> None:
    """Save for :func:`_grads` what the needed gradients are computed from."""
    logits_needed, other_needed = needed
    if options[-1] != "none":  # each gradient depends on both batches
        logits_needed = other_needed = logits_needed or other_needed
    ctx.save_for_backward(logits if logits_needed else None, other_logits if other_needed else None)
    ctx.options, ctx.kernels = options, kernels
    ctx.set_materialize_grads(False)


def _grads(ctx: Any, grad_loss: Tensor, unit_grads: Sequence[Tensor | None] | None) -> Sequence[Tensor | None]:
    """The gradients by both batches; None for a batch that was not saved.

    ``unit_grads`` are the gradients for ``grad_loss`` = 1, if the forward kernel wrote them.
    """
    # Read even if unused: torch then reports logits that were modified in place and a freed graph.
    logits, other_logits = ctx.saved_tensors
    if (
        unit_grads is not None
        and not torch.is_grad_enabled()
        and dispatch.is_plain_cpu(grad_loss)
        and grad_loss.item() == 1
    ):
        return unit_grads
    target, other_target, *options = ctx.options
    first = (logits, target, other_logits, other_target)
    if logits is None:
        first = (other_logits, other_target, None, 0.0)
    if dispatch.records_graph("adversarial_loss_backward", grad_loss):
        grad, other_grad = AdversarialLossBackward.apply(grad_loss, *first, *options, ctx.kernels)
    else:
        # A batch of gradients must pass the dispatcher, which splits it.
        batched = torch._C._functorch.is_legacy_batchedtensor(grad_loss)
        grad, other_grad = (_native if batched else ctx.kernels).backward(grad_loss, *first, *options)
    return (other_grad, grad) if logits is None else (grad, other_grad)


class DispatchedAdversarialLoss(torch.autograd.Function):
    """torch.ops.gan_fast.adversarial_loss_forward with all its outputs; only the loss is differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: float,
        other_logits: Tensor | None,
        other_target: float,
        scale: float,
        kind: str,
        relativistic: str,
        *wanted: bool,
    ) -> tuple[Tensor | None, ...]:
        logits_needed, _, other_needed, *_ = ctx.needs_input_grad
        options, kernels = (target, other_target, scale, kind, relativistic), _kernels(logits)
        _save(ctx, logits, other_logits, options, (logits_needed, other_needed), kernels)
        arguments = (logits, target, other_logits, other_target, scale, kind, relativistic, *wanted)
        loss, *others = kernels.forward(*arguments)
        ctx.mark_non_differentiable(*(t for t in others if t is not None))
        return loss, *others

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        logits_needed, _, other_needed, *others = ctx.needs_input_grad
        grad, other_grad = (None, None) if grad_loss is None else _grads(ctx, grad_loss, None)
        return grad if logits_needed else None, None, other_grad if other_needed else None, *(None for _ in others)


class AdversarialLoss(torch.autograd.Function):
    """The loss of plain CPU tensors and, if wanted, the means.

    The forward kernel computes the exponentials anyway, so it also writes the gradients for a loss gradient of 1, with
    which ``loss.backward()`` starts; backward then has nothing left to compute. Any other loss gradient goes through
    the backward kernel. Reading the value of the loss gradient costs nothing on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, other_logits: Tensor | None, options: _Options, means_wanted: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        logits_needed, other_needed, *_ = needed = ctx.needs_input_grad
        target, other_target, scale, kind, relativistic = options
        loss, means, *ctx.unit_grads = _forward_on_cpu(
            logits,
            target,
            other_logits,
            other_target,
            scale,
            kind,
            relativistic,
            means_wanted,
            logits_needed,
            other_needed,
        )
        if logits_needed or other_needed:
            _save(ctx, logits, other_logits, options, needed[:2], _native)
        if means is None:
            return loss
        ctx.mark_non_differentiable(means)
        return loss, means

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return None, None, None, None
        # Return these gradients only once: the receiver may modify them in place.
        unit_grads, ctx.unit_grads = ctx.unit_grads, None
        grad, other_grad = _grads(ctx, grad_loss, unit_grads)
        logits_needed, other_needed, *_ = ctx.needs_input_grad
        return grad if logits_needed else None, other_grad if other_needed else None, None, None


_apply = dispatch.fast_apply(AdversarialLoss)


class AdversarialLossBackward(torch.autograd.Function):
    """torch.ops.gan_fast.adversarial_loss_backward."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_loss: Tensor,
        logits: Tensor,
        target: float,
        other_logits: Tensor | None,
        other_target: float,
        scale: float,
        kind: str,
        relativistic: str,
        kernels: Any = None,
    ) -> tuple[Tensor, Tensor | None]:
        arguments = (grad_loss, logits, target, other_logits, other_target, scale, kind, relativistic)
        grads: tuple[Tensor, Tensor | None] = (kernels or _kernels(logits)).backward(*arguments)
        ctx.save_for_backward(grad_loss, logits, other_logits)
        ctx.options = (target, other_target, scale, kind, relativistic)
        ctx.set_materialize_grads(False)
        return grads

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        # Compute in float64: a chain of roundings in the logits' dtype would be less accurate than eager's.
        grad_loss, logits, other_logits = ctx.saved_tensors
        target, *options = ctx.options

        def in_double(logits: Tensor, other_logits: Tensor | None) -> Tensor:
            other = None if other_logits is None else other_logits.double()
            return reference_loss(logits.double(), target, other, *options).to(grad_loss.dtype)

        inputs = (logits, other_logits)
        grad_grad_loss, *grad_logits = dispatch.differentiate_reference(in_double, inputs, grad_loss, cotangents)
        return grad_grad_loss, grad_logits[0], None, grad_logits[1], *(None,) * 5


def _forward_fake(
    logits: Tensor, target: float, other_logits: Tensor | None, other_target: float, scale: float, kind: str,
    relativistic: str, means_wanted: bool, grad_wanted: bool, other_grad_wanted: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    return (
        logits.new_empty(()),
        logits.new_empty(1 if other_logits is None else 3) if means_wanted else None,
        torch.empty_like(logits) if grad_wanted else None,
        _other_grad_fake(logits, other_logits, relativistic) if other_grad_wanted else None,
    )


def _other_grad_fake(logits: Tensor, other_logits: Tensor | None, relativistic: str) -> Tensor | None:
    # The gradients of pairs share one memory order.
    like = other_logits if other_logits is None or relativistic != "paired" else logits
    return None if like is None else torch.empty_like(like)


def _backward_fake(
    grad_loss: Tensor, logits: Tensor, target: float, other_logits: Tensor | None, other_target: float, scale: float,
    kind: str, relativistic: str,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    return torch.empty_like(logits), _other_grad_fake(logits, other_logits, relativistic)


for _name in ("forward", "backward"):
    dispatch.register_triton(f"adversarial_loss_{_name}", "adversarial_loss", _name)
dispatch.register("adversarial_loss_forward", DispatchedAdversarialLoss.apply, _forward_fake)
dispatch.register("adversarial_loss_backward", AdversarialLossBackward.apply, _backward_fake)


def _loss(
    op: str,
    logits: Tensor,
    target: float,
    other_logits: Tensor | None = None,
    other_target: float = 0.0,
    *,
    scale: float = 1.0,
    kind: str,
    relativistic: str = "none",
    reduction: str = "mean",
    means_wanted: bool = False,
) -> tuple[Tensor, Any]:
    """Return the loss and, if wanted, the means."""
    targets = (target, other_target)
    if kind == "least_squares" and relativistic != "none" and all(isinstance(t, (int, float)) for t in targets):
        # A difference of two logits has the targets 1 and -1 where a single logit has 1 and 0.
        targets = (2 * target - 1, 2 * other_target - 1)
    # The kernel checks the tensors too, and for a few hundred logits `_check` would take as long as the kernel. What
    # the kernel rejects is then either computed on the general path below or named as an error there.
    if (
        reduction == "mean"
        and not torch.compiler.is_compiling()
        and dispatch.is_plain_cpu(logits, other_logits)
        and (other_logits is not None or op in _ONE_BATCH)
        # Not isinstance: `_check` rejects a bool.
        and type(target) in (int, float)
        and type(other_target) in (int, float)
        and isinstance(kind, str)
        and not torch.is_autocast_enabled("cpu")
        and backends.uses_cpu_kernel(op)
    ):
        try:
            options = (*targets, scale, kind, relativistic)
            results = _apply(logits, other_logits, options, means_wanted)
            return results if means_wanted else (results, None)
        except RuntimeError as error:
            if "adversarial_loss_forward: expected" not in str(error):
                raise
            backends.logger.debug("%s: the CPU kernel rejected the arguments: %s", op, error)
    _check(op, logits, target, other_logits, other_target, kind, relativistic, reduction)
    device, dtype = logits.device.type, logits.dtype
    if dispatch.is_autocast_enabled(device):
        # Autocast's policy for losses: in float32, whatever the dtype of the logits.
        dtype = torch.promote_types(dtype, torch.float32)
        logits = logits.to(dtype)
        other_logits = None if other_logits is None else other_logits.to(dtype)
    if reduction != "mean":
        wide = torch.promote_types(dtype, torch.float32)
        other = None if other_logits is None else other_logits.to(wide)
        loss = reference_loss(logits.to(wide), targets[0], other, targets[1], scale, kind, relativistic, reduction)
        return loss.to(dtype), None
    arguments = (logits, other_logits, *targets, scale, kind, relativistic, means_wanted)

    def shape_class() -> tuple[str, ...]:
        sizes = [f"2^{t.numel().bit_length()}" for t in (logits, other_logits) if t is not None]
        how = (kind, *(() if relativistic == "none" else (relativistic,)), *(("and means",) if means_wanted else ()))
        return (checks.name_of(logits.dtype), *sizes, "logits", *how)

    return backends.call_fastest(op, functools.partial(_run, op), arguments, shape_class)


def _run(
    op: str, logits: Tensor, other_logits: Tensor | None, target: float, other_target: float, scale: float, kind: str,
    relativistic: str, means_wanted: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if not backends.uses_kernel(op, logits.device.type, logits.dtype):
        return reference(logits, target, other_logits, other_target, scale, kind, relativistic)
    forward = torch.ops.gan_fast.adversarial_loss_forward
    return forward(
        logits, target, other_logits, other_target, scale, kind, relativistic, means_wanted, False, False
    )[:2]  # fmt: skip


_ONE_BATCH = frozenset(f"{kind}_g_loss" for kind in KINDS)


def _check(
    op: str, logits: Tensor, target: float, other_logits: Tensor | None, other_target: float, kind: str,
    relativistic: str, reduction: str,
) -> None:  # fmt: skip
    """Check the arguments of the public functions, under their public names."""
    checks.one_of(op, "reduction", reduction, REDUCTIONS)
    if op in _ONE_BATCH:
        checks.floating(op, "fake_logits", logits)
        return
    # relativistic_g_loss passes the fake batch first.
    real, fake = (other_logits, logits) if op == "relativistic_g_loss" else (logits, other_logits)
    real_logits = checks.floating(op, "real_logits", real)
    fake_logits = checks.floating(op, "fake_logits", fake)
    checks.same_device(op, "fake_logits", fake_logits, "real_logits", real_logits)
    if fake_logits.dtype != real_logits.dtype:
        have, want = checks.name_of(fake_logits.dtype), checks.name_of(real_logits.dtype)
        raise TypeError(f"{op}: expected fake_logits dtype {want} to match real_logits, got {have}")
    checks.in_range(op, "real_target", target, 0, 1)
    checks.in_range(op, "fake_target", other_target, 0, 1)
    checks.one_of(op, "kind", kind, KINDS)
    if fake_logits.shape != real_logits.shape and (relativistic == "paired" or reduction == "none"):
        reason = "logits are compared in pairs" if relativistic == "paired" else "reduction none adds them one by one"
        raise ValueError(
            f"{op}: expected fake_logits shape {tuple(real_logits.shape)} to match real_logits, got "
            f"{tuple(fake_logits.shape)}; {reason}"
        )


def d_loss_and_means(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    kind: str = "minimax",
    relativistic: str = "none",
    real_target: float = 1.0,
    fake_target: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return a discriminator loss and, from the same kernel, (mean D(x), mean D(G(z)), accuracy) without gradient.

    D is sigmoid(logit) for the plain minimax loss and the logit itself for all others. Accuracy is the share of both
    batches on the correct side of a threshold, real logits above and fake logits below it: 0 for minimax and hinge, 1/2
    for least squares, halfway between the two means for Wasserstein. For "paired" it is the share of pairs whose real
    logit is the larger one; for "average" the threshold for each batch is the mean logit of the other.
    """
    op = f"{kind}_d_loss" if relativistic == "none" else "relativistic_d_loss"
    targets = (real_logits, real_target, fake_logits, fake_target)
    return _loss(op, *targets, kind=kind, relativistic=relativistic, means_wanted=True)


def minimax_d_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    real_target: float = 1.0,
    fake_target: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Return the discriminator's loss in the minimax game, -V(D, G) at targets 1 and 0.

    loss = mean(bce(real_logits, real_target)) + mean(bce(fake_logits, fake_target)),
    bce(x, t) = (1 - t) x + log(1 + exp(-x)), binary cross-entropy with logits.

    Args:
        real_logits: D's logits for real samples, any shape; float64, float32, bfloat16 or float16.
        fake_logits: D's logits for generated samples, any shape; dtype and device of ``real_logits``.
        real_target: target for real samples, from 0 to 1; below 1 is one-sided label smoothing.
        fake_target: target for generated samples, from 0 to 1.
        reduction: "mean", "sum" (sums in place of both means) or "none" (elementwise sum of both terms, which requires
            logits of equal shapes).

    Returns:
        Scalar, or for "none" a tensor of the logits' shape, in the logits' dtype (float32 under autocast).

    Raises:
        TypeError: a wrong type or dtype, or logits of two dtypes.
        ValueError: a target outside 0 to 1, an unknown reduction, logits on two devices or, for "none", of two shapes.

    Notes:
        :mod:`gan_fast.ops.adversarial_loss` describes derivative order, accumulation dtype, determinism and backends.

    Source: Goodfellow et al., Generative Adversarial Nets, 2014 (arXiv 1406.2661), equation 1.
    """
    arguments = (real_logits, real_target, fake_logits, fake_target)
    return _loss("minimax_d_loss", *arguments, kind="minimax", reduction=reduction)[0]


def minimax_g_loss(fake_logits: Tensor, *, saturating: bool = False, reduction: str = "mean") -> Tensor:
    """Return the generator's loss in the minimax game.

    Non-saturating (default): mean(-log(sigmoid(fake_logits))). Saturating: mean(log(1 - sigmoid(fake_logits))), the
    loss of the minimax game, whose gradient vanishes once D rejects the samples with confidence.

    Args:
        fake_logits: D's logits for generated samples, any shape; float64, float32, bfloat16 or float16.
        saturating: whether to return the saturating form.
        reduction: "mean", "sum" or "none" (one loss per logit).

    Returns:
        Scalar, or for "none" a tensor of the logits' shape, in the logits' dtype (float32 under autocast).

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: an unknown reduction.

    Notes:
        :mod:`gan_fast.ops.adversarial_loss` describes derivative order, accumulation dtype, determinism and backends.

    Source: Goodfellow et al., Generative Adversarial Nets, 2014 (arXiv 1406.2661), section 3.
    """
    # log(1 - sigmoid(x)) = -bce(x, 0); -log(sigmoid(x)) = bce(x, 1).
    target, scale = (0.0, -1.0) if saturating else (1.0, 1.0)
    return _loss("minimax_g_loss", fake_logits, target, scale=scale, kind="minimax", reduction=reduction)[0]


def hinge_d_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    real_target: float = 1.0,
    fake_target: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Return the discriminator's hinge loss.

    loss = mean(hinge(real_logits, real_target)) + mean(hinge(fake_logits, fake_target)),
    hinge(x, t) = t relu(1 - x) + (1 - t) relu(1 + x).

    Args:
        real_logits: D's logits for real samples, any shape; float64, float32, bfloat16 or float16.
        fake_logits: D's logits for generated samples, any shape; dtype and device of ``real_logits``.
        real_target: target for real samples, from 0 to 1; below 1 is one-sided label smoothing.
        fake_target: target for generated samples, from 0 to 1.
        reduction: "mean", "sum" (sums in place of both means) or "none" (elementwise sum of both terms, which requires
            logits of equal shapes).

    Returns:
        Scalar, or for "none" a tensor of the logits' shape, in the logits' dtype (float32 under autocast).

    Raises:
        TypeError: a wrong type or dtype, or logits of two dtypes.
        ValueError: a target outside 0 to 1, an unknown reduction, logits on two devices or, for "none", of two shapes.

    Notes:
        The slope at a kink is 0, as in torch's relu. :mod:`gan_fast.ops.adversarial_loss` describes derivative order,
        accumulation dtype, determinism and backends.

    Source: Lim and Ye, Geometric GAN, 2017 (arXiv 1705.02894), equation 16; Miyato et al., 2018 (arXiv 1802.05957).
    """
    arguments = (real_logits, real_target, fake_logits, fake_target)
    return _loss("hinge_d_loss", *arguments, kind="hinge", reduction=reduction)[0]


def hinge_g_loss(fake_logits: Tensor, *, reduction: str = "mean") -> Tensor:
    """Return the generator's loss that goes with :func:`hinge_d_loss`, -mean(fake_logits).

    Args:
        fake_logits: D's logits for generated samples, any shape; float64, float32, bfloat16 or float16.
        reduction: "mean", "sum" or "none" (one loss per logit).

    Returns:
        Scalar, or for "none" a tensor of the logits' shape, in the logits' dtype (float32 under autocast).

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: an unknown reduction.

    Notes:
        :mod:`gan_fast.ops.adversarial_loss` describes derivative order, accumulation dtype, determinism and backends.

    Source: Lim and Ye, Geometric GAN, 2017 (arXiv 1705.02894); Miyato et al., 2018 (arXiv 1802.05957).
    """
    # -x is the Wasserstein form at target 1.
    return _loss("hinge_g_loss", fake_logits, 1.0, kind="wasserstein", reduction=reduction)[0]


def wasserstein_d_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    real_target: float = 1.0,
    fake_target: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Return the critic's Wasserstein loss, mean(fake_logits) - mean(real_logits) at targets 1 and 0.

    loss = (1 - 2 real_target) mean(real_logits) + (1 - 2 fake_target) mean(fake_logits). The critic's slope is bounded
    separately, by a gradient penalty or clipped weights.

    Args:
        real_logits: D's logits for real samples, any shape; float64, float32, bfloat16 or float16.
        fake_logits: D's logits for generated samples, any shape; dtype and device of ``real_logits``.
        real_target: target for real samples, from 0 to 1; below 1 is one-sided label smoothing.
        fake_target: target for generated samples, from 0 to 1.
        reduction: "mean", "sum" (sums in place of both means) or "none" (elementwise sum of both terms, which requires
            logits of equal shapes).

    Returns:
        Scalar, or for "none" a tensor of the logits' shape, in the logits' dtype (float32 under autocast).

    Raises:
        TypeError: a wrong type or dtype, or logits of two dtypes.
        ValueError: a target outside 0 to 1, an unknown reduction, logits on two devices or, for "none", of two shapes.

    Notes:
        :mod:`gan_fast.ops.adversarial_loss` describes derivative order, accumulation dtype, determinism and backends.

    Source: Arjovsky et al., Wasserstein GAN, 2017 (arXiv 1701.07875), equation 2.
    """
    arguments = (real_logits, real_target, fake_logits, fake_target)
    return _loss("wasserstein_d_loss", *arguments, kind="wasserstein", reduction=reduction)[0]


def wasserstein_g_loss(fake_logits: Tensor, *, reduction: str = "mean") -> Tensor:
    """Return the generator's loss that goes with :func:`wasserstein_d_loss`, -mean(fake_logits).

    Args:
        fake_logits: D's logits for generated samples, any shape; float64, float32, bfloat16 or float16.
        reduction: "mean", "sum" or "none" (one loss per logit).

    Returns:
        Scalar, or for "none" a tensor of the logits' shape, in the logits' dtype (float32 under autocast).

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: an unknown reduction.

    Notes:
        :mod:`gan_fast.ops.adversarial_loss` describes derivative order, accumulation dtype, determinism and backends.

    Source: Arjovsky et al., Wasserstein GAN, 2017 (arXiv 1701.07875), algorithm 1.
    """
    return _loss("wasserstein_g_loss", fake_logits, 1.0, kind="wasserstein", reduction=reduction)[0]


def least_squares_d_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    real_target: float = 1.0,
    fake_target: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Return the discriminator's least-squares loss.

    loss = 1/2 mean((real_logits - real_target)^2) + 1/2 mean((fake_logits - fake_target)^2).

    Args:
        real_logits: D's logits for real samples, any shape; float64, float32, bfloat16 or float16.
        fake_logits: D's logits for generated samples, any shape; dtype and device of ``real_logits``.
        real_target: target for real samples, from 0 to 1; below 1 is one-sided label smoothing.
        fake_target: target for generated samples, from 0 to 1.
        reduction: "mean", "sum" (sums in place of both means) or "none" (elementwise sum of both terms, which requires
            logits of equal shapes).

    Returns:
        Scalar, or for "none" a tensor of the logits' shape, in the logits' dtype (float32 under autocast).

    Raises:
        TypeError: a wrong type or dtype, or logits of two dtypes.
        ValueError: a target outside 0 to 1, an unknown reduction, logits on two devices or, for "none", of two shapes.

    Notes:
        :mod:`gan_fast.ops.adversarial_loss` describes derivative order, accumulation dtype, determinism and backends.

    Source: Mao et al., Least Squares Generative Adversarial Networks, 2016 (arXiv 1611.04076), equation 9.
    """
    arguments = (real_logits, real_target, fake_logits, fake_target)
    return _loss("least_squares_d_loss", *arguments, kind="least_squares", reduction=reduction)[0]


def least_squares_g_loss(fake_logits: Tensor, *, reduction: str = "mean") -> Tensor:
    """Return the generator's loss that goes with :func:`least_squares_d_loss`, 1/2 mean((fake_logits - 1)^2).

    Args:
        fake_logits: D's logits for generated samples, any shape; float64, float32, bfloat16 or float16.
        reduction: "mean", "sum" or "none" (one loss per logit).

    Returns:
        Scalar, or for "none" a tensor of the logits' shape, in the logits' dtype (float32 under autocast).

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: an unknown reduction.

    Notes:
        :mod:`gan_fast.ops.adversarial_loss` describes derivative order, accumulation dtype, determinism and backends.

    Source: Mao et al., Least Squares Generative Adversarial Networks, 2016 (arXiv 1611.04076), equation 9.
    """
    return _loss("least_squares_g_loss", fake_logits, 1.0, kind="least_squares", reduction=reduction)[0]


def relativistic_d_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    average: bool = False,
    kind: str = "minimax",
    real_target: float = 1.0,
    fake_target: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Return the discriminator's relativistic loss, which compares real logits with fake ones.

    Paired (default): mean(phi(real_logits - fake_logits, real_target)). Average: mean(phi(real_logits -
    mean(fake_logits), real_target)) + mean(phi(fake_logits - mean(real_logits), fake_target)), with gradients through
    the inner means.

    Args:
        real_logits: D's logits for real samples, any shape; float64, float32, bfloat16 or float16.
        fake_logits: D's logits for generated samples; dtype and device of ``real_logits``, and its shape unless
            ``average``.
        average: whether to compare each logit with the mean of the other batch.
        kind: phi, as in the loss of that name: "minimax", "hinge", "wasserstein" or "least_squares". "least_squares"
            pulls a difference to 2 target - 1, that is to 1 or -1, as RaLSGAN does.
        real_target: target of the first term, from 0 to 1.
        fake_target: target of the second term, from 0 to 1. Must be 0 for pairs, which have only the first term.
        reduction: "mean", "sum" or "none". "none" returns one loss per pair or, with ``average``, the elementwise sum
            of both terms, which requires logits of equal shapes. The inner means stay means.

    Returns:
        Scalar, or for "none" a tensor of the logits' shape, in the logits' dtype (float32 under autocast).

    Raises:
        TypeError: a wrong type or dtype, or logits of two dtypes.
        ValueError: a target outside 0 to 1, an unknown kind or reduction, logits on two devices or of two shapes, or
            pairs with a fake_target.

    Notes:
        :mod:`gan_fast.ops.adversarial_loss` describes derivative order, accumulation dtype, determinism and backends.

    Source: Jolicoeur-Martineau, The relativistic discriminator, 2018 (arXiv 1807.00734), sections 4.2 and 4.3; Huang et
    al., The GAN is dead; long live the GAN!, 2024 (arXiv 2501.05441).
    """
    if not average:
        choices.check_paired_target("relativistic_d_loss", "fake_target", fake_target, "real_target")
    arguments = (real_logits, real_target, fake_logits, fake_target)
    relativistic = "average" if average else "paired"
    return _loss("relativistic_d_loss", *arguments, kind=kind, relativistic=relativistic, reduction=reduction)[0]


def relativistic_g_loss(
    real_logits: Tensor, fake_logits: Tensor, *, average: bool = False, kind: str = "minimax", reduction: str = "mean"
) -> Tensor:
    """Return the generator's relativistic loss, which compares fake logits with real ones.

    Paired (default): mean(phi(fake_logits - real_logits, 1)). Average: mean(phi(fake_logits - mean(real_logits), 1)) +
    mean(phi(real_logits - mean(fake_logits), 0)), with gradients through the inner means.

    Args:
        real_logits: D's logits for real samples, any shape; float64, float32, bfloat16 or float16.
        fake_logits: D's logits for generated samples; dtype and device of ``real_logits``, and its shape unless
            ``average``.
        average: whether to compare each logit with the mean of the other batch.
        kind: phi, as in the loss of that name: "minimax", "hinge", "wasserstein" or "least_squares". "least_squares"
            pulls a difference to 1 or -1, as RaLSGAN does.
        reduction: "mean", "sum" or "none". "none" returns one loss per pair or, with ``average``, the elementwise sum
            of both terms, which requires logits of equal shapes. The inner means stay means.

    Returns:
        Scalar, or for "none" a tensor of the logits' shape, in the logits' dtype (float32 under autocast).

    Raises:
        TypeError: a wrong type or dtype, or logits of two dtypes.
        ValueError: an unknown kind or reduction, or logits on two devices or of two shapes.

    Notes:
        :mod:`gan_fast.ops.adversarial_loss` describes derivative order, accumulation dtype, determinism and backends.

    Source: Jolicoeur-Martineau, The relativistic discriminator, 2018 (arXiv 1807.00734), sections 4.2 and 4.3; Huang et
    al., The GAN is dead; long live the GAN!, 2024 (arXiv 2501.05441).
    """
    arguments = (fake_logits, 1.0, real_logits, 0.0)
    relativistic = "average" if average else "paired"
    return _loss("relativistic_g_loss", *arguments, kind=kind, relativistic=relativistic, reduction=reduction)[0]
