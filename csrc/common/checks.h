// Argument checks, with errors of the form `<op>: expected <argument> <property> <want>, got <have>`. The Python
// functions check first (gan_fast/ops/checks.py); these checks keep direct calls of torch.ops.gan_fast.* from invalid
// memory access.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <sstream>
#include <string>

#include "tensor.h"

namespace gan_fast::check {

inline std::string shape_of(const Tensor& t) {
  std::ostringstream text;
  text << "(";
  const auto size = t.sizes();
  for (size_t d = 0; d < size.size(); ++d) text << (d ? ", " : "") << size[d];
  text << (size.size() == 1 ? ",)" : ")");
  return text.str();
}

// The stable ABI has no function for the names of other devices.
inline std::string device_of(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  return t.is_cuda() ? "cuda:" + std::to_string(t.get_device_index()) : "another device";
}

inline void floating(const char* op, const char* argument, const Tensor& t) {
  STD_TORCH_CHECK(is_floating(t.scalar_type()), op, ": expected ", argument,
                  " dtype float64, float32, bfloat16 or float16, got ", torch::headeronly::toString(t.scalar_type()));
}

inline void same_shape(const char* op, const char* argument, const Tensor& t, const char* other, const Tensor& like) {
  bool same = t.dim() == like.dim();
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == like.size(d);
  STD_TORCH_CHECK(same, op, ": expected ", argument, " shape ", shape_of(like), " to match ", other, ", got ",
                  shape_of(t));
}

inline void dtype(const char* op, const char* argument, const Tensor& t, ScalarType want) {
  STD_TORCH_CHECK(t.scalar_type() == want, op, ": expected ", argument, " dtype ", torch::headeronly::toString(want),
                  ", got ", torch::headeronly::toString(t.scalar_type()));
}

inline void length(const char* op, const char* argument, const Tensor& t, int64_t want) {
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == want, op, ": expected ", argument, " shape (", want, ",), got ",
                  shape_of(t));
}

// The comparison is written so that NaN fails.
inline void in_range(const char* op, const char* argument, double value, double low, double high) {
  STD_TORCH_CHECK(low <= value && value <= high, op, ": expected ", argument, " between ", low, " and ", high, ", got ",
                  value);
}

// Fails for tensors without memory, such as fake tensors and efficient zero tensors.
inline void has_data(const char* op, const char* argument, const Tensor& t) {
  STD_TORCH_CHECK(t.numel() == 0 || t.const_data_ptr(), op, ": expected ", argument,
                  " with data, got a tensor without");
}

// The dispatcher selects the kernel by the device of any argument, so the others must be checked.
inline void cpu(const char* op, const char* argument, const Tensor& t) {
  STD_TORCH_CHECK(t.is_cpu(), op, ": expected ", argument, " device cpu to match its other arguments, got ",
                  device_of(t));
  has_data(op, argument, t);
}

inline void cuda(const char* op, const char* argument, const Tensor& t) {
  STD_TORCH_CHECK(t.is_cuda(), op, ": expected ", argument, " device cuda to match its other arguments, got ",
                  device_of(t));
  has_data(op, argument, t);
}

inline void same_device(const char* op, const char* argument, const Tensor& t, const Tensor& like) {
  if (like.is_cpu()) return cpu(op, argument, t);
  cuda(op, argument, t);
  STD_TORCH_CHECK(t.get_device_index() == like.get_device_index(), op, ": expected ", argument,
                  " device cuda:", like.get_device_index(),
                  " to match its other arguments, got cuda:", t.get_device_index());
}

}  // namespace gan_fast::check
