// exp, log1p, sigmoid, tanh and the first two derivatives of sigmoid and tanh, on vectors in double precision.
//
// Float lanes are computed in double. Their results are then off by at most one unit in the last place, so that fused
// activations stay within twice ATen's error. V is the vector type of the result. For float, series are cut where the
// remainder does not matter (relative error below 1e-9). exp is only computed for arguments <= 0, so nothing overflows.
#pragma once

#include "lanes.h"
#include "macros.h"

namespace gan_fast::math {

using I64 = int64_t __attribute__((vector_size(64)));

// e^x = 2^n (1 + p) for x <= 0. If x is NaN, so is p.
struct Exp {
  F64 p;
  I64 n;
};

template <class V>
constexpr bool kShort = std::is_same_v<V, F32>;

template <class V>
GAN_FAST_INLINE Exp split_exp(F64 x) {
  constexpr double kLog2e = 1.4426950408889634074;
  constexpr double kLn2High = 6.93147180369123816490e-01;  // its low 32 bits are zero, so its product with n is exact
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  // Smaller arguments give the same result: e^-746 is below half the smallest double, and e^-700 below that of float.
  constexpr double kUnderflow = kShort<V> ? -700.0 : -746.0;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, stored in the low bits
  // k!, for the Taylor series of (e^r - 1 - r) / r^2, |r| <= ln2 / 2.
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
  // Scale in two steps, since n can be as small as -1076, below the smallest normal exponent.
  const I64 half = e.n >> 1;
  return (1.0 + e.p) * power_of_two(half) * power_of_two(e.n - half);
}

// e^x - 1 without cancellation near zero.
template <class V>
GAN_FAST_INLINE F64 expm1_nonpositive(F64 x) {
  constexpr double kMinusOne = -50.0;  // below this the result is -1, and `scale` could become subnormal
  const Exp e = split_exp<V>(x < kMinusOne ? F64{} + kMinusOne : x);
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

// exp and log1p in single precision, within one unit in the last place, for values that are summed or rounded again.
// The polynomials are fitted to the interval (relative errors 1e-8 and 1e-9), and evaluated in two independent halves.

GAN_FAST_INLINE F32 polynomial(F32 x, const float (&c)[5]) {
  const F32 x2 = x * x;
  return (c[0] + c[1] * x) + x2 * ((c[2] + c[3] * x) + x2 * c[4]);
}

GAN_FAST_INLINE F32 exp_nonpositive(F32 x) {
  constexpr float kLog2e = 1.44269504f;
  constexpr float kLn2High = 0.693145751953125f;  // its low 9 bits are zero, so its product with n is exact
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
  // Scale in two steps, since n can be as small as -150.
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

// sigmoid of x from e = exp(-|x|), for callers that also need e for softplus.
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

// Computed from e = exp(-|x|), which keeps the relative precision that 1 - y^2 and y (1 - y) lose by cancellation.
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
