// Interface between host code and the kernels of batch_norm_act: pointers and sizes, without torch.
#pragma once

#include "../common/activation.h"
#include "device.h"

namespace gan_fast::cuda {

// A dense tensor: N samples, C channels, S values per sample and channel.
struct Shape {
  int64_t N, C, S;
  bool channels_last;  // memory order (N * S, C) instead of (N, C, S)

  int64_t per_channel() const { return N * S; }
  bool is_empty() const { return C == 0 || per_channel() == 0; }
};

// A vector over channels from the caller, with any stride. T is the dtype of the input.
struct Parameter {
  void* data;  // null if there is none
  int64_t stride;
  bool wide;    // has the type Compute<T> instead of T
  bool packed;  // is wide, dense and aligned to 16 bytes
};

// mean, r, gamma and beta.
struct Affine {
  Parameter mean, invstd, weight, bias;
};

struct ActivationChoice {
  Activation activation;
  double negative_slope;
};

// Numbers of sums per channel of each pass, and of coefficient arrays for the map passes.
constexpr int kMomentsSums = 2, kBackwardSums = 2, kDoubleSums = 5;
constexpr int kBackwardCoefficients = 5, kDoubleCoefficients = 9;

// The largest number of doubles that a pass with `sums` sums writes: one per channel, and for further chunks at most
// kMaxBlocksEach blocks per multiprocessor with at most kMaxNeighbors channels each.
constexpr int kMaxBlocksEach = 4, kMaxNeighbors = 64;

inline int64_t partial_size(const Shape& shape, int multiprocessors, int sums) {
  return sums * (shape.C + static_cast<int64_t>(multiprocessors) * kMaxBlocksEach * kMaxNeighbors);
}

template <class T>
struct ForwardArguments {
  Shape shape;
  const T* x;
  T* y;
  Compute<T>*mean, *invstd;
  Parameter running_mean, running_var, weight, bias;
  bool training;
  double momentum, eps;
  ActivationChoice activation;
  bool aligned;     // all tensors are aligned to 16 bytes; also in the structs below
  double* partial;  // partial_size doubles
};

template <class T>
struct NormalizeArguments {
  Shape shape;
  const T* x;
  T* y;
  Affine affine;
  ActivationChoice activation;
  bool aligned;
};

template <class T>
struct BackwardArguments {
  Shape shape;
  const T *grad, *x;
  Affine affine;
  bool training, affine_wanted;
  ActivationChoice activation;
  T* grad_input;  // null if not needed
  Parameter grad_weight, grad_bias;
  bool aligned;
  Compute<T>* coefficients;  // (kBackwardCoefficients, C)
  double* partial;
};

template <class T>
struct DoubleBackwardArguments {
  Shape shape;
  const T *cotangent, *grad, *x;  // cotangent: null means zeros
  Affine affine;
  Parameter cotangent_weight, cotangent_bias;
  bool training;
  ActivationChoice activation;
  T *grad_grad, *grad_input;  // null if not needed
  Parameter grad_weight, grad_bias;
  bool aligned;
  Compute<T>* coefficients;  // (kDoubleCoefficients, C)
  double* means;             // (kDoubleSums, C)
  double* partial;
};

// Instantiated for double, float, __half and __nv_bfloat16 in batch_norm_act.cu.
template <class T>
void forward(const Stream& stream, const ForwardArguments<T>& arguments);
template <class T>
void normalize(const Stream& stream, const NormalizeArguments<T>& arguments);
template <class T>
void backward(const Stream& stream, const BackwardArguments<T>& arguments);
template <class T>
void double_backward(const Stream& stream, const DoubleBackwardArguments<T>& arguments);

}  // namespace gan_fast::cuda
