"""The adversarial losses: of logits of real and fake batches, with gradients and means, in one kernel.

A loss is scale * (mean phi(u; target) + mean phi(v; other_target)). ``kind`` is phi, ``relation`` what u and v are:

    bce      phi(u; t) = (1 - t) u + log(1 + exp(-u))         none     u = logits, v = other_logits, if there are any
    hinge    phi(u; t) = t relu(1 - u) + (1 - t) relu(1 + u)  paired   u = logits - other_logits, no v
    linear   phi(u; t) = (1 - 2 t) u                          average  u = logits - mean other_logits,
    squared  phi(u; t) = (u - t)^2 / 2                                 v = other_logits - mean logits
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import checks, dispatch

# Both targets, scale, kind, relation.
_Options = tuple[float, float, float, str, str]

KINDS = ("bce", "hinge", "linear", "squared")

OPS = tuple(
    f"{loss}_{player}_loss"
    for loss in ("minimax", "hinge", "wasserstein", "least_squares", "relativistic")
    for player in ("d", "g")
)
for _op in OPS:
    backends.register(_op, "adversarial_loss_forward", triton_file="adversarial_loss")

_native = SimpleNamespace(
    forward=dispatch.kernel("adversarial_loss_forward"), backward=dispatch.kernel("adversarial_loss_backward")
)
_forward_on_cpu = dispatch.cpu_kernel("adversarial_loss_forward")


def _kernels(logits: Tensor) -> Any:
    """What serves: functions of the native ops' names and signatures."""
    return backends.triton_kernels("minimax_d_loss", logits) or _native


def _hinge(u: Tensor, target: float) -> Tensor:
    # A side without weight is left out: zero times infinity would be NaN.
    if target == 1:
        return F.relu(1 - u)
    if target == 0:
        return F.relu(1 + u)
    return target * F.relu(1 - u) + (1 - target) * F.relu(1 + u)


_MEAN_PHI: dict[str, Callable[[Tensor, float], Tensor]] = {
    "bce": lambda u, target: F.binary_cross_entropy_with_logits(u, torch.full_like(u, target)),
    "hinge": lambda u, target: _hinge(u, target).mean(),
    "linear": lambda u, target: (1 - 2 * target) * u.mean(),
    "squared": lambda u, target: F.mse_loss(u, torch.full_like(u, target)) / 2,
}


def reference(
    logits: Tensor,
    target: float,
    other_logits: Tensor | None,
    other_target: float,
    scale: float,
    kind: str,
    relation: str,
) -> tuple[Tensor, Tensor]:
    """The loss and means on plain ATen, any device and dtype."""
    phi = _MEAN_PHI[kind]
    if other_logits is None or relation == "none":
        loss = phi(logits, target)
        if other_logits is not None:
            loss = loss + phi(other_logits, other_target)
    elif relation == "paired":
        loss = phi(logits - other_logits, target)
    else:
        loss = phi(logits - other_logits.mean(), target) + phi(other_logits - logits.mean(), other_target)
    with torch.no_grad():
        means = _means(logits, other_logits, kind, relation)
    return loss if scale == 1 else loss * scale, means


def _means(logits: Tensor, other_logits: Tensor | None, kind: str, relation: str) -> Tensor:
    """Mean D(x), mean D(G(z)), and the share of logits that D places rightly; of one batch its mean D alone."""
    batches = [logits] if other_logits is None else [logits, other_logits]
    answers = [t.sigmoid() if (kind, relation) == ("bce", "none") else t for t in batches]
    means = [t.mean() for t in answers]
    if other_logits is None:
        return torch.stack(means)
    count = logits.numel() + other_logits.numel()
    if relation == "paired":
        right, count = (logits > other_logits).sum(), logits.numel()
    elif relation == "average":
        right = (logits > means[1]).sum() + (other_logits < means[0]).sum()
    else:
        threshold = (means[0] + means[1]) / 2 if kind == "linear" else 0.5 if kind == "squared" else 0
        right = (logits > threshold).sum() + (other_logits < threshold).sum()
    # A count of logits is more than half types hold.
    share = right.to(torch.promote_types(logits.dtype, torch.float32)) / count
    return torch.stack([*means, share.to(logits.dtype)])


