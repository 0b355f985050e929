// The adversarial losses over one or two batches of logits on a GPU: csrc/cpu/adversarial_loss.cpp.
//
// One block does all of a forward pass: losses have hundreds of logits, a patch discriminator's some ten thousand, and
// a second launch would cost more than a wider first one saves. The order of its sums depends on their number alone.
#pragma once

#include "adversarial_loss.h"
#include "scalar.cuh"

namespace gan_fast::cuda {

// In double they want more registers than 1024 threads have.
template <class T>
constexpr int kLossThreads = std::is_same_v<T, double> ? 512 : 1024;
constexpr int kLossSums = 5;

// phi: bce in the logits' precision A (single for half types), what takes no exponential in double.
template <class A>
struct Phi {
  Kind kind;
  double target;

  // bce's exp(-|u|), which its value, slope and probability share.
  __device__ A exponential(double u) const { return kind == Kind::bce ? std::exp(-std::abs(static_cast<A>(u))) : A{0}; }

  __device__ double value(double u, A e) const {
    const double rest = 1 - target;
    switch (kind) {
      case Kind::bce: {  // the form whose infinities and NaN are those of ATen
        const A x = static_cast<A>(u);
        return static_cast<A>(rest) * x + ((x < 0 ? -x : A{0}) + std::log1p(e));
      }
      case Kind::hinge: {
        // A side without weight is left out: zero times infinity would be NaN.
        const double below = 1 - u, above = 1 + u;
        const double real = target == 0 ? 0 : target * (below < 0 ? 0 : below);
        return rest == 0 ? real : real + rest * (above < 0 ? 0 : above);
      }
      case Kind::linear:
        return (rest - target) * u;
      default:
        return (u - target) * (u - target) / 2;
    }
  }

