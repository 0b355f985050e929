// Activations and their first two derivatives on vectors of lanes; V is F32 or F64.
#pragma once

#include <string_view>

#include "../cpu/lanes.h"
#include "macros.h"
#include "math.h"

namespace gan_fast {

enum class Activation { identity, relu, leaky_relu, tanh, sigmoid };

// gan_fast/ops/activation.py has the same names and checks them first.
inline bool parse_activation(std::string_view name, Activation* activation) {
  constexpr std::string_view names[] = {"identity", "relu", "leaky_relu", "tanh", "sigmoid"};
  for (int i = 0; i < 5; ++i) {
    if (name == names[i]) {
      *activation = static_cast<Activation>(i);
      return true;
    }
  }
  return false;
}

inline bool is_curved(Activation activation) {
  return activation == Activation::tanh || activation == Activation::sigmoid;
}

// Comparisons are arranged so that NaN takes the branch it takes in ATen: through, not to zero.
template <class V>
GAN_FAST_INLINE V activate(Activation activation, V z, V negative_slope) {
  const V zero{};
  switch (activation) {
    case Activation::relu:
      return z < zero ? zero : z;
    case Activation::leaky_relu:
      return z > zero ? z : z * negative_slope;
    case Activation::tanh:
      return narrow<V>(math::tanh(widen(z)));
    case Activation::sigmoid:
      return narrow<V>(math::sigmoid(widen(z)));
    default:
      return z;
  }
}

// grad * f'(z). Selecting instead of multiplying keeps an infinite grad out of relu's dead half, as in ATen.
template <class V>
GAN_FAST_INLINE V activate_backward(Activation activation, V grad, V z, V negative_slope) {
  const V zero{};
  switch (activation) {
    case Activation::relu:
      return z <= zero ? zero : grad;
    case Activation::leaky_relu:
      return z > zero ? grad : grad * negative_slope;
    case Activation::tanh:
      return grad * narrow<V>(math::tanh_slope(widen(z)));
    case Activation::sigmoid:
      return grad * narrow<V>(math::sigmoid_slope(widen(z)));
    default:
      return grad;
  }
}

// f''(z), zero almost everywhere for the piecewise linear ones.
template <class V>
GAN_FAST_INLINE V second_derivative(Activation activation, V z) {
  if (activation == Activation::tanh) return narrow<V>(math::tanh_curvature(widen(z)));
  if (activation == Activation::sigmoid) return narrow<V>(math::sigmoid_curvature(widen(z)));
  return V{};
}

}  // namespace gan_fast
