// Launches the kernels of adversarial_loss.cuh for every dtype.

#include "adversarial_loss.cuh"
#include "launch.cuh"

namespace gan_fast::cuda {

template <class T>
void loss_forward(const Stream& stream, const LossArguments<T>& arguments) {
  run_loss_forward(Launch(stream), arguments);
}

template <class T>
void loss_backward(const Stream& stream, const LossArguments<T>& arguments) {
  run_loss_backward(Launch(stream), arguments);
}

#define GAN_FAST_INSTANTIATE(T)                                          \
  template void loss_forward<T>(const Stream&, const LossArguments<T>&); \
  template void loss_backward<T>(const Stream&, const LossArguments<T>&);

GAN_FAST_INSTANTIATE(double)
GAN_FAST_INSTANTIATE(float)
GAN_FAST_INSTANTIATE(__half)
GAN_FAST_INSTANTIATE(__nv_bfloat16)

}  // namespace gan_fast::cuda
