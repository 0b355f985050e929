// Launches kernels on a stream: the Launch of *.cuh.
#pragma once

#include <stdexcept>
#include <string>

#include "device.h"

namespace gan_fast::cuda {

struct Launch : Stream {
  explicit Launch(const Stream& stream) : Stream(stream) {}

  template <class... P, class... A>
  void operator()(void (*kernel)(P...), int64_t blocks, int threads, const A&... arguments) const {
    constexpr int64_t kMaxBlocks = 2147483647;
    if (blocks > kMaxBlocks) fail("input of at most " + std::to_string(kMaxBlocks) + " blocks", std::to_string(blocks));
    kernel<<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) fail("a CUDA kernel to launch", cudaGetErrorString(error));
  }

 private:
  [[noreturn]] void fail(const std::string& want, const std::string& have) const {
    throw std::runtime_error(std::string(op) + ": expected " + want + ", got " + have);
  }
};

}  // namespace gan_fast::cuda
