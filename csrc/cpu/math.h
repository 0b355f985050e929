// exp, log1p, sigmoid and tanh with the derivatives of the last two, for vectors of lanes in double precision.
//
// Float lanes go through double: results are then right to the last bit but one, which activations fused behind other
// arithmetic need to stay within twice ATen's error, and memory, not arithmetic, bounds the kernels all the same.
// Everything here needs exp only of a non-positive argument, so nothing can overflow.
#pragma once

#include "lanes.h"
#include "macros.h"

namespace gan_fast::math {

using I64 = int64_t __attribute__((vector_size(64)));

// e^x = 2^n (1 + p) for x <= 0; NaN makes p NaN.
struct Exp {
  F64 p;
  I64 n;
};

GAN_FAST_INLINE Exp split_exp(F64 x) {
  constexpr double kLog2e = 1.4426950408889634074;
  constexpr double kLn2High = 6.93147180369123816490e-01;  // the low 32 bits are zero: exact product with any n here
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  constexpr double kUnderflow = -746.0;          // e^-746 is below half the smallest subnormal
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer in the low bits
  x = x < kUnderflow ? F64{} + kUnderflow : x;
  const F64 shifted = x * kLog2e + kRound;
  const F64 n = shifted - kRound;
  const F64 r = (x - n * kLn2High) - n * kLn2Low;
  // (e^r - 1 - r) / r^2 for |r| <= ln2 / 2, Taylor to the last bit.
  F64 q = r * (1.0 / 6227020800) + 1.0 / 479001600;
  q = q * r + 1.0 / 39916800;
  q = q * r + 1.0 / 3628800;
  q = q * r + 1.0 / 362880;
  q = q * r + 1.0 / 40320;
  q = q * r + 1.0 / 5040;
  q = q * r + 1.0 / 720;
  q = q * r + 1.0 / 120;
  q = q * r + 1.0 / 24;
  q = q * r + 1.0 / 6;
  q = q * r + 1.0 / 2;
  return {r + r * r * q, bit_cast<I64>(shifted) - bit_cast<I64>(F64{} + kRound)};
}

GAN_FAST_INLINE F64 power_of_two(I64 n) { return bit_cast<F64>((n + 1023) << 52); }

GAN_FAST_INLINE F64 exp_nonpositive(F64 x) {
  const Exp e = split_exp(x);
  // n reaches -1076, past the smallest normal exponent: scale in two halves.
  const I64 half = e.n >> 1;
  return (1.0 + e.p) * power_of_two(half) * power_of_two(e.n - half);
}

// e^x - 1 without cancellation near zero.
GAN_FAST_INLINE F64 expm1_nonpositive(F64 x) {
  constexpr double kAllLost = -50.0;  // the result is -1 long before; spares the subnormal scale
  const Exp e = split_exp(x < kAllLost ? F64{} + kAllLost : x);
  const F64 scale = power_of_two(e.n);
  return scale * e.p + (scale - 1.0);
}

// log(1 + x) for x in [0, 1]: 2 atanh(s), s = x / (2 + x) <= 1/3, whose series needs sixteen terms.
GAN_FAST_INLINE F64 log1p_unit(F64 x) {
  const F64 s = x / (x + 2.0);
  const F64 s2 = s * s;
  F64 p = s2 * (1.0 / 33) + 1.0 / 31;
  for (int k = 29; k >= 3; k -= 2) p = p * s2 + 1.0 / k;
  return 2.0 * (s + s * s2 * p);
}

GAN_FAST_INLINE F64 minus_abs(F64 x) { return x < 0.0 ? x : -x; }

// sigmoid from e = exp(-|x|), which callers that need softplus too have at hand.
GAN_FAST_INLINE F64 sigmoid(F64 x, F64 e) { return (x >= 0.0 ? F64{} + 1.0 : e) / (1.0 + e); }

GAN_FAST_INLINE F64 sigmoid(F64 x) { return sigmoid(x, exp_nonpositive(minus_abs(x))); }

GAN_FAST_INLINE F64 tanh(F64 x) {
  const F64 e = expm1_nonpositive(2.0 * minus_abs(x));
  const F64 magnitude = -e / (2.0 + e);
  return x < 0.0 ? -magnitude : magnitude;
}

// In terms of e the slopes keep their relative precision where 1 - y^2 and y (1 - y) cancel.
GAN_FAST_INLINE F64 sigmoid_slope(F64 x) {
  const F64 e = exp_nonpositive(minus_abs(x));
  return e / ((1.0 + e) * (1.0 + e));
}

GAN_FAST_INLINE F64 tanh_slope(F64 x) { return 4.0 * sigmoid_slope(2.0 * x); }

// sigmoid'' = -tanh(x / 2) sigmoid', tanh'' = -2 tanh tanh'.
GAN_FAST_INLINE F64 sigmoid_curvature(F64 x) { return -tanh(0.5 * x) * sigmoid_slope(x); }

GAN_FAST_INLINE F64 tanh_curvature(F64 x) { return -2.0 * tanh(x) * tanh_slope(x); }

}  // namespace gan_fast::math
