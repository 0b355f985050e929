// Conversions between storage types and the types they are computed in, and vectors of values. Headers ending in .cuh
// do not include torch, so that a C++ compiler can compile them with tests/cuda/emulator.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "device.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace gan_fast::cuda {

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ inline T narrow(Compute<T> x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// kWidth values that are read or written in one access. Half types stay in 32-bit words: separate values would need
// twice as many registers.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Pack {
  static constexpr bool kInWords = sizeof(T) == 2 && kWidth > 1;
  using Word = std::conditional_t<kInWords, uint32_t, T>;
  static constexpr int kEach = sizeof(Word) / sizeof(T);
  Word words[kWidth / kEach];

  __device__ Compute<T> at(int i) const {
    if constexpr (!kInWords) {
      return widen(words[i]);
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      const uint32_t word = words[i / 2], bits = i % 2 ? word & 0xffff0000u : word << 16;
      float value;
      memcpy(&value, &bits, sizeof value);
      return value;
    } else {
      const uint16_t bits = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
      T value;
      memcpy(&value, &bits, sizeof value);
      return widen(value);
    }
  }

  // Set the values in order: the first of a word's two values clears the other.
  __device__ void set(int i, Compute<T> x) {
    const T value = narrow<T>(x);
    if constexpr (!kInWords) {
      words[i] = value;
    } else {
      uint16_t bits;
      memcpy(&bits, &value, sizeof bits);
      words[i / 2] = i % 2 ? words[i / 2] | static_cast<uint32_t>(bits) << 16 : bits;
    }
  }
};

template <class T>
constexpr int kWidest = 16 / sizeof(T);

}  // namespace gan_fast::cuda
