// Vectors of eight float or double values (lanes), and conversions from and to the four storage types.
//
// The compiler maps these vectors to the target's instructions (AVX-512, AVX2, SSE2, NEON). Both types have eight
// lanes, so that a float vector widens to one double vector. No operation is contracted or reordered, so results are
// the same to the last bit with every instruction set.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "macros.h"

namespace gan_fast {

using c10::BFloat16;
using c10::Half;

constexpr int kLanes = 8;
using F32 = float __attribute__((vector_size(32)));
using F64 = double __attribute__((vector_size(64)));
using I32 = int32_t __attribute__((vector_size(32)));
using U32 = uint32_t __attribute__((vector_size(32)));
using U16 = uint16_t __attribute__((vector_size(16)));

// The type in which values of storage type T are computed, and its vector.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <class T>
using Vec = std::conditional_t<std::is_same_v<T, double>, F64, F32>;

template <class To, class From>
GAN_FAST_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

GAN_FAST_INLINE F64 widen(F32 x) { return __builtin_convertvector(x, F64); }
GAN_FAST_INLINE F64 widen(F64 x) { return x; }

template <class V>
GAN_FAST_INLINE V narrow(F64 x) {
  return __builtin_convertvector(x, V);
}

namespace detail {

template <class V, class T>
GAN_FAST_INLINE V load_raw(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

GAN_FAST_INLINE F32 to_lanes(U16 bits, BFloat16) { return bit_cast<F32>(__builtin_convertvector(bits, U32) << 16); }

// Converts binary16 to binary32: shifts the fields into place and scales by 2^112, which also normalizes subnormals.
GAN_FAST_INLINE F32 to_lanes(U16 bits, Half) {
  const U32 wide = __builtin_convertvector(bits, U32);
  const U32 magnitude = (wide & 0x7fffu) << 13;
  const F32 finite = bit_cast<F32>(magnitude) * 0x1p112f;
  const U32 special = magnitude | 0x7f800000u;  // inf and NaN keep their payload
  const U32 value = (wide & 0x7c00u) == 0x7c00u ? special : bit_cast<U32>(finite);
  return bit_cast<F32>(value | ((wide & 0x8000u) << 16));
}

// Rounds to nearest even. NaN becomes the quiet NaN that torch uses.
GAN_FAST_INLINE U16 from_lanes(F32 x, BFloat16) {
  const U32 bits = bit_cast<U32>(x);
  const U32 rounded = (bits + (((bits >> 16) & 1u) + 0x7fffu)) >> 16;
  const U32 value = (bits & 0x7fffffffu) > 0x7f800000u ? U32{} + 0x7fc0u : rounded;
  return __builtin_convertvector(value, U16);
}

// Rounds to nearest even, including subnormal results.
GAN_FAST_INLINE U16 from_lanes(F32 x, Half) {
  const U32 bits = bit_cast<U32>(x);
  const U32 sign = (bits >> 16) & 0x8000u;
  const U32 magnitude = bits & 0x7fffffffu;
  // Normal results: round off the low 13 bits as an integer, then rebias the exponent by 127 - 15.
  const U32 normal = (magnitude + (((magnitude >> 13) & 1u) + 0xfffu) - 0x38000000u) >> 13;
  // Results below 2^-14 are multiples of 2^-24, the spacing of floats at 0.5: adding 0.5f rounds to them.
  const U32 subnormal = bit_cast<U32>(bit_cast<F32>(magnitude) + 0.5f) - 0x3f000000u;
  U32 value = magnitude < 0x38800000u ? subnormal : normal;
  value = magnitude >= 0x477ff000u ? U32{} + 0x7c00u : value;  // infinity: the value rounds to 65536 or more
  value = magnitude > 0x7f800000u ? U32{} + 0x7e00u : value;
  return __builtin_convertvector(value | sign, U16);
}

}  // namespace detail

template <class T>
GAN_FAST_INLINE Vec<T> load(const T* p) {
  if constexpr (sizeof(T) == 2) {
    return detail::to_lanes(detail::load_raw<U16>(p), T{});
  } else {
    return detail::load_raw<Vec<T>>(p);
  }
}

template <class T>
GAN_FAST_INLINE void store(T* p, Vec<T> v) {
  if constexpr (sizeof(T) == 2) {
    const U16 bits = detail::from_lanes(v, T{});
    std::memcpy(p, &bits, sizeof(bits));
  } else {
    std::memcpy(p, &v, sizeof(v));
  }
}

// Load and store the first `count` (1 to 8) lanes. The other lanes are zero after a load.
template <class T>
GAN_FAST_INLINE Vec<T> load(const T* p, int count) {
  if (count == kLanes) return load(p);
  T buffer[kLanes] = {};
  std::memcpy(buffer, p, count * sizeof(T));
  return load(buffer);
}

template <class T>
GAN_FAST_INLINE void store(T* p, Vec<T> v, int count) {
  if (count == kLanes) return store(p, v);
  T buffer[kLanes];
  store(buffer, v);
  std::memcpy(p, buffer, count * sizeof(T));
}

// x with zeros in the lanes from `count` on.
GAN_FAST_INLINE F64 keep(F64 x, int count) {
  if (count == kLanes) return x;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lane >= count) x[lane] = 0;
  }
  return x;
}

GAN_FAST_INLINE double sum(F64 x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }

}  // namespace gan_fast
