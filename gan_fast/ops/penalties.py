"""Penalties on a critic's gradient with respect to its images, and losses that share passes with them.

Properties of all penalties:

- Derivatives are of any order, as far as the critic has them. Where a sample's gradient is zero, the penalty's gradient
  is zero, not NaN.
- While a penalty runs the critic, its convolutions, linear layers and (leaky) ReLUs are replaced by gan_fast's ops: the
  double backward then costs four passes of the critic instead of six. Compiled parts of the critic run eagerly, because
  torch.compile has no double backward; it cannot trace a penalty either, so call penalties outside compiled functions.
- Under autocast the critic runs in autocast's dtype, or in float32 if that is float16, whose range is too small for a
  gradient of a gradient. Interpolation, norms and penalty are in float32. With a gradient scaler, scale only the total
  loss that contains the penalty.
- Batch norm in training mode makes each sample's gradient depend on the whole batch. The penalty is exact but slower,
  and a warning is logged once.

docs/penalties.md derives the formulas and counts the passes.

>>> import torch
>>> from gan_fast import ops
>>> critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1))
>>> real, fake = torch.zeros(4, 3, 2, 2), torch.ones(4, 3, 2, 2)
>>> norm = critic[1].weight.norm()  # of the gradient, since the critic is linear
>>> bool(torch.isclose(ops.gradient_penalty(critic, real, fake), (norm - 1) ** 2))
True
>>> bool(torch.isclose(ops.r1_penalty(critic, real), norm**2 / 2))
True
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
    """Return WGAN-GP's penalty, which pulls the critic's gradient norm between real and fake samples to ``center``.

    penalty = mean_n c_n (||grad_x critic(x_n)||_2 - center)^2,  x_n = real_n + u_n (fake_n - real_n), with one
    u_n ~ U[0, 1) per sample and the norm over all elements of a sample. The paper's weight of 10 is not included.

    Args:
        critic: any function that maps images (N, ...) to (N, ...). With several outputs per sample (patches) the
            gradient is that of their sum. Pass a conditional critic as a closure over its labels.
        real: (N, ...), float64, float32, bfloat16 or float16; gets no gradient.
        fake: shape, dtype and device of ``real`` (any floating dtype under autocast); gets no gradient.
        center: gradient norm at which the penalty is zero, at least 0; 1 in WGAN-GP.
        coefficients: c_n, shape (N,); None means 1 for every sample.
        generator: random number generator for u, on the images' device; None means the default one.

    Returns:
        Scalar, differentiable with respect to the critic's parameters; float32, or float64 for float64 images.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, or a critic whose output does not depend on the images.
        RuntimeError: a call under torch.inference_mode.

    Notes:
        :mod:`gan_fast.ops.penalties` describes derivative order, speed, autocast and batch norm.

    Source: Gulrajani et al., Improved Training of Wasserstein GANs, 2017 (arXiv 1704.00028), section 4.
    """
    op = "gradient_penalty"
    checks.floating(op, "real", real)
    fake = checks.floating(op, "fake", fake).detach()
    checks.same_device(op, "fake", fake, "real", real)
    checks.shape(op, "fake", fake, tuple(real.shape))
    if dispatch.is_autocast_enabled(real.device.type):
        # Under autocast G's images have another dtype than real ones.
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
    """Return DRAGAN's penalty, which pulls the critic's gradient norm around real samples to ``center``.

    penalty = mean_n c_n (||grad_x critic(x_n)||_2 - center)^2,  x_n = real_n + u_n scale std(real) v_n, with one
    u_n ~ U[0, 1) per sample, one v ~ U[0, 1) per element, and std over all elements of ``real``.

    Args:
        critic: any function that maps images (N, ...) to (N, ...). With several outputs per sample (patches) the
            gradient is that of their sum. Pass a conditional critic as a closure over its labels.
        real: (N, ...), float64, float32, bfloat16 or float16; gets no gradient.
        center: gradient norm at which the penalty is zero, at least 0; 1 in DRAGAN.
        scale: largest perturbation in standard deviations, at least 0.
        coefficients: c_n, shape (N,); None means 1 for every sample.
        generator: random number generator for u and v, on the images' device; None means the default one.

    Returns:
        Scalar, differentiable with respect to the critic's parameters; float32, or float64 for float64 images.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, or a critic whose output does not depend on the images.
        RuntimeError: a call under torch.inference_mode.

    Notes:
        :mod:`gan_fast.ops.penalties` describes derivative order, speed, autocast and batch norm.

    Source: Kodali et al., On Convergence and Stability of GANs, 2017 (arXiv 1705.07215), and the authors' code.
    """
    op = "dragan_penalty"
    checks.floating(op, "real", real)
    _check_options(op, real, coefficients, center=center, scale=scale)
    points = perturb(real.detach(), scale=scale, generator=generator)
    return _penalty(op, critic, points, coefficients, center, 1.0)


def r1_penalty(critic: Critic, real: Tensor, *, coefficients: Tensor | None = None) -> Tensor:
    """Return the R1 penalty, 0.5 mean_n c_n ||grad_x critic(real_n)||_2^2.

    :func:`logits_and_r1` also returns the critic's logits at these images and saves two passes of the critic.

    Args:
        critic: any function that maps images (N, ...) to (N, ...). With several outputs per sample (patches) the
            gradient is that of their sum. Pass a conditional critic as a closure over its labels.
        real: (N, ...), float64, float32, bfloat16 or float16; gets no gradient.
        coefficients: c_n, shape (N,); None means 1 for every sample.

    Returns:
        Scalar, differentiable with respect to the critic's parameters; float32, or float64 for float64 images.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, or a critic whose output does not depend on the images.
        RuntimeError: a call under torch.inference_mode.

    Notes:
        :mod:`gan_fast.ops.penalties` describes derivative order, speed, autocast and batch norm.

    Source: Mescheder, Geiger and Nowozin, Which Training Methods for GANs do actually Converge?, 2018 (arXiv
    1801.04406), section 4.1.
    """
    op = "r1_penalty"
    checks.floating(op, "real", real)
    _check_options(op, real, coefficients)
    return _penalty(op, critic, real.detach(), coefficients, 0.0, 0.5)


def r2_penalty(critic: Critic, fake: Tensor, *, coefficients: Tensor | None = None) -> Tensor:
    """Return the R2 penalty, 0.5 mean_n c_n ||grad_x critic(fake_n)||_2^2: the R1 penalty at generated samples.

    Args:
        critic: any function that maps images (N, ...) to (N, ...). With several outputs per sample (patches) the
            gradient is that of their sum. Pass a conditional critic as a closure over its labels.
        fake: (N, ...), float64, float32, bfloat16 or float16; gets no gradient.
        coefficients: c_n, shape (N,); None means 1 for every sample.

    Returns:
        Scalar, differentiable with respect to the critic's parameters; float32, or float64 for float64 images.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, or a critic whose output does not depend on the images.
        RuntimeError: a call under torch.inference_mode.

    Notes:
        :mod:`gan_fast.ops.penalties` describes derivative order, speed, autocast and batch norm.

    Source: Mescheder, Geiger and Nowozin, Which Training Methods for GANs do actually Converge?, 2018 (arXiv
    1801.04406), section 4.1.
    """
    op = "r2_penalty"
    checks.floating(op, "fake", fake)
    _check_options(op, fake, coefficients)
    return _penalty(op, critic, fake.detach(), coefficients, 0.0, 0.5)


def logits_and_r1(critic: Critic, images: Tensor, *, coefficients: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return a critic's logits and the R1 penalty at the same images, whose gradients share passes of the critic.

    logits = critic(images), penalty = 0.5 mean_n c_n ||grad_x critic(images_n)||_2^2. The gradient of any loss of both
    costs four passes of the critic, where autograd takes six, if the critic

    - returns one logit per sample,
    - has no parameters other than weights and biases of convolutions and linear layers,
    - processes each sample separately (no batch norm, no minibatch statistics),
    - depends on the images in every layer.

    For any other critic the penalty takes six passes, and the reason is logged once.

    Args:
        critic: any function that maps images (N, ...) to (N, ...).
        images: (N, ...), float64, float32, bfloat16 or float16; real ones for R1, generated ones for R2. They get no
            gradient.
        coefficients: c_n, shape (N,); None means 1 for every sample.

    Returns:
        The logits, and the penalty as a scalar in float32, or float64 for float64 images.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or device, or a critic whose output does not depend on the images.
        RuntimeError: a call under torch.inference_mode.

    Notes:
        With a shared pass: losses may depend on the critic only through its logits, not through tensors that the critic
        stores elsewhere. Tensor hooks receive gradients for a logit gradient of 1 and must be linear. Derivatives are
        of first order; a second order raises NotImplementedError. Call backward once, on the sum of all losses: each
        further call repeats the passes. Memory holds the output gradient of every layer in addition to its input.

        Without a shared pass, derivatives are of any order. :mod:`gan_fast.ops.penalties` describes autocast.

    Source: docs/penalties.md derives the shared pass; Mescheder, Geiger and Nowozin, 2018 (arXiv 1801.04406), R1.
    """
    op = "logits_and_r1"
    checks.floating(op, "images", images)
    _check_options(op, images, coefficients)
    factors, recording = Factors(merged=True), torch.is_grad_enabled()
    with torch.enable_grad(), _without_float16(images.device.type):
        points = images.detach().requires_grad_()
        with critic_mode(critic), per_sample.recorded(factors):
            logits = _outputs(op, critic, points)
        reason = _obstacle(logits, points, factors) if recording else "gradients are disabled"
        if reason is not None and recording:
            _log_once(f"{op}: the penalty takes six passes of the critic instead of four, because {reason}")
        factors.merging = reason is None
        grads = _grads(op, logits, points, recording)
        factors.merging = False
        if reason is None:
            logits, grads = _MergeBackward.apply(logits, grads, factors)
    if not recording:
        logits = logits.detach()
    return logits, sample_norm_penalty(grads, coefficients, scale=0.5)[0]


