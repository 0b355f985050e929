// exp, log1p, sigmoid and tanh with the derivatives of the last two, for vectors of lanes in double precision.
//
// Float lanes go through double: results are then right to the last bit but one, which activations fused behind other
// arithmetic need to stay within twice ATen's error. V is the vector that the result is meant for: for float lanes
// series end where a float no longer sees the rest (relative error below 1e-9).
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

template <class V>
constexpr bool kShort = std::is_same_v<V, F32>;

template <class V>
GAN_FAST_INLINE Exp split_exp(F64 x) {
  constexpr double kLog2e = 1.4426950408889634074;
  constexpr double kLn2High = 6.93147180369123816490e-01;  // the low 32 bits are zero: exact product with any n here
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  // Where nothing is left: e^-746 is below half the smallest subnormal double, e^-700 far below that of float.
  constexpr double kUnderflow = kShort<V> ? -700.0 : -746.0;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer in the low bits
  // k! for Taylor's series of (e^r - 1 - r) / r^2, |r| <= ln2 / 2.
  constexpr double kFactorial[] = {1,    1,     2,      6,       24,       120,       720,
                                   5040, 40320, 362880, 3628800, 39916800, 479001600, 6227020800};
  constexpr int kLast = kShort<V> ? 8 : 13;
  x = x < kUnderflow ? F64{} + kUnderflow : x;
  const F64 shifted = x * kLog2e + kRound;
  const F64 n = shifted - kRound;
  const F64 r = (x - n * kLn2High) - n * kLn2Low;
  F64 q = F64{} + 1 / kFactorial[kLast];
  GAN_FAST_UNROLL
  for (int k = kLast - 1; k >= 2; --k) q = q * r + 1 / kFactorial[k];
  return {r + r * r * q, bit_cast<I64>(shifted) - bit_cast<I64>(F64{} + kRound)};
}

GAN_FAST_INLINE F64 power_of_two(I64 n) { return bit_cast<F64>((n + 1023) << 52); }

template <class V>
GAN_FAST_INLINE F64 exp_nonpositive(F64 x) {
  const Exp e = split_exp<V>(x);
  if constexpr (kShort<V>) return (1.0 + e.p) * power_of_two(e.n);
  // n reaches -1076, past the smallest normal exponent: scale in two halves.
  const I64 half = e.n >> 1;
  return (1.0 + e.p) * power_of_two(half) * power_of_two(e.n - half);
}

// e^x - 1 without cancellation near zero.
template <class V>
GAN_FAST_INLINE F64 expm1_nonpositive(F64 x) {
  constexpr double kAllLost = -50.0;  // the result is -1 long before; spares the subnormal scale
  const Exp e = split_exp<V>(x < kAllLost ? F64{} + kAllLost : x);
  const F64 scale = power_of_two(e.n);
  return scale * e.p + (scale - 1.0);
}

// log(1 + x) for x in [0, 1]: 2 atanh(s) = 2 (s + s^3 / 3 + s^5 / 5 + ...), s = x / (2 + x) <= 1/3.
template <class V>
GAN_FAST_INLINE F64 log1p_unit(F64 x) {
  constexpr int kLast = kShort<V> ? 17 : 33;
  const F64 s = x / (x + 2.0);
  const F64 s2 = s * s;
  F64 p = F64{} + 1.0 / kLast;
  GAN_FAST_UNROLL
  for (int k = kLast - 2; k >= 3; k -= 2) p = p * s2 + 1.0 / k;
  return 2.0 * (s + s * s2 * p);
}

// The same two in single precision, within a unit in the last place, for what is summed up or rounded once more. Their
// polynomials are fitted to the interval (errors of 1e-8 and 1e-9 of the result) and evaluated in halves, which do not
// wait for each other.

GAN_FAST_INLINE F32 polynomial(F32 x, const float (&c)[5]) {
  const F32 x2 = x * x;
  return (c[0] + c[1] * x) + x2 * ((c[2] + c[3] * x) + x2 * c[4]);
}

GAN_FAST_INLINE F32 exp_nonpositive(F32 x) {
  constexpr float kLog2e = 1.44269504f;
  constexpr float kLn2High = 0.693145751953125f;  // the low 9 bits are zero: exact product with any n here
  constexpr float kLn2Low = 1.42860682e-6f;
  constexpr float kUnderflow = -104.0f;  // e^-104 is below half the smallest subnormal float
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  // (e^r - 1 - r) / r^2, |r| <= ln2 / 2.
  constexpr float kTerms[] = {0.5f, 0.166665763f, 0.0416664667f, 0.00836317707f, 0.00139336451f};
  x = x < kUnderflow ? F32{} + kUnderflow : x;
  const F32 shifted = x * kLog2e + kRound;
  const F32 n = shifted - kRound;
  const F32 r = (x - n * kLn2High) - n * kLn2Low;
  const F32 value = 1.0f + (r + r * r * polynomial(r, kTerms));
  // n reaches -150: scale in two halves.
  const I32 exponent = bit_cast<I32>(shifted) - bit_cast<I32>(F32{} + kRound);
  const I32 half = exponent >> 1;
  const auto power = [](I32 e) { return bit_cast<F32>((e + 127) << 23); };
  return value * power(half) * power(exponent - half);
}

GAN_FAST_INLINE F32 log1p_unit(F32 x) {
  // (atanh(s) - s) / s^3 as a function of s^2.
  constexpr float kTerms[] = {0.333333343f, 0.199998513f, 0.142962918f, 0.108516574f, 0.116195254f};
  const F32 s = x / (x + 2.0f);
  const F32 s2 = s * s;
  return 2.0f * (s + s * s2 * polynomial(s2, kTerms));
}

GAN_FAST_INLINE F64 minus_abs(F64 x) { return x < 0.0 ? x : -x; }

// sigmoid from e = exp(-|x|), which callers that need softplus too have at hand.
GAN_FAST_INLINE F64 sigmoid(F64 x, F64 e) { return (x >= 0.0 ? F64{} + 1.0 : e) / (1.0 + e); }

template <class V>
GAN_FAST_INLINE F64 sigmoid(F64 x) {
  return sigmoid(x, exp_nonpositive<V>(minus_abs(x)));
}

template <class V>
GAN_FAST_INLINE F64 tanh(F64 x) {
  const F64 e = expm1_nonpositive<V>(2.0 * minus_abs(x));
  const F64 magnitude = -e / (2.0 + e);
  return x < 0.0 ? -magnitude : magnitude;
}

// In terms of e the slopes keep their relative precision where 1 - y^2 and y (1 - y) cancel.
template <class V>
GAN_FAST_INLINE F64 sigmoid_slope(F64 x) {
  const F64 e = exp_nonpositive<V>(minus_abs(x));
  return e / ((1.0 + e) * (1.0 + e));
}

template <class V>
GAN_FAST_INLINE F64 tanh_slope(F64 x) {
  return 4.0 * sigmoid_slope<V>(2.0 * x);
}

// sigmoid'' = -tanh(x / 2) sigmoid', tanh'' = -2 tanh tanh'.
template <class V>
GAN_FAST_INLINE F64 sigmoid_curvature(F64 x) {
  return -tanh<V>(0.5 * x) * sigmoid_slope<V>(x);
}

template <class V>
GAN_FAST_INLINE F64 tanh_curvature(F64 x) {
  return -2.0 * tanh<V>(x) * tanh_slope<V>(x);
}

}  // namespace gan_fast::math
