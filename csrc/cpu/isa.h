// One kernel body, compiled for each instruction set, chosen when it is called.
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

// GAN_FAST_ISA=baseline|avx2 lowers the choice, for tests and for measuring; it never raises it.
inline Level level() {
  static const Level chosen = [] {
    Level wanted = best();
    if (const char* request = std::getenv("GAN_FAST_ISA")) {
      for (Level candidate : {Level::baseline, Level::avx2}) {
        if (std::strcmp(request, name(candidate)) == 0 && candidate < wanted) wanted = candidate;
      }
    }
    return wanted;
  }();
  return chosen;
}

// Each version works on its own copy of the kernel: a local whose address nobody has can live in registers, whatever
// the kernel stores. It comes by reference because by value vectors would pass differently in each version.
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

// Calls kernel(args...), whose operator() is GAN_FAST_INLINE, in the version for this processor.
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

// The same for a kernel that is written differently for each instruction set: Kernel<level>{args...}().
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
