// Mean binary cross entropy with logits over one or two batches of logits on a GPU: csrc/cpu/minimax_loss.cpp.
//
// One block does all of a forward pass: losses have hundreds of logits, a patch discriminator's some ten thousand, and
// a second launch would cost more than a wider first one saves. The order of its sums depends on their number alone.
#pragma once

#include "minimax_loss.h"
#include "scalar.cuh"

namespace gan_fast::cuda {

constexpr int kLossThreads = 1024;

// factor (sigmoid(x) - target), from e = exp(-|x|): without cancellation where the target is 0 or 1.
template <class A>
__device__ A loss_slope(A x, A e, A target) {
  return (x < 0 ? e * (1 - target) - target : (1 - target) - e * target) / (1 + e);
}

// Sum over a block; the result is for thread 0.
__device__ inline double sum_block(double* scratch, double value) {
  const int thread = threadIdx.x;
  __syncthreads();  // that of the last call has been read
  scratch[thread] = value;
  for (int half = blockDim.x / 2; half >= 1; half /= 2) {
    __syncthreads();
    if (thread < half) scratch[thread] += scratch[thread + half];
  }
  __syncthreads();
  return scratch[0];
}

// Means over no logits are 0 / 0, as in ATen.
template <class T>
__device__ void loss_batch(double* scratch, const LossBatch<T>& batch, double scale, double* loss, double* mean) {
  using A = Compute<T>;
  const A target = static_cast<A>(batch.target);
  const double count = static_cast<double>(batch.count);
  double losses = 0, probabilities = 0;
  for (int64_t i = threadIdx.x; i < batch.count; i += blockDim.x) {
    const A x = widen(batch.logits[i]);
    const A e = std::exp(-std::abs(x));
    // The form whose infinities and NaN are those of ATen.
    losses += (1 - target) * x + ((x < 0 ? -x : A{0}) + std::log1p(e));
    probabilities += (x < 0 ? e : A{1}) / (1 + e);
    if (batch.grad) batch.grad[i] = narrow<T>(static_cast<A>(scale / count * loss_slope(x, e, target)));
  }
  *loss = sum_block(scratch, losses) / count;
  *mean = sum_block(scratch, probabilities) / count;
}

template <class T>
__global__ void __launch_bounds__(kLossThreads) loss_forward_kernel(const LossBatch<T> first, const LossBatch<T> second,
                                                                    bool two, double scale, T* loss, T* means) {
  __shared__ double scratch[kLossThreads];
  double losses, mean;
  loss_batch(scratch, first, scale, &losses, &mean);
  if (threadIdx.x == 0 && means) means[0] = narrow<T>(static_cast<Compute<T>>(mean));
  if (two) {
    double other;
    loss_batch(scratch, second, scale, &other, &mean);
    losses += other;
    if (threadIdx.x == 0 && means) means[1] = narrow<T>(static_cast<Compute<T>>(mean));
  }
  if (threadIdx.x == 0) *loss = narrow<T>(static_cast<Compute<T>>(scale * losses));
}

// grad_loss scale / count (sigmoid(x) - target) of both batches: `split` blocks for the first, the others for the
// second.
template <class T>
__global__ void __launch_bounds__(256) loss_backward_kernel(const T* grad_loss, const LossBatch<T> first,
                                                            const LossBatch<T> second, double scale, int64_t split) {
  using A = Compute<T>;
  // Member by member: a choice between structs would go through memory.
  const bool is_first = blockIdx.x < split;
  const T* logits = is_first ? first.logits : second.logits;
  T* grad = is_first ? first.grad : second.grad;
  const int64_t count = is_first ? first.count : second.count;
  const A target = static_cast<A>(is_first ? first.target : second.target);
  const int64_t i = (blockIdx.x - (is_first ? 0 : split)) * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= count) return;
  const A x = widen(logits[i]);
  const A e = std::exp(-std::abs(x));
  const double factor = scale * static_cast<double>(widen(*grad_loss)) / static_cast<double>(count);
  grad[i] = narrow<T>(static_cast<A>(factor * loss_slope(x, e, target)));
}

// Launch: as in batch_norm_act.cuh.

template <class T, class Launch>
void run_loss_forward(const Launch& launch, const LossForwardArguments<T>& a) {
  const int64_t most = a.first.count > a.second.count ? a.first.count : a.second.count;
  int threads = 32;
  while (threads < most && threads < kLossThreads) threads *= 2;
  launch(loss_forward_kernel<T>, 1, threads, a.first, a.second, a.two, a.scale, a.loss, a.means);
}

template <class T, class Launch>
void run_loss_backward(const Launch& launch, const LossBackwardArguments<T>& a) {
  constexpr int kThreadsEach = 256;
  const int64_t split = (a.first.count + kThreadsEach - 1) / kThreadsEach;
  const int64_t blocks = split + (a.second.count + kThreadsEach - 1) / kThreadsEach;
  if (!blocks) return;
  launch(loss_backward_kernel<T>, blocks, kThreadsEach, a.grad_loss, a.first, a.second, a.scale, split);
}

}  // namespace gan_fast::cuda
