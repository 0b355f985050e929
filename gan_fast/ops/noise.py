"""Random changes to images: interpolation, DRAGAN's perturbation and normal noise.

>>> import torch
>>> from gan_fast import ops
>>> real, fake = torch.zeros(3, 2), torch.ones(3, 2)
>>> points = ops.interpolate_samples(real, fake, generator=torch.Generator().manual_seed(0))
>>> bool((points[:, 0] == points[:, 1]).all())  # one position between real and fake per sample
True
>>> ops.add_noise(real, std=0.0).tolist()
[[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import checks, dispatch

INTERPOLATE, PERTURB, ADD_NOISE = "interpolate_samples", "perturb", "add_noise"
for _op in (INTERPOLATE, PERTURB, ADD_NOISE):
    backends.register(_op, None, triton_file="noise", random=True)


def _kernels(op: str, input: Tensor) -> ModuleType | None:
    """The module of Triton kernels for ``op``, or None if ATen is to compute it."""
    # A trace or a compiled graph must contain ATen's ops.
    if dispatch.is_traced() or not backends.uses_kernel(op, input.device.type, input.dtype):
        return None
    kernels = backends.triton_kernels(op, input)
    if kernels is None or backends.requested() != "auto":
        return kernels
    return kernels if backends.runs_on_triton(op, input, functools.partial(_trial, op, kernels, input)) else None


def _trial(op: str, kernels: ModuleType, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Results that do not depend on the random numbers (equal images, no noise), and the expected values."""
    x = torch.ones(2, 3, 16, 16, dtype=like.dtype, device=like.device)
    seed, zero = torch.zeros((), dtype=torch.int64, device=like.device), torch.zeros((), device=like.device)
    if op == INTERPOLATE:
        found = [kernels.interpolate(x, x, seed)[0]]
    elif op == PERTURB:
        found = [kernels.perturb(x, zero, seed, 0.5)]
    else:
        found = [kernels.add_noise(x, std, seed) for std in (0.0, zero)]
    return found, [x] * len(found)


def _seed(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """The kernels' seed, on the device: no host synchronization, and new numbers at each replay of a CUDA graph."""
    return torch.empty((), dtype=torch.int64, device=like.device).random_(generator=generator)


def _random_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of the random numbers: float32 for the half types, since bfloat16 has 256 values in [0, 1)."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _uniform_per_sample(like: Tensor, generator: torch.Generator | None) -> Tensor:
    shape = (like.size(0), *(1,) * (like.dim() - 1))
    return torch.rand(shape, dtype=_random_dtype(like), device=like.device, generator=generator)


def _empty_and_flat(like: Tensor) -> tuple[Tensor, Tensor]:
    """An empty tensor like ``like``, and a view of it in memory order, which ATen fills six times faster."""
    values = torch.empty_like(like, dtype=_random_dtype(like), requires_grad=False)
    return values, values.as_strided((values.numel(),), (1,))


def _check(op: str, argument: str, value: Tensor, generator: torch.Generator | None) -> None:
    checks.floating(op, argument, value)
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"{op}: expected generator type Generator, got {type(generator).__name__}")
    have, want = generator.device, value.device
    if have.type != want.type or (have.index or 0) != (want.index or 0):
        raise ValueError(f"{op}: expected generator device {want} to match {argument}, got {have}")


def _check_samples(op: str, argument: str, value: Tensor, generator: torch.Generator | None) -> None:
    _check(op, argument, value, generator)
    if value.dim() == 0:
        raise ValueError(f"{op}: expected {argument} dimensions at least 1 (N, ...), got shape ()")


class Interpolate(torch.autograd.Function):
    """interpolate_samples by a kernel. Its derivative is linear and uses ATen, so derivatives are of any order."""

    @staticmethod
    def forward(ctx: Any, real: Tensor, fake: Tensor, seed: Tensor, kernels: Any) -> Tensor:
        output: Tensor
        output, u = kernels.interpolate(real, fake, seed)
        ctx.save_for_backward(u.view(-1, *(1,) * (real.dim() - 1)))
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        (u,) = ctx.saved_tensors
        if grad_output is None:
            return (None,) * 4
        grad_real, grad_fake = (
            (grad_output * weight).to(grad_output.dtype) if needed else None
            for weight, needed in zip((1 - u, u), ctx.needs_input_grad)
        )
        return grad_real, grad_fake, None, None


