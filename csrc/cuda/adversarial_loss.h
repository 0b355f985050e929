// The minimax losses on a GPU, as host code sees them: pointers and sizes, no torch.
#pragma once

#include "device.h"

namespace gan_fast::cuda {

template <class T>
struct LossBatch {
  const T* logits;
  T* grad;  // null where nobody asked
  int64_t count;
  double target;
};

template <class T>
struct LossForwardArguments {
  LossBatch<T> first, second;
  bool two;
  double scale;
  T *loss, *means;  // means: null where nobody asked
};

template <class T>
struct LossBackwardArguments {
  const T* grad_loss;
  LossBatch<T> first, second;
  double scale;
};

// For double, float, __half and __nv_bfloat16, defined in minimax_loss.cu.
template <class T>
void loss_forward(const Stream& stream, const LossForwardArguments<T>& arguments);
template <class T>
void loss_backward(const Stream& stream, const LossBackwardArguments<T>& arguments);

}  // namespace gan_fast::cuda
