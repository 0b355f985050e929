// Helpers of host code: the GPU and stream of a tensor, and its CUDA type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../common/checks.h"
#include "device.h"

namespace gan_fast::cuda {

// Makes a tensor's GPU the current device while this object lives, and gives its current stream.
class OnDevice {
 public:
  OnDevice(const char* op, const Tensor& t) : guard_(t.get_device_index()), stream_{op, nullptr, 0} {
    const int32_t device = t.get_device_index();
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream_.stream));
    const cudaError_t error = cudaDeviceGetAttribute(&stream_.multiprocessors, cudaDevAttrMultiProcessorCount, device);
    STD_TORCH_CHECK(error == cudaSuccess, op, ": expected cuda:", device, " to report its multiprocessors, got ",
                    cudaGetErrorString(error));
  }

  const Stream& stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  Stream stream_;
};

// Calls f with a value of the CUDA type; only the argument's type matters.
template <class F>
void for_dtype(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(__nv_bfloat16{});
    case ScalarType::Half:
      return f(__half{});
    default:
      return f(float{});
  }
}

template <class T>
const T* data(const Tensor& t) {
  return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
}

template <class T>
T* mutable_data(const Tensor& t) {
  return t.defined() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

}  // namespace gan_fast::cuda
