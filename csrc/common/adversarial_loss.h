// Argument checks of the adversarial losses, and the memory order of their logits, for every device.
#pragma once

#include <string>
#include <string_view>

#include "adversarial_kind.h"
#include "checks.h"

namespace gan_fast::adversarial {

constexpr const char* kForward = "adversarial_loss_forward";
constexpr const char* kBackward = "adversarial_loss_backward";

// The names are those of gan_fast/ops/adversarial_loss.py.
inline Kind parse_kind(const char* op, std::string_view name) {
  constexpr std::string_view names[] = {"minimax", "hinge", "wasserstein", "least_squares"};
  for (int i = 0; i < 4; ++i) {
    if (name == names[i]) return static_cast<Kind>(i);
  }
  STD_TORCH_CHECK(false, op, ": expected kind one of minimax, hinge, wasserstein, least_squares, got '",
                  std::string(name), "'");
}

inline Relativistic parse_relativistic(const char* op, std::string_view name) {
  constexpr std::string_view names[] = {"none", "paired", "average"};
  for (int i = 0; i < 3; ++i) {
    if (name == names[i]) return static_cast<Relativistic>(i);
  }
  STD_TORCH_CHECK(false, op, ": expected relativistic one of none, paired, average, got '", std::string(name), "'");
}

inline void check_batches(const char* op, const Tensor& logits, double target, const MaybeTensor& other,
                          double other_target, Relativistic relativistic) {
  check::floating(op, "logits", logits);
  // The target of a difference of logits may be -1: the relativistic least-squares loss uses it.
  const double least = relativistic == Relativistic::none ? 0 : -1;
  check::in_range(op, "target", target, least, 1);
  STD_TORCH_CHECK(other || relativistic == Relativistic::none, op,
                  ": expected other_logits to be a tensor when relativistic is not none, got None");
  if (!other) return;
  check::same_device(op, "other_logits", *other, logits);
  check::dtype(op, "other_logits", *other, logits.scalar_type());
  check::in_range(op, "other_target", other_target, least, 1);
  if (relativistic == Relativistic::paired) check::same_shape(op, "other_logits", *other, "logits", logits);
}

inline void check_grad_loss(const Tensor& grad_loss, const Tensor& logits) {
  check::same_device(kBackward, "grad_loss", grad_loss, logits);
  STD_TORCH_CHECK(grad_loss.numel() == 1, kBackward, ": expected grad_loss shape (), got ", check::shape_of(grad_loss));
  check::dtype(kBackward, "grad_loss", grad_loss, logits.scalar_type());
}

// Returns the logits, or a copy, without gaps in memory. The order of their dims does not matter to the kernels, and
// the gradients get the strides that ATen's elementwise ops give.
inline Tensor without_gaps(const Tensor& logits) {
  const bool plain = is_dense(logits, MemoryFormat::Contiguous) || is_dense_in_some_order(logits);
  return plain ? logits : torch::stable::clone(logits);
}

inline Tensor empty_as(const Tensor& x) {
  const auto size = x.sizes(), stride = x.strides();
  return empty_strided(x, {size.begin(), size.end()}, {stride.begin(), stride.end()}, x.scalar_type());
}

// Returns the logits, or a copy, with the strides of `like`, which has no gaps: paired logits need the same memory
// order.
inline Tensor in_order_of(const Tensor& like, const Tensor& logits) {
  bool same = true;
  for (int64_t d = 0; same && d < like.dim(); ++d) same = like.size(d) == 1 || like.stride(d) == logits.stride(d);
  if (same) return logits;
  Tensor copy = empty_as(like);
  torch::stable::copy_(copy, logits);
  return copy;
}

}  // namespace gan_fast::adversarial