def _save(
    ctx: Any, logits: Tensor, other_logits: Tensor | None, options: _Options, wanted: tuple[bool, ...], kernels: Any
) -> None:
    """Keep for :func:`_grads` what the gradients that are wanted need."""
    by_logits, by_other = wanted
    if options[-1] != "none":  # a gradient by one takes both
        by_logits = by_other = by_logits or by_other
    ctx.save_for_backward(logits if by_logits else None, other_logits if by_other else None)
    ctx.options, ctx.kernels = options, kernels
    ctx.set_materialize_grads(False)


def _grads(ctx: Any, grad_loss: Tensor, unit_grads: Sequence[Tensor | None] | None) -> Sequence[Tensor | None]:
    """The gradients by both batches, or None where nobody wants one.

    ``unit_grads`` are those for a loss gradient of one, where they are known.
    """
    logits, other_logits = ctx.saved_tensors  # even where unread: torch objects to changed logits and a freed graph
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
    # A node of its own only where somebody will differentiate again.
    if dispatch.records_graph("adversarial_loss_backward", grad_loss):
        grad, other_grad = AdversarialLossBackward.apply(grad_loss, *first, *options, ctx.kernels)
    else:
        # The dispatcher takes a batch of gradients apart.
        batched = torch._C._functorch.is_legacy_batchedtensor(grad_loss)
        grad, other_grad = (_native if batched else ctx.kernels).backward(grad_loss, *first, *options)
    return (other_grad, grad) if logits is None else (grad, other_grad)


class DispatchedAdversarialLoss(torch.autograd.Function):
    """All outputs of torch.ops.gan_fast.adversarial_loss_forward; loss alone has a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: float,
        other_logits: Tensor | None,
        other_target: float,
        scale: float,
        kind: str,
        relation: str,
        *wanted: bool,
    ) -> tuple[Tensor | None, ...]:
        by_logits, _, by_other, *_ = ctx.needs_input_grad
        options, kernels = (target, other_target, scale, kind, relation), _kernels(logits)
        _save(ctx, logits, other_logits, options, (by_logits, by_other), kernels)
        arguments = (logits, target, other_logits, other_target, scale, kind, relation, *wanted)
        loss, *others = kernels.forward(*arguments)
        ctx.mark_non_differentiable(*(t for t in others if t is not None))
        return loss, *others

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        by_logits, _, by_other, *others = ctx.needs_input_grad
        grad, other_grad = (None, None) if grad_loss is None else _grads(ctx, grad_loss, None)
        return grad if by_logits else None, None, other_grad if by_other else None, *(None for _ in others)


class AdversarialLoss(torch.autograd.Function):
    """loss, and means where they are wanted, of plain CPU tensors.

    The forward kernel has the exponentials at hand, so it writes the gradients for a loss gradient of one too: what
    ``loss.backward()`` starts from, and then has nothing left to compute. Any other goes through the backward kernel.
    Reading which it is costs nothing on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, other_logits: Tensor | None, options: _Options, means_wanted: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        by_logits, by_other, *_ = wanted = ctx.needs_input_grad
        target, other_target, scale, kind, relation = options
        loss, means, *ctx.unit_grads = _forward_on_cpu(
            logits, target, other_logits, other_target, scale, kind, relation, means_wanted, by_logits, by_other
        )
        if by_logits or by_other:
            _save(ctx, logits, other_logits, options, wanted[:2], _native)
        if means is None:
            return loss
        ctx.mark_non_differentiable(means)
        return loss, means

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return None, None, None, None
        # Handed out once: whoever receives them may write to them.
        unit_grads, ctx.unit_grads = ctx.unit_grads, None
        grad, other_grad = _grads(ctx, grad_loss, unit_grads)
        by_logits, by_other, *_ = ctx.needs_input_grad
        return grad if by_logits else None, other_grad if by_other else None, None, None


