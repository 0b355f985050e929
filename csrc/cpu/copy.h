// Strided copies with conversion.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "macros.h"

namespace gan_fast {

// Copies `count` values with a stride, converting them from From to To.
template <class From, class To>
GAN_FAST_INLINE void copy_run(const From* from, int64_t from_stride, To* to, int64_t to_stride, int64_t count) {
  if constexpr (std::is_same_v<From, To>) {
    if (from_stride == 1 && to_stride == 1) {
      std::memcpy(to, from, count * sizeof(To));
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i) to[i * to_stride] = static_cast<To>(from[i * from_stride]);
}

}  // namespace gan_fast
