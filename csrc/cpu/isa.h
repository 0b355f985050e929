// Compiles a kernel once per instruction set, and selects the version for the processor when it is called.
#pragma once

#include <cstdlib>
#include <cstring>

namespace gan_fast::isa {

enum class Level { baseline, avx2, avx512 };

inline const char* name(Level level) {
  constexpr const char* names[] = {"baseline", "avx2", "avx512"};
  return names[static_cast<int>(level)];
}

inline Level best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Level::avx512;
  }
  if (__builtin_cpu_supports("avx2")) return Level::avx2;
#endif
  return Level::baseline;
}

// The instruction set to use. GAN_FAST_ISA=baseline|avx2 selects a smaller one than the best, for tests and
// measurements.
inline Level level() {
  static const Level chosen = [] {
    Level result = best();
    if (const char* request = std::getenv("GAN_FAST_ISA")) {
      for (Level candidate : {Level::baseline, Level::avx2}) {
        if (std::strcmp(request, name(candidate)) == 0 && candidate < result) result = candidate;
      }
    }
    return result;
  }();
  return chosen;
}

// Each version copies the kernel to a local variable. Nothing else has its address, so the compiler can keep it in
// registers whatever the kernel stores. The parameter is a reference, since the calling convention for vectors passed
// by value depends on the instruction set.
template <class Kernel, class... Args>
void run_baseline(const Kernel& kernel, Args... args) {
  const Kernel local = kernel;
  local(args...);
}

#if defined(__x86_64__)
template <class Kernel, class... Args>
__attribute__((target("avx2"))) void run_avx2(const Kernel& kernel, Args... args) {
  const Kernel local = kernel;
  local(args...);
}

template <class Kernel, class... Args>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) void run_avx512(const Kernel& kernel, Args... args) {
  const Kernel local = kernel;
  local(args...);
}
#endif

// Calls kernel(args...) in the version for this processor. The kernel's operator() must be GAN_FAST_INLINE.
template <class Kernel, class... Args>
void run(const Kernel& kernel, Args... args) {
  switch (level()) {
#if defined(__x86_64__)
    case Level::avx512:
      return run_avx512(kernel, args...);
    case Level::avx2:
      return run_avx2(kernel, args...);
#endif
    default:
      return run_baseline(kernel, args...);
  }
}

// Calls Kernel<level>{args...}(), for a kernel whose code depends on the instruction set.
template <template <Level> class Kernel, class... Args>
void run_each(const Args&... args) {
  switch (level()) {
#if defined(__x86_64__)
    case Level::avx512:
      return run_avx512(Kernel<Level::avx512>{args...});
    case Level::avx2:
      return run_avx2(Kernel<Level::avx2>{args...});
#endif
    default:
      return run_baseline(Kernel<Level::baseline>{args...});
  }
}

}  // namespace gan_fast::isa