def logits_for_both_players(critic: Critic, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return a critic's logits at generated images twice, for D's loss and for G's, whose gradients share one pass.

    Both tensors equal critic(images). A loss of the first gives gradients only to the critic's parameters, a loss of
    the second only to the images and thus to the generator: updating both players takes one forward and one backward
    pass of the critic. This is possible because inside the critic the gradients of the two losses differ by one factor
    per sample. The critic must be one that

    - returns one logit per sample,
    - has no parameters other than weights and biases of convolutions and linear layers,
    - processes each sample separately (no batch norm, no minibatch statistics),
    - depends on the images in every layer.

    Args:
        critic: any function that maps images (N, ...) to (N,) or (N, 1).
        images: (N, ...), float64, float32, bfloat16 or float16, generated; must require a gradient.

    Returns:
        The logits for the critic's loss and the logits for the generator's loss.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: images that require no gradient, or another kind of critic; the message gives the reason.
        RuntimeError: a call under torch.inference_mode.

    Notes:
        Losses may depend on the critic only through its logits, not through tensors that the critic stores elsewhere.
        Tensor hooks receive gradients for a logit gradient of 1 and must be linear. Derivatives are of first order; a
        second order raises NotImplementedError. Call backward once, on the sum of both losses.

    Source: docs/penalties.md.
    """
    op = "logits_for_both_players"
    checks.floating(op, "images", images)
    if not images.requires_grad or not torch.is_grad_enabled():
        raise ValueError(f"{op}: expected images that require a gradient, got images that do not")
    factors, image_factors = Factors(merged=False), Factors(merged=False)
    points = _ScaleImageGrad.apply(images, image_factors)
    with _without_float16(images.device.type), critic_mode(critic), per_sample.recorded(factors):
        logits = _outputs(op, critic, points)
    reason = _obstacle(logits, points, factors)
    if reason is not None:
        raise ValueError(f"{op}: expected a critic whose backward pass can be shared, got one that cannot: {reason}")
    first, second = _SplitLogits.apply(logits, factors, image_factors)
    return first, second


class _MergeBackward(torch.autograd.Function):
    """Logits and image gradients, unchanged. In backward the logits' gradients become factors of one shared pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, grads: Tensor, factors: Factors) -> tuple[Tensor, Tensor]:
        ctx.factors = factors
        ctx.set_materialize_grads(False)
        ctx.like = grads.detach()
        return logits.clone(), grads.view_as(grads)

    @staticmethod
    def backward(ctx: Any, grad_logits: Tensor | None, grad_grads: Tensor | None) -> tuple[None, Tensor | None, None]:
        ctx.factors.values = None if grad_logits is None else grad_logits.detach().flatten()
        if grad_grads is None and grad_logits is not None:
            # The gradient of the loss is computed on the pass of the image gradients, so that pass must run.
            grad_grads = torch.zeros_like(ctx.like)
        return None, grad_grads, None


class _SplitLogits(torch.autograd.Function):
    """Logits, twice. Their gradients become the factors of one backward pass with logit gradients of 1."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, factors: Factors, image_factors: Factors) -> tuple[Tensor, Tensor]:
        ctx.factors, ctx.image_factors = factors, image_factors
        return logits.clone(), logits.clone()

    @staticmethod
    def backward(ctx: Any, grad_first: Tensor, grad_second: Tensor) -> tuple[Tensor, None, None]:
        ctx.factors.values, ctx.image_factors.values = grad_first.detach().flatten(), grad_second.detach().flatten()
        return torch.ones_like(grad_first), None, None


class _ScaleImageGrad(torch.autograd.Function):
    """Images, unchanged. In backward each image's gradient is multiplied by its factor."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, image_factors: Factors) -> Tensor:
        ctx.image_factors = image_factors
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return ctx.image_factors.times(grad_output), None


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
                f"{op}: the critic has batch norm in training mode, so each sample's gradient depends on the whole "
                "batch; the penalty is exact, but the WGAN-GP paper advises against batch norm and suggests layer norm"
            )
        grads = _grads(op, outputs, points, recording)
    return sample_norm_penalty(grads, coefficients, center=center, scale=scale)[0]


