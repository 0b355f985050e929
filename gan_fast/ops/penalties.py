"""Penalties on a critic's gradient by its images, and what shares a pass through the critic with them.

docs/penalties.md derives them and counts what they cost.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import checks, dispatch, per_sample
from gan_fast.ops.critic_mode import critic_mode
from gan_fast.ops.noise import interpolate_samples, perturb
from gan_fast.ops.per_sample import Factors
from gan_fast.ops.sample_norm_penalty import sample_norm_penalty

Critic = Callable[[Tensor], Tensor]


def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    center: float = 1.0,
    coefficients: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return WGAN-GP's penalty of a critic whose gradient norm, between real and fake samples, is not ``center``.

    penalty = mean_n c_n (||grad_x critic(x_n)||_2 - center)^2,  x_n = real_n + u_n (fake_n - real_n),
    u_n ~ U[0, 1), one a sample; the norm is over all elements of a sample. Unweighted: Gulrajani et al. take it ten
    times.

    Args:
        critic: any function of images: (N, ...) to (N, ...); of several outputs a sample (patches) the gradient is that
            of their sum. A conditional critic comes as a closure over its labels. May have batch norm, compiled parts.
        real: (N, ...), float64, float32, bfloat16 or float16.
        fake: as real in shape, dtype (any, under autocast) and device. Neither gets a gradient.
        center: 1, or 0 for a zero-centered penalty.
        coefficients: c_n, (N,), or None for 1 each.
        generator: of u.

    Returns:
        Scalar tensor, differentiable by the critic's parameters; float32, or float64 for float64 images.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape or device; a critic whose output does not depend on the images.

    Notes:
        Derivatives: any order, where the critic has them. Where a gradient is zero, so is the penalty's, not NaN.
        Speed: while the penalty runs the critic, its convolutions, linear layers and (leaky) ReLUs are ours, whose
            double backward costs four passes of the critic instead of six. Compiled parts run eagerly meanwhile:
            torch.compile has no double backward. Nor can it trace a penalty: call it outside of compiled functions.
        Under autocast: the critic runs as autocast has it, in float16 in float32; interpolation, norms and penalty do
            not leave float32. With a gradient scaler: scale the loss that the penalty is added to, nothing else.
        Batch norm in training mode makes every gradient depend on the whole batch, which the paper advises against:
            exact here, slower, and said once.

    Source: Gulrajani et al., Improved Training of Wasserstein GANs, 2017 (arXiv 1704.00028), section 4.
    """
    op = "gradient_penalty"
    checks.floating(op, "real", real)
    fake = checks.floating(op, "fake", fake).detach()
    checks.same_device(op, "fake", fake, "real", real)
    checks.shape(op, "fake", fake, tuple(real.shape))
    if dispatch.is_autocast_enabled(real.device.type):
        # There generators return another dtype than data have.
        fake = fake.to(real.dtype)
    checks.dtype(op, "fake", fake, real.dtype)
    _check_options(op, real, coefficients, center=center)
    points = interpolate_samples(real.detach(), fake, generator=generator)
    return _penalty(op, critic, points, coefficients, center, 1.0)


