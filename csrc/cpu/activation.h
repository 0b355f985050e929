// Activations and their first two derivatives on vectors of lanes; V is F32 or F64.
#pragma once

#include <type_traits>

#include "../common/activation.h"
#include "lanes.h"
#include "macros.h"
#include "math.h"

namespace gan_fast {

// identity, relu and leaky_relu: two slopes. NaN takes the branch it takes in ATen: through for relu, scaled for
// leaky_relu.
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

  // grad * f'(z). Selecting instead of multiplying keeps an infinite grad out of relu's dead half, as in ATen.
  GAN_FAST_INLINE V backward(V grad, V z) const {
    const V zero{};
    return is_relu_ ? (z <= zero ? zero : grad) : (z > zero ? grad : grad * slope_);
  }

  GAN_FAST_INLINE V curvature(V) const { return V{}; }

 private:
  using Scalar = std::remove_reference_t<decltype(V{}[0])>;

  // Scalars, not vectors: kernels are handed between functions compiled for different vector widths.
  Scalar slope_;
  bool is_relu_;
};

// tanh and sigmoid.
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