_apply = dispatch.fast_apply(AdversarialLoss)


class AdversarialLossBackward(torch.autograd.Function):
    """grad_logits, grad_other_logits of torch.ops.gan_fast.adversarial_loss_backward."""

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
        relation: str,
        kernels: Any = None,
    ) -> tuple[Tensor, Tensor | None]:
        arguments = (grad_loss, logits, target, other_logits, other_target, scale, kind, relation)
        grads: tuple[Tensor, Tensor | None] = (kernels or _kernels(logits)).backward(*arguments)
        ctx.save_for_backward(grad_loss, logits, other_logits)
        ctx.options = (target, other_target, scale, kind, relation)
        ctx.set_materialize_grads(False)
        return grads

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        # In float64: a chain of roundings in the logits' own dtype would be less exact than eager's.
        grad_loss, logits, other_logits = ctx.saved_tensors
        target, *options = ctx.options

        def in_double(logits: Tensor, other_logits: Tensor | None) -> Tensor:
            other = None if other_logits is None else other_logits.double()
            return reference(logits.double(), target, other, *options)[0].to(grad_loss.dtype)

        inputs = (logits, other_logits)
        by_grad_loss, *by_logits = dispatch.differentiate_reference(in_double, inputs, grad_loss, cotangents)
        return by_grad_loss, by_logits[0], None, by_logits[1], *(None,) * 5


