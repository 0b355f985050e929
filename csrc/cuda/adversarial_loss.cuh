// Kernels of the adversarial losses on a GPU; csrc/cpu/adversarial_loss.cpp has the same functions for a CPU.
//
// One block runs a whole forward pass. There are hundreds of logits, or some ten thousand for a patch discriminator: so
// few that a second launch, to merge the sums of several blocks, would cost more than it saves. The order of the sums
// depends only on the number of logits.
#pragma once

#include "adversarial_loss.h"
#include "scalar.cuh"

namespace gan_fast::cuda {

// In double, more threads would not have enough registers.
template <class T>
constexpr int kLossThreads = std::is_same_v<T, double> ? 256 : 1024;
constexpr int kLossSums = 5;

// phi and its derivative. minimax is computed in A, the logits' precision or float for half types; the kinds without an
// exponential in double.
template <class A>
struct Phi {
  Kind kind;
  double target;

  // exp(-|u|), used by the value, slope and probability of minimax.
  __device__ A exponential(double u) const {
    return kind == Kind::minimax ? std::exp(-std::abs(static_cast<A>(u))) : A{0};
  }

  __device__ double value(double u, A e) const {
    const double rest = 1 - target;
    switch (kind) {
      case Kind::minimax: {  // this form gives the same infinities and NaN as ATen
        const A x = static_cast<A>(u);
        return static_cast<A>(rest) * x + ((x < 0 ? -x : A{0}) + std::log1p(e));
      }
      case Kind::hinge: {
        // Skip a side with weight 0, since 0 times infinity is NaN.
        const double below = 1 - u, above = 1 + u;
        const double real = target == 0 ? 0 : target * (below < 0 ? 0 : below);
        return rest == 0 ? real : real + rest * (above < 0 ? 0 : above);
      }
      case Kind::wasserstein:
        return (rest - target) * u;
      default:
        return (u - target) * (u - target) / 2;
    }
  }

  __device__ double slope(double u, A e) const {
    const double rest = 1 - target;
    switch (kind) {
      case Kind::minimax: {  // sigmoid(u) - target, without cancellation if the target is 0 or 1
        const A real = static_cast<A>(target), fake = static_cast<A>(rest);
        return (static_cast<A>(u) < 0 ? e * fake - real : fake - e * real) / (1 + e);
      }
      case Kind::hinge:  // as in ATen: 0 at a kink, and NaN counts as inside the margin
        return (1 + u <= 0 ? 0 : rest) - (1 - u <= 0 ? 0 : target);
      case Kind::wasserstein:
        return rest - target;
      default:
        return u - target;
    }
  }
};

// Sums `values` over the threads of a block; every thread gets the sums.
template <int N, int kThreads>
__device__ inline void sum_block(double (*scratch)[kThreads], double (&values)[N]) {
  const int thread = threadIdx.x;
  __syncthreads();  // all threads have read the sums of the last call
  for (int n = 0; n < N; ++n) scratch[n][thread] = values[n];
  for (int half = blockDim.x / 2; half >= 1; half /= 2) {
    __syncthreads();
    if (thread < half) {
      for (int n = 0; n < N; ++n) scratch[n][thread] += scratch[n][thread + half];
    }
  }
  __syncthreads();
  for (int n = 0; n < N; ++n) values[n] = scratch[n][0];
}

template <class T>
__device__ double sum_logits(const LossBatch<T>& batch) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < batch.count; i += blockDim.x) sum += widen(batch.logits[i]);
  return sum;
}

template <class T>
__device__ T narrowed(double x) {
  return narrow<T>(static_cast<Compute<T>>(x));
}

// A thread's sums over a batch: phi; phi' for relativistic average, else D's answers; the paired logits; the number of
// logits on the correct side of the threshold.
struct LossSums {
  double losses = 0, slopes_or_answers = 0, other_answers = 0, correct = 0;
};

// Computes the sums and, except for relativistic average, the gradients.
template <class T>
__device__ LossSums loss_batch(const LossArguments<T>& a, const LossBatch<T>& batch, bool is_first, double shift,
                               double threshold, double factor) {
  using A = Compute<T>;
  const bool paired = a.relativistic == Relativistic::paired, average = a.relativistic == Relativistic::average;
  const bool probabilities = a.relativistic == Relativistic::none && a.kind == Kind::minimax;
  const Phi<A> phi{a.kind, batch.target};
  LossSums sums;
  for (int64_t i = threadIdx.x; i < batch.count; i += blockDim.x) {
    const A x = widen(batch.logits[i]);
    const double other = paired ? static_cast<double>(widen(a.second.logits[i])) : shift;
    const double u = static_cast<double>(x) - other;
    const A e = phi.exponential(u);
    const double slope = phi.slope(u, e), grad = factor * slope;
    sums.losses += phi.value(u, e);
    sums.slopes_or_answers += average ? slope : probabilities ? (x < 0 ? e : A{1}) / (1 + e) : x;
    if (paired) sums.other_answers += other;
    const double limit = paired ? other : threshold;
    sums.correct += is_first ? x > limit : x < limit;
    if (average) continue;
    if (batch.grad) batch.grad[i] = narrowed<T>(grad);
    if (paired && a.second.grad) a.second.grad[i] = narrowed<T>(-grad);
  }
  return sums;
}

