// Activations and their first two derivatives, on vectors V = F32 or F64 of lanes.h.
#pragma once

#include <type_traits>

#include "../common/activation.h"
#include "lanes.h"
#include "macros.h"
#include "math.h"

namespace gan_fast {

// identity, relu and leaky_relu. NaN propagates as in ATen: relu returns it unchanged.
template <class V>
class PiecewiseLinear {
 public:
  static constexpr bool kCurved = false;

  PiecewiseLinear(Activation activation, double negative_slope)
      : slope_(static_cast<Scalar>(activation == Activation::leaky_relu ? negative_slope : 1.0)),
        is_relu_(activation == Activation::relu) {}

  GAN_FAST_INLINE V value(V z) const {
    const V zero{};
    return is_relu_ ? (z < zero ? zero : z) : (z > zero ? z : z * slope_);
  }

  // grad * f'(z). It selects instead of multiplying, as ATen does, since an infinite grad times 0 would be NaN.
  GAN_FAST_INLINE V backward(V grad, V z) const {
    const V zero{};
    return is_relu_ ? (z <= zero ? zero : grad) : (z > zero ? grad : grad * slope_);
  }

  GAN_FAST_INLINE V curvature(V) const { return V{}; }

 private:
  using Scalar = std::remove_reference_t<decltype(V{}[0])>;

  // Scalars, not vectors: kernels are passed between functions that are compiled for different vector widths.
  Scalar slope_;
  bool is_relu_;
};

// tanh and sigmoid, whose second derivative is not zero.
template <class V>
struct Curved {
  static constexpr bool kCurved = true;
  bool is_tanh;

  GAN_FAST_INLINE Curved(Activation activation, double) : is_tanh(activation == Activation::tanh) {}

  GAN_FAST_INLINE V value(V z) const {
    return narrow<V>(is_tanh ? math::tanh<V>(widen(z)) : math::sigmoid<V>(widen(z)));
  }

  GAN_FAST_INLINE V backward(V grad, V z) const {
    return grad * narrow<V>(is_tanh ? math::tanh_slope<V>(widen(z)) : math::sigmoid_slope<V>(widen(z)));
  }

  GAN_FAST_INLINE V curvature(V z) const {
    return narrow<V>(is_tanh ? math::tanh_curvature<V>(widen(z)) : math::sigmoid_curvature<V>(widen(z)));
  }
};

}  // namespace gan_fast