def _obstacle(logits: Tensor, images: Tensor, factors: Factors) -> str | None:
    if backends.requested() == "reference":
        return "the reference backend is requested, which has no shared pass"
    return per_sample.obstacle(logits, images, factors)


def _outputs(op: str, critic: Critic, points: Tensor) -> Tensor:
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{op}: expected a call outside torch.inference_mode, got one inside it; use torch.no_grad instead, which "
            "lets the penalty compute the critic's gradient"
        )
    if not callable(critic):
        raise TypeError(f"{op}: expected critic type Module or a function, got {type(critic).__name__}")
    outputs = critic(points)
    if not isinstance(outputs, Tensor):
        raise TypeError(f"{op}: expected critic output type Tensor, got {type(outputs).__name__}")
    if outputs.dim() == 0 or len(outputs) % max(len(points), 1):
        raise ValueError(
            f"{op}: expected critic output with one or more values for each of {len(points)} samples, "
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
    """The gradient of the sum of all outputs with respect to the images."""
    if outputs.requires_grad:
        (grads,) = torch.autograd.grad(outputs.sum(), points, create_graph=recording, allow_unused=True)
        if grads is not None:
            result: Tensor = grads
            return result
    raise ValueError(f"{op}: expected a critic that depends on the images, got one whose output does not")


def _without_float16(device: str) -> AbstractContextManager[Any]:
    """Disable autocast to float16, whose range is too small for a gradient of a gradient."""
    if dispatch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


@functools.cache
def _log_once(line: str) -> None:
    backends.logger.warning("%s", line)
