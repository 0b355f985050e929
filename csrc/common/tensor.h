// Memory formats and allocation of tensors, on top of LibTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

namespace gan_fast {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// Calls f(d, stride) for each dim d of t, innermost first, with the stride of d if t were dense in `format`. Stops and
// returns false when f returns false.
template <class F>
bool for_dense_strides(const Tensor& t, MemoryFormat format, const F& f) {
  const auto size = t.sizes();
  const int64_t dim = static_cast<int64_t>(size.size());
  int64_t stride = 1;
  const auto visit = [&](int64_t d) {
    const bool more = f(d, stride);
    stride *= size[d] > 1 ? size[d] : 1;
    return more;
  };
  const bool channels_last = format != MemoryFormat::Contiguous;
  if (channels_last && !visit(1)) return false;
  for (int64_t d = dim - 1; d >= (channels_last ? 2 : 0); --d) {
    if (!visit(d)) return false;
  }
  return !channels_last || visit(0);
}

inline std::vector<int64_t> strides_for(const Tensor& t, MemoryFormat format) {
  std::vector<int64_t> strides(t.dim());
  for_dense_strides(t, format, [&](int64_t d, int64_t stride) {
    strides[d] = stride;
    return true;
  });
  return strides;
}

// Whether t is dense in `format`. The stride of a dim of size one does not matter.
inline bool is_dense(const Tensor& t, MemoryFormat format) {
  const auto size = t.sizes();
  const auto strides = t.strides();
  return for_dense_strides(t, format, [&](int64_t d, int64_t stride) { return size[d] == 1 || strides[d] == stride; });
}

// The memory format that ATen's batch norm gives its output for input t: channels-last if t is 4-d or 5-d and its
// strides have that order (with or without gaps), else contiguous. gan_fast/memory_format.py is the same rule for fake
// tensors.
inline MemoryFormat suggest_memory_format(const Tensor& t) {
  const int64_t dim = t.dim();
  if ((dim != 4 && dim != 5) || t.numel() == 0) return MemoryFormat::Contiguous;
  if (is_dense(t, MemoryFormat::Contiguous)) return MemoryFormat::Contiguous;
  const MemoryFormat channels_last = dim == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d;
  if (is_dense(t, channels_last)) return channels_last;
  const auto size = t.sizes();
  const auto stride = t.strides();
  if (stride[1] == 0) return MemoryFormat::Contiguous;
  int64_t least = 0;
  for (int64_t i = 0; i < dim; ++i) {
    const int64_t d = i == 0 ? 1 : (i == dim - 1 ? 0 : dim - i);  // channels, spatial dims from the last, batch
    if (stride[d] < least || (d == 0 && least == stride[1])) return MemoryFormat::Contiguous;
    least = stride[d] * size[d];
  }
  return channels_last;
}

// aoti_torch_empty_strided is a direct call; torch::stable::empty goes through the dispatcher and costs twice as much.
inline Tensor empty_strided(const Tensor& device_of, const std::vector<int64_t>& size,
                            const std::vector<int64_t>& stride, ScalarType dtype) {
  int32_t device_type = 0, device_index = 0, dtype_code = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(device_of.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(device_of.get(), &device_index));
  dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(), stride.data(),
                                                  dtype_code, device_type, device_index, &handle));
  return Tensor(handle);
}

// The value of a result that a caller does not need: an undefined tensor, None in Python.
inline Tensor nothing() { return Tensor(); }

inline Tensor empty_vector(const Tensor& device_of, int64_t length, ScalarType dtype) {
  return empty_strided(device_of, {length}, {1}, dtype);
}

// A new tensor of t's shape and dtype, dense in `format`.
inline Tensor empty_like(const Tensor& t, MemoryFormat format) {
  const auto size = t.sizes();
  return empty_strided(t, {size.begin(), size.end()}, strides_for(t, format), t.scalar_type());
}

// t, or a copy, dense in `format`.
inline Tensor dense(const Tensor& t, MemoryFormat format) {
  return is_dense(t, format) ? t : torch::stable::contiguous(t, format);
}

// Whether t's elements fill memory without gaps or overlaps, in any order of its dims.
inline bool is_dense_in_some_order(const Tensor& t) {
  const auto size = t.sizes();
  const auto stride = t.strides();
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (size_t d = 0; d < size.size(); ++d) {
    if (size[d] != 1) dims.emplace_back(stride[d], size[d]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride_d, size_d] : dims) {
    if (stride_d != expected) return false;
    expected *= size_d;
  }
  return true;
}

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Half;
}

// The dtype of statistics and sums: float32 for half types.
inline ScalarType compute_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace gan_fast
