// What the minimax losses check, and how they see logits, on every device.
#pragma once

#include "checks.h"

namespace gan_fast::minimax {

constexpr const char* kForward = "minimax_loss_forward";
constexpr const char* kBackward = "minimax_loss_backward";

inline void check_batches(const char* op, const Tensor& logits, double target, const MaybeTensor& other,
                          double other_target) {
  check::floating(op, "logits", logits);
  check::in_range(op, "target", target, 0, 1);
  if (!other) return;
  check::same_device(op, "other_logits", *other, logits);
  check::dtype(op, "other_logits", *other, logits.scalar_type());
  check::in_range(op, "other_target", other_target, 0, 1);
}

inline void check_grad_loss(const Tensor& grad_loss, const Tensor& logits) {
  check::same_device(kBackward, "grad_loss", grad_loss, logits);
  STD_TORCH_CHECK(grad_loss.numel() == 1, kBackward, ": expected grad_loss shape (), got ", check::shape_of(grad_loss));
  check::dtype(kBackward, "grad_loss", grad_loss, logits.scalar_type());
}

// Logits are taken one by one, so any order will do; gradients get the strides that ATen's elementwise ops give.
inline Tensor without_gaps(const Tensor& logits) {
  const bool plain = is_dense(logits, MemoryFormat::Contiguous) || is_dense_in_some_order(logits);
  return plain ? logits : torch::stable::clone(logits);
}

inline Tensor grad_for(const Tensor& x) {
  const auto size = x.sizes(), stride = x.strides();
  return empty_strided(x, {size.begin(), size.end()}, {stride.begin(), stride.end()}, x.scalar_type());
}

}  // namespace gan_fast::minimax