// Gradients for relativistic average: factor (phi' - offset).
template <class T>
__device__ void grad_batch(Kind kind, const LossBatch<T>& batch, double shift, double offset, double factor) {
  if (!batch.grad) return;
  const Phi<Compute<T>> phi{kind, batch.target};
  for (int64_t i = threadIdx.x; i < batch.count; i += blockDim.x) {
    const double u = static_cast<double>(widen(batch.logits[i])) - shift;
    batch.grad[i] = narrowed<T>(factor * (phi.slope(u, phi.exponential(u)) - offset));
  }
}

// Means of no logits are 0 / 0 = NaN, as in ATen.
template <class T>
__global__ void __launch_bounds__(kLossThreads<T>) loss_forward_kernel(const LossArguments<T> a) {
  __shared__ double scratch[kLossSums][kLossThreads<T>];
  const bool average = a.relativistic == Relativistic::average, paired = a.relativistic == Relativistic::paired;
  const double count = static_cast<double>(a.first.count), other_count = static_cast<double>(a.second.count);
  const double factor = a.scale * (a.grad_loss ? static_cast<double>(widen(*a.grad_loss)) : 1);
  double averages[2] = {};
  double threshold = a.kind == Kind::least_squares ? 0.5 : 0, other_threshold = threshold;
  if (average || (a.means && a.two && !paired && a.kind == Kind::wasserstein)) {
    averages[0] = sum_logits(a.first);
    averages[1] = sum_logits(a.second);
    sum_block(scratch, averages);
    averages[0] /= count;
    averages[1] /= other_count;
    threshold = average ? averages[1] : (averages[0] + averages[1]) / 2;
    other_threshold = average ? averages[0] : threshold;
  }
  const double shift = average ? averages[1] : 0, other_shift = average ? averages[0] : 0;
  const LossSums first = loss_batch(a, a.first, true, shift, threshold, factor / count);
  LossSums second;
  if (a.two && !paired) second = loss_batch(a, a.second, false, other_shift, other_threshold, factor / other_count);
  double sums[kLossSums] = {first.losses, second.losses, first.slopes_or_answers,
                            paired ? first.other_answers : second.slopes_or_answers, first.correct + second.correct};
  sum_block(scratch, sums);
  if (threadIdx.x == 0 && a.loss) {
    const double other = a.two && !paired ? sums[1] / other_count : 0;
    *a.loss = narrowed<T>(a.scale * (sums[0] / count + other));
  }
  if (threadIdx.x == 0 && a.means) {
    a.means[0] = narrowed<T>(average ? averages[0] : sums[2] / count);
    if (a.two) {
      a.means[1] = narrowed<T>(average ? averages[1] : sums[3] / other_count);
      a.means[2] = narrowed<T>(sums[4] / (paired ? count : count + other_count));
    }
  }
  if (!average) return;
  // Each batch also gets a gradient through its average, from phi' of the other batch. So all sums come first. An empty
  // other batch contributes nothing.
  grad_batch(a.kind, a.first, averages[1], a.second.count ? sums[3] / other_count : 0, factor / count);
  grad_batch(a.kind, a.second, averages[0], a.first.count ? sums[2] / count : 0, factor / other_count);
}

// The gradients of both batches for the relations none and paired. The first `split` blocks handle the first batch or
// the pairs, the others the second batch.
template <class T>
__global__ void __launch_bounds__(256) loss_backward_kernel(const LossArguments<T> a, int64_t split) {
  // Select the members separately, since selecting a struct would go through memory.
  const bool is_first = blockIdx.x < split;
  const T* logits = is_first ? a.first.logits : a.second.logits;
  T* grad = is_first ? a.first.grad : a.second.grad;
  const int64_t count = is_first ? a.first.count : a.second.count;
  const Phi<Compute<T>> phi{a.kind, is_first ? a.first.target : a.second.target};
  const int64_t i = (blockIdx.x - (is_first ? 0 : split)) * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= count) return;
  const bool paired = a.relativistic == Relativistic::paired;
  const double u =
      static_cast<double>(widen(logits[i])) - (paired ? static_cast<double>(widen(a.second.logits[i])) : 0);
  const double factor = a.scale * static_cast<double>(widen(*a.grad_loss)) / static_cast<double>(count);
  const double value = factor * phi.slope(u, phi.exponential(u));
  grad[i] = narrowed<T>(value);
  if (paired) a.second.grad[i] = narrowed<T>(-value);
}

// Launch is cuda::Launch of launch.cuh or emulator::Launch of tests/cuda/emulator.h.

template <class T, class Launch>
void run_loss_forward(const Launch& launch, const LossArguments<T>& a) {
  const int64_t most = a.first.count > a.second.count ? a.first.count : a.second.count;
  int threads = 32;
  while (threads < most && threads < kLossThreads<T>) threads *= 2;
  launch(loss_forward_kernel<T>, 1, threads, a);
}

template <class T, class Launch>
void run_loss_backward(const Launch& launch, const LossArguments<T>& a) {
  if (a.relativistic == Relativistic::average) return run_loss_forward(launch, a);
  constexpr int kThreadsEach = 256;
  const int64_t split = (a.first.count + kThreadsEach - 1) / kThreadsEach;
  const bool pairs = a.relativistic == Relativistic::paired;
  const int64_t blocks = split + (pairs ? 0 : (a.second.count + kThreadsEach - 1) / kThreadsEach);
  if (!blocks) return;
  launch(loss_backward_kernel<T>, blocks, kThreadsEach, a, split);
}

}  // namespace gan_fast::cuda
