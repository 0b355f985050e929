// Calls a template for the C++ type of a dtype.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "tensor.h"

namespace gan_fast {

// Calls f with a value of the C++ type; only the argument's type matters.
template <class F>
auto for_dtype_below_double(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return f(c10::BFloat16{});
    case ScalarType::Half:
      return f(c10::Half{});
    default:
      return f(float{});
  }
}

template <class F>
auto for_dtype(ScalarType dtype, const F& f) {
  return dtype == ScalarType::Double ? f(double{}) : for_dtype_below_double(dtype, f);
}

}  // namespace gan_fast
