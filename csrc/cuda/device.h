// What host code tells a kernel's launches. Host code (<op>_host.cpp) knows torch, kernels (<op>.cu, *.cuh) do not:
// nvcc reads a .cu once for each architecture, and torch's headers would take it longer than the kernels.
#pragma once

#include <cstdint>
#include <type_traits>

namespace gan_fast::cuda {

// What values of a storage type are computed in.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Where to launch, with the device already the current one.
struct Stream {
  const char* op;
  void* stream;  // cudaStream_t
  int multiprocessors;
};

}  // namespace gan_fast::cuda