def dragan_penalty(
    critic: Critic,
    real: Tensor,
    *,
    center: float = 1.0,
    scale: float = 0.5,
    coefficients: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return DRAGAN's penalty of a critic whose gradient norm, around real samples, is not ``center``.

    As :func:`gradient_penalty`, at x_n = real_n + u_n scale std(real) v_n, u_n ~ U[0, 1) one a sample and v_n ~ U[0, 1)
    one an element.

    Args:
        critic, real, center, coefficients, generator: as :func:`gradient_penalty`.
        scale: of the noise, in standard deviations of all of ``real``.

    Returns, Raises, Notes: as :func:`gradient_penalty`.

    Source: Kodali et al., On Convergence and Stability of GANs, 2017 (arXiv 1705.07215), and the authors' code.
    """
    op = "dragan_penalty"
    checks.floating(op, "real", real)
    _check_options(op, real, coefficients, center=center, scale=scale)
    points = perturb(real.detach(), scale=scale, generator=generator)
    return _penalty(op, critic, points, coefficients, center, 1.0)


def r1_penalty(critic: Critic, real: Tensor, *, coefficients: Tensor | None = None) -> Tensor:
    """Return the R1 penalty of a critic that is not flat at real samples: 0.5 mean_n c_n ||grad_x critic(real_n)||_2^2.

    Args:
        critic, coefficients: as :func:`gradient_penalty`.
        real: (N, ...), float64, float32, bfloat16 or float16; gets no gradient.

    Returns, Raises, Notes: as :func:`gradient_penalty`. Beside a loss at the same images :func:`logits_and_r1` saves
        two passes of the critic more.

    Source: Mescheder, Geiger and Nowozin, 2018 (arXiv 1801.04406), section 4.1.
    """
    op = "r1_penalty"
    checks.floating(op, "real", real)
    _check_options(op, real, coefficients)
    return _penalty(op, critic, real.detach(), coefficients, 0.0, 0.5)


def r2_penalty(critic: Critic, fake: Tensor, *, coefficients: Tensor | None = None) -> Tensor:
    """Return the R2 penalty: :func:`r1_penalty` at generated samples, which get no gradient."""
    op = "r2_penalty"
    checks.floating(op, "fake", fake)
    _check_options(op, fake, coefficients)
    return _penalty(op, critic, fake.detach(), coefficients, 0.0, 0.5)


def logits_and_r1(critic: Critic, images: Tensor, *, coefficients: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return a critic's logits and the R1 penalty at the same images, whose gradients share their passes.

    logits = critic(images), penalty = :func:`r1_penalty` ``(critic, images)``; any loss of the two is differentiated in
    four passes of the critic instead of autograd's six, to the same gradients, where the critic

    - gives one logit a sample, and its parameters are weights and biases of convolutions and linear layers,
    - does not look at two samples at once (batch norm, minibatch statistics),
    - sees the images in every layer.

    Else the penalty takes the general way; what stands against the quick one is logged once.

    Args:
        critic: as :func:`gradient_penalty`.
        images: (N, ...), real ones for R1, generated ones for R2; get no gradient.
        coefficients: c_n of the penalty, (N,), or None for 1 each.

    Returns:
        The logits, and the penalty as :func:`r1_penalty` returns it.

    Raises:
        As :func:`gradient_penalty`.

    Notes:
        What the critic computes must reach the loss by its logits: tensors that it keeps aside are not for losses.
        Hooks of tensors see cotangents of one, and must be linear.
        Derivatives: first order on the quick way, where a second one raises; any on the general one. Backward is to be
        called once on the sum of all that is made of the two: twice, it takes the passes twice.
        Under autocast: as :func:`gradient_penalty`.
        Memory: on the quick way the cotangents of every layer beside its input.
    """
    op = "logits_and_r1"
    checks.floating(op, "images", images)
    _check_options(op, images, coefficients)
    factors, recording = Factors(merged=True), torch.is_grad_enabled()
    with torch.enable_grad(), _without_float16(images.device.type):
        points = images.detach().requires_grad_()
        with critic_mode(critic), per_sample.recorded(factors):
            logits = _outputs(op, critic, points)
        reason = _obstacle(logits, points, factors) if recording else "gradients are not enabled"
        if reason is not None and recording:
            _log_once(f"{op}: six passes of the critic instead of four, because {reason}")
        factors.merging = reason is None
        grads = _grads(op, logits, points, recording)
        factors.merging = False
        if reason is None:
            logits, grads = _Merged.apply(logits, grads, factors)
    if not recording:
        logits = logits.detach()
    return logits, sample_norm_penalty(grads, coefficients, scale=0.5)[0]


def logits_for_both(critic: Critic, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return a critic's logits twice, for a loss of the critic and one of the images, whose gradients share a pass.

    Both are critic(images). What is made of the first gives gradients to the critic's parameters alone, what is made of
    the second to the images alone (and so to the generator behind them): a step of both players walks the critic
    forward and backward once. The losses' cotangents in the critic differ by a number a sample.

    Args:
        critic: as :func:`logits_and_r1` asks of it for the quick way.
        images: (N, ...), generated; require a gradient.

    Returns:
        Logits for the critic's loss, and logits for the generator's.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: images that need no gradient; a critic that couples samples or is not of that kind; the message says
            why.

    Notes:
        As :func:`logits_and_r1`, on what the critic keeps aside and on hooks.
        Derivatives: first order; a second one raises. Backward is to be called once on the sum of both losses.

    Source: docs/penalties.md.
    """
    op = "logits_for_both"
    checks.floating(op, "images", images)
    if not images.requires_grad or not torch.is_grad_enabled():
        raise ValueError(f"{op}: expected images that require a gradient, got images that do not")
    factors, by_images = Factors(merged=False), Factors(merged=False)
    points = _ForImages.apply(images, by_images)
    with _without_float16(images.device.type), critic_mode(critic), per_sample.recorded(factors):
        logits = _outputs(op, critic, points)
    reason = _obstacle(logits, points, factors)
    if reason is not None:
        raise ValueError(f"{op}: expected critic one that takes each sample by itself, got one where {reason}")
    first, second = _ForBoth.apply(logits, factors, by_images)
    return first, second


class _Merged(torch.autograd.Function):
    """Logits and gradients, as they are; the logits' cotangents become the factors of the gradients' pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, grads: Tensor, factors: Factors) -> tuple[Tensor, Tensor]:
        ctx.factors = factors
        ctx.set_materialize_grads(False)
        ctx.like = grads.detach()
        return logits.clone(), grads.view_as(grads)

    @staticmethod
    def backward(ctx: Any, by_logits: Tensor | None, by_grads: Tensor | None) -> tuple[None, Tensor | None, None]:
        ctx.factors.values = None if by_logits is None else by_logits.detach().flatten()
        if by_grads is None and by_logits is not None:
            # The gradients' pass brings the loss's on its way.
            by_grads = torch.zeros_like(ctx.like)
        return None, by_grads, None


class _ForBoth(torch.autograd.Function):
    """Logits, twice; their cotangents become factors of what the one pass with cotangents of one gives."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, factors: Factors, by_images: Factors) -> tuple[Tensor, Tensor]:
        ctx.factors, ctx.by_images = factors, by_images
        return logits.clone(), logits.clone()

    @staticmethod
    def backward(ctx: Any, by_first: Tensor, by_second: Tensor) -> tuple[Tensor, None, None]:
        ctx.factors.values, ctx.by_images.values = by_first.detach().flatten(), by_second.detach().flatten()
        return torch.ones_like(by_first), None, None


class _ForImages(torch.autograd.Function):
    """Images, as they are; their cotangents take factors."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, by_images: Factors) -> Tensor:
        ctx.by_images = by_images
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return ctx.by_images.times(grad_output), None


def _penalty(
    op: str, critic: Critic, points: Tensor, coefficients: Tensor | None, center: float, scale: float
) -> Tensor:
    recording = torch.is_grad_enabled()
    with torch.enable_grad(), _without_float16(points.device.type):
        points = points.detach().requires_grad_()
        with critic_mode(critic):
            outputs = _outputs(op, critic, points)
        if center != 0 and per_sample.normalizes_batch(outputs, len(points)):
            _log_once(
                f"{op}: the critic normalises over its batch, so that a sample's gradient depends on the others: exact "
                "here, but WGAN-GP advises against it (instance or layer norm keep samples apart)"
            )
        grads = _grads(op, outputs, points, recording)
    return sample_norm_penalty(grads, coefficients, center=center, scale=scale)[0]


def _obstacle(logits: Tensor, images: Tensor, factors: Factors) -> str | None:
    if backends.requested() == "reference":
        return "the reference is asked for, whose layers know of no factors"
    return per_sample.obstacle(logits, images, factors)


def _outputs(op: str, critic: Critic, points: Tensor) -> Tensor:
    if torch.is_inference_mode_enabled():
        raise RuntimeError(f"{op}: expected no torch.inference_mode around it, got it; torch.no_grad will do")
    outputs = critic(points)
    if not isinstance(outputs, Tensor):
        raise TypeError(f"{op}: expected critic output type Tensor, got {type(outputs).__name__}")
    if outputs.dim() == 0 or len(outputs) % max(len(points), 1):
        raise ValueError(
            f"{op}: expected critic output one or more values for each of {len(points)} samples, "
            f"got shape {tuple(outputs.shape)}"
        )
    return outputs


def _check_options(op: str, images: Tensor, coefficients: Tensor | None, **numbers: float) -> None:
    if coefficients is not None:
        checks.floating(op, "coefficients", coefficients)
        checks.same_device(op, "coefficients", coefficients, "images", images)
        checks.shape(op, "coefficients", coefficients, tuple(images.shape[:1]))
    for name, value in numbers.items():
        checks.in_range(op, name, value, 0, math.inf)


def _grads(op: str, outputs: Tensor, points: Tensor, recording: bool) -> Tensor:
    """The gradient of the sum of all outputs by the images."""
    if outputs.requires_grad:
        (grads,) = torch.autograd.grad(outputs.sum(), points, create_graph=recording, allow_unused=True)
        if grads is not None:
            result: Tensor = grads
            return result
    raise ValueError(f"{op}: expected critic a function of the images, got one whose output does not depend on them")


def _without_float16(device: str) -> AbstractContextManager[Any]:
    """What float16's range leaves of a gradient of a gradient is no gradient: there the critic runs in float32."""
    if dispatch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


@functools.cache
def _log_once(line: str) -> None:
    backends.logger.warning("%s", line)