def _forward_fake(
    logits: Tensor, target: float, other_logits: Tensor | None, other_target: float, scale: float, kind: str,
    relation: str, means_wanted: bool, grad_wanted: bool, other_grad_wanted: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    return (
        logits.new_empty(()),
        logits.new_empty(1 if other_logits is None else 3) if means_wanted else None,
        torch.empty_like(logits) if grad_wanted else None,
        _other_grad_fake(logits, other_logits, relation) if other_grad_wanted else None,
    )


def _other_grad_fake(logits: Tensor, other_logits: Tensor | None, relation: str) -> Tensor | None:
    # Pairs have one order in memory.
    like = other_logits if other_logits is None or relation != "paired" else logits
    return None if like is None else torch.empty_like(like)


def _backward_fake(
    grad_loss: Tensor, logits: Tensor, target: float, other_logits: Tensor | None, other_target: float, scale: float,
    kind: str, relation: str,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    return torch.empty_like(logits), _other_grad_fake(logits, other_logits, relation)


for _name in ("forward", "backward"):
    dispatch.register_triton(f"adversarial_loss_{_name}", "adversarial_loss", _name)
dispatch.register("adversarial_loss_forward", DispatchedAdversarialLoss.apply, _forward_fake)
dispatch.register("adversarial_loss_backward", AdversarialLossBackward.apply, _backward_fake)


def _loss(
    op: str,
    logits: Tensor,
    target: float,
    other_logits: Tensor | None,
    other_target: float,
    scale: float = 1.0,
    kind: str = "bce",
    relation: str = "none",
    means_wanted: bool = False,
) -> tuple[Tensor, Any]:
    """The loss and the means, those only where they are wanted, from what serves the op here."""
    targets = (target, other_target)
    if kind == "squared" and relation != "none" and all(isinstance(t, (int, float)) for t in targets):
        # A difference of logits is asked to be 1 or -1, where a logit is asked to be 1 or 0.
        targets = (2 * target - 1, 2 * other_target - 1)
    # The kernel checks tensors too, and for some hundred logits `_check` would take as long as it does. What it refuses
    # goes the general way, which serves it or names the fault.
    if (
        not torch.compiler.is_compiling()
        and dispatch.is_plain_cpu(logits, other_logits)
        and (other_logits is not None or op in _OF_ONE_BATCH)
        and isinstance(target, (int, float))
        and isinstance(other_target, (int, float))
        and isinstance(kind, str)
        and not torch.is_autocast_enabled("cpu")
        and backends.uses_cpu_kernel(op)
    ):
        try:
            options = (*targets, scale, kind, relation)
            results = _apply(logits, other_logits, options, means_wanted)
            return results if means_wanted else (results, None)
        except RuntimeError as refusal:
            if "adversarial_loss_forward: expected" not in str(refusal):
                raise
            backends.logger.debug("%s: the general way, because %s", op, refusal)
    _check(op, logits, target, other_logits, other_target, kind, relation)
    device = logits.device.type
    if dispatch.is_autocast_enabled(device):
        # As autocast's own policy for losses: in float32, whatever the logits come in.
        logits = logits.float() if logits.dtype != torch.float64 else logits
        if other_logits is not None and other_logits.dtype != torch.float64:
            other_logits = other_logits.float()
    arguments = (logits, other_logits, *targets, scale, kind, relation, means_wanted)

    def shape_class() -> tuple[str, ...]:
        sizes = [f"2^{t.numel().bit_length()}" for t in (logits, other_logits) if t is not None]
        how = (kind, *(() if relation == "none" else (relation,)), *(("and means",) if means_wanted else ()))
        return (checks.name_of(logits.dtype), *sizes, "logits", *how)

    return backends.call_fastest(op, functools.partial(_serve, op), arguments, shape_class)


def _serve(
    op: str, logits: Tensor, other_logits: Tensor | None, target: float, other_target: float, scale: float, kind: str,
    relation: str, means_wanted: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if not backends.uses_kernel(op, logits.device.type, logits.dtype):
        return reference(logits, target, other_logits, other_target, scale, kind, relation)
    forward = torch.ops.gan_fast.adversarial_loss_forward
    return forward(
        logits, target, other_logits, other_target, scale, kind, relation, means_wanted, False, False
    )[:2]  # fmt: skip


_OF_ONE_BATCH = frozenset({"minimax_g_loss", "hinge_g_loss", "wasserstein_g_loss", "least_squares_g_loss"})


def _check(
    op: str, logits: Tensor, target: float, other_logits: Tensor | None, other_target: float, kind: str, relation: str
) -> None:
    """What the public functions check, in the words of their arguments."""
    if op in _OF_ONE_BATCH:
        checks.floating(op, "fake_logits", logits)
        return
    # The generator's relativistic loss has the fake batch first.
    real, fake = (other_logits, logits) if op == "relativistic_g_loss" else (logits, other_logits)
    real_logits = checks.floating(op, "real_logits", real)
    fake_logits = checks.floating(op, "fake_logits", fake)
    checks.same_device(op, "fake_logits", fake_logits, "real_logits", real_logits)
    if fake_logits.dtype != real_logits.dtype:
        have, want = checks.name_of(fake_logits.dtype), checks.name_of(real_logits.dtype)
        raise TypeError(f"{op}: expected fake_logits dtype {want} as real_logits, got {have}")
    checks.in_range(op, "real_target", target, 0, 1)
    checks.in_range(op, "fake_target", other_target, 0, 1)
    checks.one_of(op, "kind", kind, KINDS)
    if relation == "paired" and fake_logits.shape != real_logits.shape:
        shape = tuple(real_logits.shape)
        raise ValueError(f"{op}: expected fake_logits shape {shape} as real_logits, got {tuple(fake_logits.shape)}")


def d_loss_and_means(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    kind: str = "bce",
    relation: str = "none",
    real_target: float = 1.0,
    fake_target: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return a loss of the discriminator and, from the same kernel, three means without gradient.

    mean D(x) and mean D(G(z)), where D is sigmoid(logit) for kind "bce" with relation "none" and the logit itself
    otherwise; accuracy, the share of both batches that D places rightly: real logits above and fake ones below 0
    ("bce", "hinge"), 1/2 ("squared"), or half-way between the two means ("linear"). With relation "paired" the share of
    pairs whose real logit is above the fake one, with "average" each logit against the mean of the other batch.
    """
    op = _D_LOSSES[kind] if relation == "none" else "relativistic_d_loss"
    return _loss(op, real_logits, real_target, fake_logits, fake_target, 1.0, kind, relation, means_wanted=True)


_D_LOSSES = {
    "bce": "minimax_d_loss",
    "hinge": "hinge_d_loss",
    "linear": "wasserstein_d_loss",
    "squared": "least_squares_d_loss",
}


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
        Derivatives: first by a native kernel, higher ones of any order through the reference in float64.
        Accumulation: float64; deterministic for any number of threads and any CPU instruction set.
        No logits: NaN, a mean over nothing, as in torch.
        Backends: native CPU kernel; on a GPU the quickest of CUDA C++ (where it was built), Triton's (not for float64)
            and ATen's; the reference elsewhere and under functorch transforms.

    Source: Goodfellow et al., Generative Adversarial Nets, 2014 (arXiv 1406.2661), equation 1.
    """
    return _loss("minimax_d_loss", real_logits, real_target, fake_logits, fake_target)[0]


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
    return _loss("minimax_g_loss", fake_logits, target, None, 0.0, scale)[0]


def hinge_d_loss(
    real_logits: Tensor, fake_logits: Tensor, *, real_target: float = 1.0, fake_target: float = 0.0
) -> Tensor:
    """Return the discriminator's hinge loss.

    loss = mean(hinge(real_logits, real_target)) + mean(hinge(fake_logits, fake_target)),
    hinge(x, t) = t * relu(1 - x) + (1 - t) * relu(1 + x).

    Args, Returns, Raises, Notes: as :func:`minimax_d_loss`. The slope at a kink is 0, as torch's relu has it.

    Source: Lim and Ye, Geometric GAN, 2017 (arXiv 1705.02894), equation 16; Miyato et al., 2018 (arXiv 1802.05957).
    """
    return _loss("hinge_d_loss", real_logits, real_target, fake_logits, fake_target, 1.0, "hinge")[0]


def hinge_g_loss(fake_logits: Tensor) -> Tensor:
    """Return the generator's loss beside :func:`hinge_d_loss`, -mean(fake_logits).

    Args, Returns, Raises, Notes: as :func:`minimax_g_loss`.
    """
    return _loss("hinge_g_loss", fake_logits, 1.0, None, 0.0, 1.0, "linear")[0]


def wasserstein_d_loss(
    real_logits: Tensor, fake_logits: Tensor, *, real_target: float = 1.0, fake_target: float = 0.0
) -> Tensor:
    """Return the critic's loss, mean(fake_logits) - mean(real_logits) at targets 1 and 0.

    loss = (1 - 2 * real_target) * mean(real_logits) + (1 - 2 * fake_target) * mean(fake_logits). What bounds the
    critic's slope (a gradient penalty, clipped weights) is not part of it.

    Args, Returns, Raises, Notes: as :func:`minimax_d_loss`.

    Source: Arjovsky et al., Wasserstein GAN, 2017 (arXiv 1701.07875), equation 2.
    """
    return _loss("wasserstein_d_loss", real_logits, real_target, fake_logits, fake_target, 1.0, "linear")[0]


def wasserstein_g_loss(fake_logits: Tensor) -> Tensor:
    """Return the generator's loss beside :func:`wasserstein_d_loss`, -mean(fake_logits).

    Args, Returns, Raises, Notes: as :func:`minimax_g_loss`.
    """
    return _loss("wasserstein_g_loss", fake_logits, 1.0, None, 0.0, 1.0, "linear")[0]


def least_squares_d_loss(
    real_logits: Tensor, fake_logits: Tensor, *, real_target: float = 1.0, fake_target: float = 0.0
) -> Tensor:
    """Return the discriminator's least-squares loss.

    loss = 1/2 mean((real_logits - real_target)^2) + 1/2 mean((fake_logits - fake_target)^2).

    Args, Returns, Raises, Notes: as :func:`minimax_d_loss`.

    Source: Mao et al., Least Squares Generative Adversarial Networks, 2016 (arXiv 1611.04076), equation 9.
    """
    return _loss("least_squares_d_loss", real_logits, real_target, fake_logits, fake_target, 1.0, "squared")[0]


def least_squares_g_loss(fake_logits: Tensor) -> Tensor:
    """Return the generator's loss beside :func:`least_squares_d_loss`, 1/2 mean((fake_logits - 1)^2).

    Args, Returns, Raises, Notes: as :func:`minimax_g_loss`.
    """
    return _loss("least_squares_g_loss", fake_logits, 1.0, None, 0.0, 1.0, "squared")[0]


def relativistic_d_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    average: bool = False,
    kind: str = "bce",
    real_target: float = 1.0,
    fake_target: float = 0.0,
) -> Tensor:
    """Return the discriminator's relativistic loss: real logits are judged against fake ones.

    paired (default): mean(phi(real_logits - fake_logits, real_target)), sample by sample, with one target;
    average: mean(phi(real_logits - mean(fake_logits), real_target)) + mean(phi(fake_logits - mean(real_logits),
    fake_target)); gradients flow through the means.

    Args:
        real_logits: D's logits for real samples, any shape, float64, float32, bfloat16 or float16.
        fake_logits: D's logits for generated samples, same dtype and device; where they are paired the same shape.
        average: which of the two.
        kind: phi: "bce", "hinge", "linear" or "squared", as in :func:`minimax_d_loss`, :func:`hinge_d_loss`,
            :func:`wasserstein_d_loss` and :func:`least_squares_d_loss`; "squared" asks a difference to be
            2 target - 1: 1 or -1, as RaLSGAN does.
        real_target: target of the first term, in [0, 1].
        fake_target: target of the second term, in [0, 1]; pairs have none, and it must be 0.

    Returns:
        As :func:`minimax_d_loss`.

    Raises:
        TypeError: wrong type or dtype, or two dtypes.
        ValueError: target outside [0, 1], another kind, two devices, pairs of different shapes or with a
            fake_target.

    Notes:
        As :func:`minimax_d_loss`.

    Source: Jolicoeur-Martineau, The relativistic discriminator, 2018 (arXiv 1807.00734), sections 4.2 and 4.3; Huang et
    al., The GAN is dead; long live the GAN!, 2024 (arXiv 2501.05441).
    """
    if not average and fake_target != 0:
        raise ValueError(
            f"relativistic_d_loss: expected fake_target 0 where average is False, got {fake_target!r}; "
            "pairs have one target, real_target"
        )
    relation = "average" if average else "paired"
    arguments = (real_logits, real_target, fake_logits, fake_target, 1.0, kind, relation)
    return _loss("relativistic_d_loss", *arguments)[0]


def relativistic_g_loss(
    real_logits: Tensor, fake_logits: Tensor, *, average: bool = False, kind: str = "bce"
) -> Tensor:
    """Return the generator's relativistic loss: :func:`relativistic_d_loss` with the roles of the batches swapped.

    paired (default): mean(phi(fake_logits - real_logits, 1));
    average: mean(phi(fake_logits - mean(real_logits), 1)) + mean(phi(real_logits - mean(fake_logits), 0)).

    Args, Returns, Raises, Notes, Source: as :func:`relativistic_d_loss`.
    """
    relation = "average" if average else "paired"
    return _loss("relativistic_g_loss", fake_logits, 1.0, real_logits, 0.0, 1.0, kind, relation)[0]
