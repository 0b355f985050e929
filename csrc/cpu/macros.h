#pragma once

// Kernels are compiled once per instruction set from one body: all of it must be inlined into the versioned entry.
#define GAN_FAST_INLINE inline __attribute__((always_inline))

// The same after a lambda's parameters.
#define GAN_FAST_INLINE_LAMBDA __attribute__((always_inline))

// For loops of a few fixed rounds over values that must stay in registers.
#define GAN_FAST_UNROLL _Pragma("GCC unroll 16")
