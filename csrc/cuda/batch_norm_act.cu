// Launches the kernels of batch_norm_act.cuh for every dtype.

#include "batch_norm_act.cuh"
#include "launch.cuh"

namespace gan_fast::cuda {

template <class T>
void forward(const Stream& stream, const ForwardArguments<T>& arguments) {
  run_forward(Launch(stream), arguments);
}

template <class T>
void normalize(const Stream& stream, const NormalizeArguments<T>& arguments) {
  run_normalize(Launch(stream), arguments);
}

template <class T>
void backward(const Stream& stream, const BackwardArguments<T>& arguments) {
  run_backward(Launch(stream), arguments);
}

template <class T>
void double_backward(const Stream& stream, const DoubleBackwardArguments<T>& arguments) {
  run_double_backward(Launch(stream), arguments);
}

#define GAN_FAST_INSTANTIATE(T)                                            \
  template void forward<T>(const Stream&, const ForwardArguments<T>&);     \
  template void normalize<T>(const Stream&, const NormalizeArguments<T>&); \
  template void backward<T>(const Stream&, const BackwardArguments<T>&);   \
  template void double_backward<T>(const Stream&, const DoubleBackwardArguments<T>&);

GAN_FAST_INSTANTIATE(double)
GAN_FAST_INSTANTIATE(float)
GAN_FAST_INSTANTIATE(__half)
GAN_FAST_INSTANTIATE(__nv_bfloat16)

}  // namespace gan_fast::cuda
