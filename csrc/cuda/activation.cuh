// The activations of csrc/cpu/activation.h and their first two derivatives, on scalars.
#pragma once

#include "../common/activation.h"
#include "scalar.cuh"

namespace gan_fast::cuda {

// tanh z and its derivative 1 - tanh^2 z.
template <class A>
struct Tanh {
  A value, slope;

  __device__ explicit Tanh(A z) {
    // rest = 1 - |tanh z| = 2 e / (1 + e) keeps its relative precision where 1 - tanh^2 z cancels. `missing` corrects
    // the rounding errors of 1 + e and of the quotient, which would otherwise remain in tanh.
    const A e = std::exp(-2 * std::abs(z)), sum = 1 + e, inverse = 1 / sum;
    const A quotient = 2 * e * inverse;
    const A missing = std::fma(-quotient, sum, 2 * e) - quotient * (e - (sum - 1));
    const A rest = std::fma(missing, inverse, quotient);
    if constexpr (std::is_same_v<A, double>) {
      value = std::tanh(z);
      slope = rest * (2 - rest);
    } else {
      // Near zero 1 - rest would cancel, so a minimax polynomial is used. Its error is below 1e-9.
      constexpr float kTerms[] = {-0.33333322f, 0.13332951f, -0.05391756f, 0.02155583f, -0.00785255f, 0.00187273f};
      const A square = z * z;
      const bool near = square < 0.5f;
      A series = kTerms[5];
#pragma unroll
      for (int i = 4; i >= 0; --i) series = std::fma(series, square, kTerms[i]);
      value = near ? std::fma(z * square, series, z) : std::copysign(1 - rest, z);
      slope = near ? std::fma(-value, value, A{1}) : rest * (2 - rest);
    }
  }
};

// identity, relu and leaky_relu. NaN propagates as in ATen: relu returns it unchanged.
template <class A>
struct PiecewiseLinear {
  A slope;
  bool is_relu;

  PiecewiseLinear(Activation activation, double negative_slope)
      : slope(static_cast<A>(activation == Activation::leaky_relu ? negative_slope : 1.0)),
        is_relu(activation == Activation::relu) {}

  __device__ A value(A z) const { return is_relu ? (z < 0 ? A{0} : z) : (z > 0 ? z : z * slope); }

  // grad * f'(z). It selects instead of multiplying, as ATen does, since an infinite grad times 0 would be NaN.
  __device__ A backward(A grad, A z) const { return is_relu ? (z <= 0 ? A{0} : grad) : (z > 0 ? grad : grad * slope); }

  __device__ A curvature(A) const { return 0; }
  __device__ static constexpr bool is_curved() { return false; }
};

// tanh and sigmoid, whose second derivative is not zero.
template <class A>
struct Curved {
  bool is_tanh;

  Curved(Activation activation, double) : is_tanh(activation == Activation::tanh) {}

  __device__ A value(A z) const {
    if (is_tanh) return Tanh<A>(z).value;
    const A e = std::exp(-std::abs(z));
    return (z < 0 ? e : A{1}) / (1 + e);
  }

  // sigmoid z = (1 + tanh(z / 2)) / 2.
  __device__ A backward(A grad, A z) const { return grad * (is_tanh ? Tanh<A>(z).slope : Tanh<A>(z / 2).slope / 4); }

  __device__ A curvature(A z) const {
    const Tanh<A> tanh(is_tanh ? z : z / 2);
    return (is_tanh ? A{-2} : A{-0.25}) * tanh.value * tanh.slope;
  }

  __device__ static constexpr bool is_curved() { return true; }
};

// Selects at run time, for kernels where two compiled versions are not worth it.
template <class A>
struct AnyActivation {
  PiecewiseLinear<A> linear;
  Curved<A> curve;
  bool curved;

  AnyActivation(Activation activation, double negative_slope)
      : linear(activation, negative_slope),
        curve(activation, negative_slope),
        curved(gan_fast::is_curved(activation)) {}

  __device__ A value(A z) const { return curved ? curve.value(z) : linear.value(z); }
  __device__ A backward(A grad, A z) const { return curved ? curve.backward(grad, z) : linear.backward(grad, z); }
  __device__ A curvature(A z) const { return curved ? curve.curvature(z) : linear.curvature(z); }
  __device__ bool is_curved() const { return curved; }
};

}  // namespace gan_fast::cuda
