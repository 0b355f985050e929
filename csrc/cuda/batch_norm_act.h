// Batch norm and the activation behind it on a GPU, as host code sees it: pointers and sizes, no torch.
#pragma once

#include "../common/activation.h"
#include "device.h"

namespace gan_fast::cuda {

// A dense tensor of channels.
struct Shape {
  int64_t N, C, S;
  bool channels_last;  // (N * S, C) in memory, not (N, C, S)

  int64_t per_channel() const { return N * S; }
  bool is_empty() const { return C == 0 || per_channel() == 0; }
};

// A vector over channels that the caller owns: any stride, the tensor's dtype or the one it is computed in.
struct Parameter {
  void* data;  // null where there is none
  int64_t stride;
  bool wide;    // Compute<T>, not T
  bool packed;  // wide, dense and at 16 bytes
};

// mean, r, gamma and beta.
struct Affine {
  Parameter mean, invstd, weight, bias;
};

struct ActivationChoice {
  Activation activation;
  double negative_slope;
};

// Sums of each pass over a channel, and arrays of coefficients for the last passes.
constexpr int kMomentsSums = 2, kBackwardSums = 2, kDoubleSums = 5;
constexpr int kBackwardCoefficients = 5, kDoubleCoefficients = 9;

// How many doubles a pass with so many sums writes at most, whatever its access: beyond one for each channel, a
// multiprocessor has at most four blocks of at most kMostNeighbours channels.
constexpr int kMostBlocksEach = 4, kMostNeighbours = 64;

inline int64_t partial_size(const Shape& shape, int multiprocessors, int sums) {
  return sums * (shape.C + static_cast<int64_t>(multiprocessors) * kMostBlocksEach * kMostNeighbours);
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
  bool aligned;     // x and y begin at 16 bytes, and so in what follows
  double* partial;  // room for partial_size
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
  T* grad_input;  // null where nobody asked
  Parameter grad_weight, grad_bias;
  bool aligned;
  Compute<T>* coefficients;  // (kBackwardCoefficients, C)
  double* partial;
};

template <class T>
struct DoubleBackwardArguments {
  Shape shape;
  const T *cotangent, *grad, *x;  // cotangent: null stands for zeros
  Affine affine;
  Parameter cotangent_weight, cotangent_bias;
  bool training;
  ActivationChoice activation;
  T *grad_grad, *grad_input;  // null where nobody asked
  Parameter grad_weight, grad_bias;
  bool aligned;
  Compute<T>* coefficients;  // (kDoubleCoefficients, C)
  double* means;             // (kDoubleSums, C)
  double* partial;
};

// For double, float, __half and __nv_bfloat16, defined in batch_norm_act.cu.
template <class T>
void forward(const Stream& stream, const ForwardArguments<T>& arguments);
template <class T>
void normalize(const Stream& stream, const NormalizeArguments<T>& arguments);
template <class T>
void backward(const Stream& stream, const BackwardArguments<T>& arguments);
template <class T>
void double_backward(const Stream& stream, const DoubleBackwardArguments<T>& arguments);

}  // namespace gan_fast::cuda
