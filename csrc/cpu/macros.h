// Macros for kernels that isa.h compiles once per instruction set.
#pragma once

// All of a kernel must be inlined into the function that is compiled for an instruction set.
#define GAN_FAST_INLINE inline __attribute__((always_inline))

// The same for a lambda, after its parameters.
#define GAN_FAST_INLINE_LAMBDA __attribute__((always_inline))

// Unrolls a short loop with a fixed number of rounds, so that its arrays stay in registers.
#define GAN_FAST_UNROLL _Pragma("GCC unroll 16")
