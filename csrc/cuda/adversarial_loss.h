// Interface between host code and the kernels of the adversarial losses: pointers and sizes, without torch.
#pragma once

#include "../common/adversarial_kind.h"
#include "device.h"

namespace gan_fast::cuda {

using adversarial::Kind;
using adversarial::Relativistic;

template <class T>
struct LossBatch {
  const T* logits;
  T* grad;  // null if not needed
  int64_t count;
  double target;
};

template <class T>
struct LossArguments {
  const T* grad_loss;  // null means 1
  LossBatch<T> first, second;
  bool two;
  double scale;
  Kind kind;
  Relativistic relativistic;
  T *loss, *means;  // null if not needed
};

// Instantiated for double, float, __half and __nv_bfloat16 in adversarial_loss.cu. loss_forward computes everything
// that has a pointer, loss_backward only the gradients.
template <class T>
void loss_forward(const Stream& stream, const LossArguments<T>& arguments);
template <class T>
void loss_backward(const Stream& stream, const LossArguments<T>& arguments);

}  // namespace gan_fast::cuda