  __device__ double slope(double u, A e) const {
    const double rest = 1 - target;
    switch (kind) {
      case Kind::bce: {  // sigmoid(u) - target, without cancellation where the target is 0 or 1
        const A real = static_cast<A>(target), fake = static_cast<A>(rest);
        return (static_cast<A>(u) < 0 ? e * fake - real : fake - e * real) / (1 + e);
      }
      case Kind::hinge:  // at the kinks 0, and through for NaN, as in ATen
        return (1 + u <= 0 ? 0 : rest) - (1 - u <= 0 ? 0 : target);
      case Kind::linear:
        return rest - target;
      default:
        return u - target;
    }
  }
};

// Sums over a block of what its threads have, for all of them.
template <int N, int kThreads>
__device__ inline void sum_block(double (*scratch)[kThreads], double (&values)[N]) {
  const int thread = threadIdx.x;
  __syncthreads();  // those of the last call have been read
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

// Means over no logits are 0 / 0, as in ATen.
template <class T>
__global__ void __launch_bounds__(kLossThreads<T>) loss_forward_kernel(const LossArguments<T> a) {
  using A = Compute<T>;
  __shared__ double scratch[kLossSums][kLossThreads<T>];
  const bool none = a.relation == Relation::none, average = a.relation == Relation::average;
  const bool paired = a.relation == Relation::paired, probabilities = none && a.kind == Kind::bce;
  const double counts[2] = {static_cast<double>(a.first.count), static_cast<double>(a.second.count)};
  const double factor = a.scale * (a.grad_loss ? static_cast<double>(widen(*a.grad_loss)) : 1);
  double averages[2] = {};
  if (average || (a.means && a.two && none && a.kind == Kind::linear)) {
    averages[0] = sum_logits(a.first);
    averages[1] = sum_logits(a.second);
    sum_block(scratch, averages);
    for (int side = 0; side < 2; ++side) averages[side] /= counts[side];
  }
  const double midpoint = a.kind == Kind::linear ? (averages[0] + averages[1]) / 2 : a.kind == Kind::squared ? 0.5 : 0;
  // Losses; D's answers (slopes where they are against averages); how many logits are placed rightly.
  double sums[kLossSums] = {};
  for (int side = 0; side < (a.two && !paired ? 2 : 1); ++side) {
    const LossBatch<T>& batch = side ? a.second : a.first;
    const Phi<A> phi{a.kind, batch.target};
    const double shift = average ? averages[1 - side] : 0;
    for (int64_t i = threadIdx.x; i < batch.count; i += blockDim.x) {
      const A x = widen(batch.logits[i]);
      const A other = paired ? widen(a.second.logits[i]) : A{0};
      const double u = static_cast<double>(x) - (paired ? static_cast<double>(other) : shift);
      const A e = phi.exponential(u);
      const double slope = phi.slope(u, e);
      sums[side] += phi.value(u, e);
      sums[2 + side] += average ? slope : probabilities ? (x < 0 ? e : A{1}) / (1 + e) : x;
      if (paired) sums[3] += other;
      const double than = paired ? static_cast<double>(other) : average ? shift : midpoint;
      sums[4] += side ? x < than : x > than;
      if (average) continue;
      if (batch.grad) batch.grad[i] = narrowed<T>(factor / counts[side] * slope);
      if (paired && a.second.grad) a.second.grad[i] = narrowed<T>(-(factor / counts[side] * slope));
    }
  }
  sum_block(scratch, sums);
  if (threadIdx.x == 0 && a.loss) {
    const double other = a.two && !paired ? sums[1] / counts[1] : 0;
    *a.loss = narrowed<T>(a.scale * (sums[0] / counts[0] + other));
  }
  if (threadIdx.x == 0 && a.means) {
    a.means[0] = narrowed<T>(average ? averages[0] : sums[2] / counts[0]);
    if (a.two) {
      a.means[1] = narrowed<T>(average ? averages[1] : sums[3] / counts[1]);
      a.means[2] = narrowed<T>(sums[4] / (paired ? counts[0] : counts[0] + counts[1]));
    }
  }
  if (!average) return;
  // A gradient waits for the slopes of the other batch, which reach it through its own average; where there are no
  // logits nothing flows.
  for (int side = 0; side < 2; ++side) {
    const LossBatch<T>& batch = side ? a.second : a.first;
    if (!batch.grad) continue;
    const Phi<A> phi{a.kind, batch.target};
    const double offset = counts[1 - side] > 0 ? sums[3 - side] / counts[1 - side] : 0;
    for (int64_t i = threadIdx.x; i < batch.count; i += blockDim.x) {
      const double u = static_cast<double>(widen(batch.logits[i])) - averages[1 - side];
      batch.grad[i] = narrowed<T>(factor / counts[side] * (phi.slope(u, phi.exponential(u)) - offset));
    }
  }
}

// The gradients of both batches where none depends on all logits: `split` blocks for the first or for pairs, the others
// for the second.
template <class T>
__global__ void __launch_bounds__(256) loss_backward_kernel(const LossArguments<T> a, int64_t split) {
  // Member by member: a choice between structs would go through memory.
  const bool is_first = blockIdx.x < split;
  const T* logits = is_first ? a.first.logits : a.second.logits;
  T* grad = is_first ? a.first.grad : a.second.grad;
  const int64_t count = is_first ? a.first.count : a.second.count;
  const Phi<Compute<T>> phi{a.kind, is_first ? a.first.target : a.second.target};
  const int64_t i = (blockIdx.x - (is_first ? 0 : split)) * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= count) return;
  const bool paired = a.relation == Relation::paired;
  const double u =
      static_cast<double>(widen(logits[i])) - (paired ? static_cast<double>(widen(a.second.logits[i])) : 0);
  const double factor = a.scale * static_cast<double>(widen(*a.grad_loss)) / static_cast<double>(count);
  const double value = factor * phi.slope(u, phi.exponential(u));
  grad[i] = narrowed<T>(value);
  if (paired) a.second.grad[i] = narrowed<T>(-value);
}

// Launch: as in batch_norm_act.cuh.

template <class T, class Launch>
void run_loss_forward(const Launch& launch, const LossArguments<T>& a) {
  const int64_t most = a.first.count > a.second.count ? a.first.count : a.second.count;
  int threads = 32;
  while (threads < most && threads < kLossThreads<T>) threads *= 2;
  launch(loss_forward_kernel<T>, 1, threads, a);
}

template <class T, class Launch>
void run_loss_backward(const Launch& launch, const LossArguments<T>& a) {
  if (a.relation == Relation::average) return run_loss_forward(launch, a);
  constexpr int kThreadsEach = 256;
  const int64_t split = (a.first.count + kThreadsEach - 1) / kThreadsEach;
  const bool pairs = a.relation == Relation::paired;
  const int64_t blocks = split + (pairs ? 0 : (a.second.count + kThreadsEach - 1) / kThreadsEach);
  if (!blocks) return;
  launch(loss_backward_kernel<T>, blocks, kThreadsEach, a, split);
}

}  // namespace gan_fast::cuda
