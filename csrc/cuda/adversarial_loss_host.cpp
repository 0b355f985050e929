// Mean binary cross entropy with logits over one or two batches of logits, on a GPU: checks and allocation.

#include "../common/minimax_loss.h"
#include "host.h"
#include "minimax_loss.h"

namespace gan_fast {
namespace {

using namespace minimax;  // checks, logits without gaps

// A batch of logits without gaps, and room for its gradient.
struct Batch {
  Tensor logits = nothing();
  Tensor grad = nothing();
  double target = 0;

  Batch() = default;

  Batch(const Tensor& t, double target, bool grad_wanted)
      : logits(without_gaps(t)), grad(grad_wanted ? grad_for(logits) : nothing()), target(target) {}

  template <class T>
  cuda::LossBatch<T> pointers() const {
    if (!logits.defined()) return {};
    return {cuda::data<T>(logits), cuda::mutable_data<T>(grad), logits.numel(), target};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& logits, double target, const MaybeTensor& other,
                                                   double other_target, double scale, bool means_wanted,
                                                   bool grad_wanted, bool other_grad_wanted) {
  check::cuda(kForward, "logits", logits);
  check_batches(kForward, logits, target, other, other_target);
  const cuda::OnDevice device(kForward, logits);
  const Batch first(logits, target, grad_wanted);
  const Batch second = other ? Batch(*other, other_target, other_grad_wanted) : Batch();
  const Tensor loss = empty_strided(logits, {}, {}, logits.scalar_type());
  const Tensor means = means_wanted ? empty_vector(logits, other ? 2 : 1, logits.scalar_type()) : nothing();
  cuda::for_dtype(logits.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    cuda::loss_forward<T>(device.stream(), {first.pointers<T>(), second.pointers<T>(), other.has_value(), scale,
                                            cuda::mutable_data<T>(loss), cuda::mutable_data<T>(means)});
  });
  return {loss, means, first.grad, second.grad};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_loss, const Tensor& logits, double target,
                                    const MaybeTensor& other, double other_target, double scale) {
  check::cuda(kBackward, "logits", logits);
  check_batches(kBackward, logits, target, other, other_target);
  check_grad_loss(grad_loss, logits);
  const cuda::OnDevice device(kBackward, logits);
  const Batch first(logits, target, true);
  const Batch second = other ? Batch(*other, other_target, true) : Batch();
  cuda::for_dtype(logits.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    cuda::loss_backward<T>(device.stream(),
                           {cuda::data<T>(grad_loss), first.pointers<T>(), second.pointers<T>(), scale});
  });
  return {first.grad, second.grad};
}

}  // namespace
}  // namespace gan_fast

STABLE_TORCH_LIBRARY_IMPL(gan_fast, CUDA, m) {
  m.impl("minimax_loss_forward", TORCH_BOX(&gan_fast::forward));
  m.impl("minimax_loss_backward", TORCH_BOX(&gan_fast::backward));
}
