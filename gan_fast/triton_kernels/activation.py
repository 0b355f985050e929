"""Activations of the values of a tile with their first and second derivatives; csrc/cpu/activation.h in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from gan_fast.choices import ACTIVATIONS

# Activation name -> the value of the kernels' ACTIVATION argument.
CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
# The activations whose second derivative is not zero.
CURVED = ("tanh", "sigmoid")

_IDENTITY: tl.constexpr = tl.constexpr(CODES["identity"])
_RELU: tl.constexpr = tl.constexpr(CODES["relu"])
_LEAKY_RELU: tl.constexpr = tl.constexpr(CODES["leaky_relu"])
_TANH: tl.constexpr = tl.constexpr(CODES["tanh"])


@triton.jit
def value(z, slope, ACTIVATION: tl.constexpr):
    """f(z). NaN propagates as in ATen, also through relu."""
    if ACTIVATION == _IDENTITY:
        return z
    elif ACTIVATION == _RELU:
        return tl.where(z < 0, 0.0, z)
    elif ACTIVATION == _LEAKY_RELU:
        return tl.where(z > 0, z, z * slope)
    elif ACTIVATION == _TANH:
        e = tl.exp(-2 * tl.abs(z))
        square = z * z
        # Near zero 1 - e would cancel, so the Taylor series is used.
        series = z * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
        far = (1 - e) / (1 + e)
        return tl.where(square < 0.04, series, tl.where(z < 0, -far, far))
    else:
        e = tl.exp(-tl.abs(z))
        return tl.where(z < 0, e, 1.0) / (1 + e)


@triton.jit
def slope_at(z, ACTIVATION: tl.constexpr):
    """f'(z) of tanh and sigmoid."""
    e = tl.exp((-2 if ACTIVATION == _TANH else -1) * tl.abs(z))
    return (4 if ACTIVATION == _TANH else 1) * e / ((1 + e) * (1 + e))


@triton.jit
def backward(grad, z, slope, ACTIVATION: tl.constexpr):
    """grad f'(z). The rectifiers select instead of multiplying, since an infinite grad times 0 would be NaN."""
    if ACTIVATION == _IDENTITY:
        return grad
    elif ACTIVATION == _RELU:
        return tl.where(z <= 0, 0.0, grad)
    elif ACTIVATION == _LEAKY_RELU:
        return tl.where(z > 0, grad, grad * slope)
    else:
        return grad * slope_at(z, ACTIVATION)


@triton.jit
def curvature(z, ACTIVATION: tl.constexpr):
    """f''(z) of tanh and sigmoid."""
    scale: tl.constexpr = -2.0 if ACTIVATION == _TANH else -1.0
    value_or_odd = value(z if ACTIVATION == _TANH else z / 2, 0.0, _TANH)  # sigmoid'' = -sigmoid' tanh(z / 2)
    return scale * value_or_odd * slope_at(z, ACTIVATION)