def interpolate_samples(real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Return a uniformly drawn point between each real image and the fake one at the same index.

    output_n = real_n + u_n (fake_n - real_n), with one u_n ~ U[0, 1) for all elements of sample n.

    Args:
        real: (N, ...), float64, float32, bfloat16 or float16, any strides.
        fake: shape, dtype and device of ``real``.
        generator: random number generator on the images' device; None means the device's default one.

    Returns:
        Tensor of the shape and dtype of ``real``; exactly ``real`` where u_n is 0.

    Raises:
        TypeError: a wrong type or dtype, or two dtypes.
        ValueError: two shapes or devices, no dimensions, or a generator on another device.

    Notes:
        Derivatives: with respect to real and fake, of any order.
        Arithmetic: float32 for the half types.
        Backends: ATen; on a GPU a Triton kernel (not for float64), which draws other numbers from the same seed. The
            kernel is tried before anything is drawn; if it fails, a warning is logged and ATen is used.

    Source: Gulrajani et al., Improved Training of Wasserstein GANs, 2017 (arXiv 1704.00028), algorithm 1.
    """
    op = INTERPOLATE
    _check_samples(op, "real", real, generator)
    checks.floating(op, "fake", fake)
    checks.same_device(op, "fake", fake, "real", real)
    if fake.shape != real.shape:
        raise ValueError(f"{op}: expected fake shape {tuple(real.shape)} to match real, got {tuple(fake.shape)}")
    if fake.dtype != real.dtype:
        have, want = checks.name_of(fake.dtype), checks.name_of(real.dtype)
        raise TypeError(f"{op}: expected fake dtype {want} to match real, got {have}")
    kernels = _kernels(op, real)
    output: Tensor
    if kernels is not None:
        output = Interpolate.apply(real, fake, _seed(real, generator), kernels)
        return output
    u = _uniform_per_sample(real, generator)
    return torch.lerp(real.to(u.dtype), fake.to(u.dtype), u).to(real.dtype)


def perturb(real: Tensor, *, scale: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
    """Return a random point near each real image, at which DRAGAN takes its gradient penalty.

    output_n = real_n + u_n scale std(real) v_n, with one u_n ~ U[0, 1) per sample and one v ~ U[0, 1) per element;
    std(real) is the unbiased standard deviation over all elements of all samples.

    Args:
        real: (N, ...), float64, float32, bfloat16 or float16, any strides.
        scale: largest distance of an element, in standard deviations.
        generator: random number generator on the images' device; None means the device's default one.

    Returns:
        Tensor of the shape and dtype of ``real``, without gradient.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: no dimensions, or a generator on another device.

    Notes:
        A single element gives NaN, like ``torch.std``. The standard deviation stays on the device.
        Arithmetic: float32 for the half types.
        Backends: ATen; on a GPU a Triton kernel (not for float64), which draws other numbers from the same seed. The
            kernel is tried before anything is drawn; if it fails, a warning is logged and ATen is used.

    Source: Kodali et al., On Convergence and Stability of GANs, 2017 (arXiv 1705.07215), and the authors' code.
    """
    _check_samples(PERTURB, "real", real, generator)
    checks.number(PERTURB, "scale", scale)
    kernels = _kernels(PERTURB, real)
    real = real.detach()
    if real.numel() == 0:
        return torch.empty_like(real)
    std = real.std()
    if kernels is not None:
        output: Tensor = kernels.perturb(real, std, _seed(real, generator), float(scale))
        return output
    factor = _uniform_per_sample(real, generator) * (std * float(scale))
    noise, flat = _empty_and_flat(real)
    flat.uniform_(generator=generator)
    return noise.mul_(factor).add_(real).to(real.dtype)


class AddNoise(torch.autograd.Function):
    """add_noise by a kernel; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, std: float | Tensor, seed: Tensor, kernels: Any) -> Tensor:
        output: Tensor = kernels.add_noise(input, std, seed)
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        return grad_output, None, None, None


def add_noise(input: Tensor, std: float | Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Return images with normal noise added, such as the instance noise of a discriminator's input.

    output = input + std z, with one z ~ N(0, 1) per element.

    Args:
        input: any shape and strides, float64, float32, bfloat16 or float16.
        std: standard deviation, at least 0: a float, or a tensor without dimensions on the device of ``input``, which a
            schedule may overwrite between two replays of a CUDA graph.
        generator: random number generator on the images' device; None means the device's default one.

    Returns:
        Tensor of the shape and dtype of ``input``.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a std below 0, of another shape or device or requiring a gradient; a generator on another device.

    Notes:
        Derivatives: the gradient of ``input`` equals that of the output; std has none.
        Arithmetic: float32 for the half types.
        Backends: ATen; on a GPU a Triton kernel (not for float64), which draws other numbers from the same seed. The
            kernel is tried before anything is drawn; if it fails, a warning is logged and ATen is used.

    Source: Sonderby et al., Amortised MAP Inference for Image Super-resolution, 2017 (arXiv 1610.04490), section 4;
        Arjovsky and Bottou, Towards Principled Methods for Training GANs, 2017 (arXiv 1701.04862), section 3.
    """
    op = ADD_NOISE
    _check(op, "input", input, generator)
    if isinstance(std, Tensor):
        checks.floating(op, "std", std)
        checks.same_device(op, "std", std, "input", input)
        checks.shape(op, "std", std, ())
        if std.requires_grad:
            raise ValueError(
                f"{op}: expected a std that does not require grad, got one that does: add_noise has no gradient for std"
            )
    else:
        checks.number(op, "std", std)
        if not std >= 0:
            raise ValueError(f"{op}: expected std at least 0, got {std!r}")
    kernels = _kernels(op, input)
    if kernels is not None:
        output: Tensor = AddNoise.apply(input, std, _seed(input, generator), kernels)
        return output
    noise, flat = _empty_and_flat(input)
    if isinstance(std, Tensor):
        flat.normal_(generator=generator).mul_(std)
    else:
        flat.normal_(0.0, float(std), generator=generator)
    return noise.add_(input).to(input.dtype)
