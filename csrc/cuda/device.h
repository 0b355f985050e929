// What host code passes to kernel launches. Host code (<op>_host.cpp) includes torch, kernels (<op>.cu, *.cuh) do not:
// nvcc compiles a .cu file once per architecture, and torch's headers would take longer than the kernels.
#pragma once

#include <cstdint>
#include <type_traits>

namespace gan_fast::cuda {

// The type in which values of storage type T are computed.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// A stream of the current device.
struct Stream {
  const char* op;
  void* stream;  // cudaStream_t
  int multiprocessors;
};

}  // namespace gan_fast::cuda
