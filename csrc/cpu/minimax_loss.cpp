// Mean binary cross entropy with logits over one or two batches of logits: the losses of the minimax game.

#include "../common/minimax_loss.h"

#include <algorithm>

#include "../common/dtype.h"
#include "isa.h"
#include "lanes.h"
#include "math.h"

namespace gan_fast {
namespace {

using namespace minimax;  // checks, logits without gaps

// Logits are summed in blocks of this many, each by one thread, and the blocks in order: the result does not depend on
// the number of threads.
constexpr int64_t kBlock = 4096;
// Fewer logits than this are done sooner than a second thread is woken, as ATen has it (at::internal::GRAIN_SIZE).
constexpr int64_t kGrain = 8 * kBlock;

struct Sums {
  double loss = 0;
  double probability = 0;
};

// (1 - target) x + softplus(-x), the form whose infinities and NaN are those of ATen; and, where `grad` is not null,
// factor (sigmoid(x) - target).
template <class T>
struct LossBlock {
  const T* logits;
  T* grad;
  double target;
  double factor;
  Sums* blocks;

  GAN_FAST_INLINE void operator()(int64_t block, int64_t begin, int64_t end) const {
    F64 loss{}, probabilities{};
    for (int64_t i = begin; i < end; i += kLanes) {
      const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
      const F64 x = widen(load(logits + i, count));
      const F64 e = math::exp_nonpositive<Vec<T>>(math::minus_abs(x));
      const F64 softplus = (x < 0.0 ? -x : F64{}) + math::log1p_unit<Vec<T>>(e);
      const F64 probability = math::sigmoid(x, e);
      loss += keep((1 - target) * x + softplus, count);
      probabilities += keep(probability, count);
      if (grad) store(grad + i, narrow<Vec<T>>((probability - target) * factor), count);
    }
    blocks[block] = {sum(loss), sum(probabilities)};
  }
};

// factor (sigmoid(x) - target), to the same bits.
template <class T>
struct GradBlock {
  const T* logits;
  T* grad;
  double target;
  double factor;

  GAN_FAST_INLINE void operator()(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; i += kLanes) {
      const int count = static_cast<int>(end - i < kLanes ? end - i : kLanes);
      const F64 probability = math::sigmoid<Vec<T>>(widen(load(logits + i, count)));
      store(grad + i, narrow<Vec<T>>((probability - target) * factor), count);
    }
  }
};

// One batch of logits: its means, and its gradient at a loss gradient of one where that is wanted.
struct Batch {
  double loss = 0;
  double probability = 0;
  Tensor grad = nothing();
};

// Means over no logits are 0 / 0, as in ATen.
Batch run_batch(const Tensor& logits, double target, double scale, bool grad_wanted) {
  const Tensor x = without_gaps(logits);
  Batch batch;
  if (grad_wanted) batch.grad = grad_for(x);
  const int64_t count = x.numel();
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  Sums first;
  std::vector<Sums> rest(blocks > 1 ? blocks : 0);
  Sums* partial = blocks > 1 ? rest.data() : &first;
  for_dtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const LossBlock<T> kernel{static_cast<const T*>(x.const_data_ptr()),
                              grad_wanted ? static_cast<T*>(batch.grad.mutable_data_ptr()) : nullptr, target,
                              scale / static_cast<double>(count), partial};
    torch::stable::parallel_for(0, blocks, kGrain / kBlock, [&](int64_t from, int64_t to) {
      for (int64_t b = from; b < to; ++b) {
        isa::run(kernel, b, b * kBlock, std::min(count, (b + 1) * kBlock));
      }
    });
  });
  for (int64_t b = 0; b < blocks; ++b) {
    batch.loss += partial[b].loss;
    batch.probability += partial[b].probability;
  }
  batch.loss /= static_cast<double>(count);
  batch.probability /= static_cast<double>(count);
  return batch;
}

template <class T>
void write(const Tensor& t, int64_t index, double value) {
  static_cast<T*>(t.mutable_data_ptr())[index] = static_cast<T>(static_cast<Compute<T>>(value));
}

double scalar_value(const Tensor& t) {
  return for_dtype(t.scalar_type(), [&](auto tag) {
    return static_cast<double>(*static_cast<const decltype(tag)*>(t.const_data_ptr()));
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& logits, double target, const MaybeTensor& other,
                                                   double other_target, double scale, bool means_wanted,
                                                   bool grad_wanted, bool other_grad_wanted) {
  check::cpu(kForward, "logits", logits);
  check_batches(kForward, logits, target, other, other_target);
  const Batch first = run_batch(logits, target, scale, grad_wanted);
  const Batch second = other ? run_batch(*other, other_target, scale, other_grad_wanted) : Batch{};
  const Tensor loss = empty_strided(logits, {}, {}, logits.scalar_type());
  const Tensor means = means_wanted ? empty_vector(logits, other ? 2 : 1, logits.scalar_type()) : nothing();
  for_dtype(logits.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    write<T>(loss, 0, scale * (first.loss + second.loss));
    if (means_wanted) write<T>(means, 0, first.probability);
    if (means_wanted && other) write<T>(means, 1, second.probability);
  });
  return {loss, means, first.grad, second.grad};
}

Tensor grad(const Tensor& logits, double target, double factor) {
  const Tensor x = without_gaps(logits);
  const Tensor result = grad_for(x);
  const int64_t count = x.numel();
  for_dtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const GradBlock<T> kernel{static_cast<const T*>(x.const_data_ptr()), static_cast<T*>(result.mutable_data_ptr()),
                              target, factor / static_cast<double>(count)};
    torch::stable::parallel_for(0, count, kGrain, [&](int64_t from, int64_t to) { isa::run(kernel, from, to); });
  });
  return result;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_loss, const Tensor& logits, double target,
                                    const MaybeTensor& other, double other_target, double scale) {
  check::cpu(kBackward, "logits", logits);
  check_batches(kBackward, logits, target, other, other_target);
  check_grad_loss(grad_loss, logits);
  const double factor = scale * scalar_value(grad_loss);
  return {grad(logits, target, factor), other ? grad(*other, other_target, factor) : nothing()};
}

}  // namespace
}  // namespace gan_fast

STABLE_TORCH_LIBRARY_IMPL(gan_fast, CPU, m) {
  m.impl("minimax_loss_forward", TORCH_BOX(&gan_fast::forward));
  m.impl("minimax_loss_backward", TORCH_BOX(&gan_fast::backward));
}
