// The adversarial losses on a GPU, as host code sees them: pointers and sizes, no torch.
#pragma once

#include "../common/adversarial_kind.h"
#include "device.h"

namespace gan_fast::cuda {

using adversarial::Kind;
using adversarial::Relativistic;

template <class T>
struct LossBatch {
  const T* logits;
  T* grad;  // null where nobody asked
  int64_t count;
  double target;
};

template <class T>
struct LossArguments {
  const T* grad_loss;  // null: one
  LossBatch<T> first, second;
  bool two;
  double scale;
  Kind kind;
  Relativistic relativistic;
  T *loss, *means;  // null where nobody asked
};

// For double, float, __half and __nv_bfloat16, defined in adversarial_loss.cu. The first gives all that is asked for,
// the second the gradients alone.
template <class T>
void loss_forward(const Stream& stream, const LossArguments<T>& arguments);
template <class T>
void loss_backward(const Stream& stream, const LossArguments<T>& arguments);

}  // namespace gan_fast::cuda
