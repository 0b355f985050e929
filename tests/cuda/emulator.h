// Compiles csrc/cuda/*.cuh for a CPU, to test arithmetic, indices and barriers. Blocks run one after the other. The
// threads of a block are fibers that switch at barriers.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

struct __half {
  _Float16 value;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __half2float(__half x) { return static_cast<float>(x.value); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }

inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (std::isnan(x)) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
}

namespace emulator {

constexpr size_t kStackBytes = 1 << 16;

// A fiber starts with setcontext and switches with longjmp, which avoids the system call that saves the signal mask.
struct Fiber {
  ucontext_t context;
  jmp_buf jump;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool started = false, done = false;
};

inline jmp_buf scheduler;
inline std::vector<Fiber> fibers;
inline std::function<void()> body;

inline void enter() {
  const unsigned thread = threadIdx.x;
  body();
  fibers[thread].done = true;
  _longjmp(scheduler, 1);
}

inline void barrier() {
  if (!_setjmp(fibers[threadIdx.x].jump)) _longjmp(scheduler, 1);
}

__attribute__((noinline)) inline void resume(Fiber& fiber) {
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.jump, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

// Runs the threads in ascending or descending order from barrier to barrier. If a barrier is missing, results depend on
// the order.
inline void run_block(unsigned threads, bool backwards) {
  if (fibers.size() < threads) fibers.resize(threads);
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    fiber.started = fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  for (bool all_done = false; !all_done;) {
    unsigned done = 0;
    for (unsigned i = 0; i < threads; ++i) {
      const unsigned t = backwards ? threads - 1 - i : i;
      threadIdx.x = t;
      resume(fibers[t]);
      done += fibers[t].done;
    }
    all_done = done == threads;
    if (!all_done && done) {
      std::fprintf(stderr, "emulator: %u of %u threads left a kernel where the others wait\n", done, threads);
      std::abort();
    }
  }
}

struct Launch {
  int multiprocessors;
  bool backwards;

  template <class... P, class... A>
  void operator()(void (*kernel)(P...), int64_t blocks, int threads, const A&... arguments) const {
    // CUDA rejects such a launch.
    if (blocks < 1 || blocks > 2147483647 || threads < 1 || threads > 1024) {
      std::fprintf(stderr, "emulator: a launch of %lld blocks of %d threads\n", static_cast<long long>(blocks),
                   threads);
      std::abort();
    }
    body = [&] { kernel(arguments...); };
    blockDim.x = static_cast<unsigned>(threads);
    gridDim.x = static_cast<unsigned>(blocks);
    for (int64_t b = 0; b < blocks; ++b) {
      blockIdx.x = static_cast<unsigned>(backwards ? blocks - 1 - b : b);
      run_block(blockDim.x, backwards);
    }
  }
};

}  // namespace emulator

inline void __syncthreads() { emulator::barrier(); }
