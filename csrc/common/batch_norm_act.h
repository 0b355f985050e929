// Argument checks of batch_norm_act for every device, with the error texts of gan_fast/ops/batch_norm_act.py.
#pragma once

#include <string>

#include "activation.h"
#include "checks.h"

namespace gan_fast::norm {

constexpr const char* kOp = "batch_norm_act";

inline Activation parse(const std::string& name) {
  Activation activation{};
  STD_TORCH_CHECK(parse_activation(name, &activation), kOp,
                  ": expected activation identity, relu, leaky_relu, tanh or sigmoid, got ", name);
  return activation;
}

inline void check_input(const Tensor& input) {
  check::floating(kOp, "input", input);
  STD_TORCH_CHECK(input.dim() >= 2, kOp, ": expected input dimensions at least 2 (N, C, ...), got shape ",
                  check::shape_of(input));
}

// Parameters and running statistics have the input's dtype, or float32 with a half-precision input.
inline void check_parameter(const char* name, const MaybeTensor& t, const Tensor& input) {
  if (!t) return;
  check::same_device(kOp, name, *t, input);
  check::length(kOp, name, *t, input.size(1));
  if (t->scalar_type() != compute_dtype(input.scalar_type())) check::dtype(kOp, name, *t, input.scalar_type());
}

inline void check_like_input(const char* name, const Tensor& t, const Tensor& input) {
  check::same_device(kOp, name, t, input);
  check::same_shape(kOp, name, t, "input", input);
  check::dtype(kOp, name, t, input.scalar_type());
}

inline void check_statistics(const Tensor& mean, const Tensor& invstd, const Tensor& input) {
  for (const auto& [name, t] : {std::pair{"mean", &mean}, {"invstd", &invstd}}) {
    check::same_device(kOp, name, *t, input);
    check::length(kOp, name, *t, input.size(1));
    check::dtype(kOp, name, *t, compute_dtype(input.scalar_type()));
  }
}

inline void check_running(const MaybeTensor& running_mean, const MaybeTensor& running_var, bool training) {
  STD_TORCH_CHECK(training || (running_mean && running_var), kOp,
                  ": expected running_mean and running_var tensors when training is False, got None");
}

inline void check_count(const Tensor& input, int64_t per_channel, bool training) {
  STD_TORCH_CHECK(!training || per_channel != 1, kOp,
                  ": expected input with more than 1 value per channel when training, got shape ",
                  check::shape_of(input));
}

}  // namespace gan_fast::norm
