// The activations of csrc/cpu/activation.h and their first two derivatives, on scalars.
#pragma once

#include "../common/activation.h"
#include "scalar.cuh"

namespace gan_fast::cuda {

template <class A>
__device__ inline A sigmoid_slope(A x) {
  // In terms of e the slope keeps its relative precision where y (1 - y) cancels.
  const A e = std::exp(-std::abs(x));
  return e / ((1 + e) * (1 + e));
}

// identity, relu and leaky_relu: two slopes. NaN takes the branch it takes in ATen: through for relu, scaled for
// leaky_relu.
template <class A>
struct PiecewiseLinear {
  A slope;
  bool is_relu;

  PiecewiseLinear(Activation activation, double negative_slope)
      : slope(static_cast<A>(activation == Activation::leaky_relu ? negative_slope : 1.0)),
        is_relu(activation == Activation::relu) {}

  __device__ A value(A z) const { return is_relu ? (z < 0 ? A{0} : z) : (z > 0 ? z : z * slope); }

  // grad * f'(z). Selecting instead of multiplying keeps an infinite grad out of relu's dead half, as in ATen.
  __device__ A backward(A grad, A z) const { return is_relu ? (z <= 0 ? A{0} : grad) : (z > 0 ? grad : grad * slope); }

  __device__ A curvature(A) const { return 0; }
  __device__ static constexpr bool is_curved() { return false; }
};

template <class A>
struct Curved {
  bool is_tanh;

  Curved(Activation activation, double) : is_tanh(activation == Activation::tanh) {}

  __device__ A value(A z) const {
    if (is_tanh) return std::tanh(z);
    const A e = std::exp(-std::abs(z));
    return (z < 0 ? e : A{1}) / (1 + e);
  }

  __device__ A backward(A grad, A z) const { return grad * (is_tanh ? 4 * sigmoid_slope<A>(2 * z) : sigmoid_slope(z)); }

  // sigmoid'' = -tanh(x / 2) sigmoid', tanh'' = -2 tanh tanh'.
  __device__ A curvature(A z) const {
    return is_tanh ? -8 * std::tanh(z) * sigmoid_slope<A>(2 * z) : -std::tanh(z / 2) * sigmoid_slope(z);
  }

  __device__ static constexpr bool is_curved() { return true; }
};

// Either, where a kernel for each would be more than it is worth.
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
