// The adversarial losses on a GPU: checks and allocation.

#include "../common/adversarial_loss.h"
#include "adversarial_loss.h"
#include "host.h"

namespace gan_fast {
namespace {

using namespace adversarial;

// Logits without gaps (paired logits with the same strides), and tensors for their gradients.
struct Batches {
  Tensor logits[2], grads[2];
  double targets[2];

  Batches(const Tensor& x, double target, const MaybeTensor& other, double other_target, Relativistic relativistic,
          bool grad_wanted, bool other_grad_wanted)
      : logits{without_gaps(x), nothing()}, grads{nothing(), nothing()}, targets{target, other_target} {
    if (other) logits[1] = relativistic == Relativistic::paired ? in_order_of(logits[0], *other) : without_gaps(*other);
    if (grad_wanted) grads[0] = empty_as(logits[0]);
    if (other && other_grad_wanted) grads[1] = empty_as(logits[1]);
  }

  template <class T>
  cuda::LossBatch<T> at(int i) const {
    if (!logits[i].defined()) return {};
    return {cuda::data<T>(logits[i]), cuda::mutable_data<T>(grads[i]), logits[i].numel(), targets[i]};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& logits, double target, const MaybeTensor& other,
                                                   double other_target, double scale, std::string kind,
                                                   std::string relativistic, bool means_wanted, bool grad_wanted,
                                                   bool other_grad_wanted) {
  check::cuda(kForward, "logits", logits);
  const Kind phi = parse_kind(kForward, kind);
  const Relativistic related = parse_relativistic(kForward, relativistic);
  check_batches(kForward, logits, target, other, other_target, related);
  const cuda::OnDevice device(kForward, logits);
  const Batches batches(logits, target, other, other_target, related, grad_wanted, other_grad_wanted);
  const Tensor loss = empty_strided(logits, {}, {}, logits.scalar_type());
  const Tensor means = means_wanted ? empty_vector(logits, other ? 3 : 1, logits.scalar_type()) : nothing();
  cuda::for_dtype(logits.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    cuda::loss_forward<T>(device.stream(), {nullptr, batches.at<T>(0), batches.at<T>(1), other.has_value(), scale, phi,
                                            related, cuda::mutable_data<T>(loss), cuda::mutable_data<T>(means)});
  });
  return {loss, means, batches.grads[0], batches.grads[1]};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_loss, const Tensor& logits, double target,
                                    const MaybeTensor& other, double other_target, double scale, std::string kind,
                                    std::string relativistic) {
  check::cuda(kBackward, "logits", logits);
  const Kind phi = parse_kind(kBackward, kind);
  const Relativistic related = parse_relativistic(kBackward, relativistic);
  check_batches(kBackward, logits, target, other, other_target, related);
  check_grad_loss(grad_loss, logits);
  const cuda::OnDevice device(kBackward, logits);
  const Batches batches(logits, target, other, other_target, related, true, true);
  cuda::for_dtype(logits.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    cuda::loss_backward<T>(device.stream(), {cuda::data<T>(grad_loss), batches.at<T>(0), batches.at<T>(1),
                                             other.has_value(), scale, phi, related, nullptr, nullptr});
  });
  return {batches.grads[0], batches.grads[1]};
}

}  // namespace
}  // namespace gan_fast

STABLE_TORCH_LIBRARY_IMPL(gan_fast, CUDA, m) {
  m.impl("adversarial_loss_forward", TORCH_BOX(&gan_fast::forward));
  m.impl("adversarial_loss_backward", TORCH_BOX(&gan_fast::backward));
}
