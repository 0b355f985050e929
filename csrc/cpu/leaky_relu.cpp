// Leaky ReLU in place. It saves one sign bit per value for the gradient.

#include <algorithm>

#include "../common/checks.h"
#include "../common/dtype.h"
#include "isa.h"
#include "lanes.h"

namespace gan_fast {
namespace {

constexpr const char* kOver = "leaky_relu_over";
constexpr const char* kBackward = "leaky_relu_backward";

// Values are processed in memory order, in blocks of eight rows of eight. Bit k of byte j of a block is set if value j
// of row k is positive, so that vector operations can pack the bits.
constexpr int kRows = 8;
constexpr int64_t kBlock = kRows * kLanes;
// Blocks per thread: with fewer, another thread costs more than it saves.
constexpr int64_t kGrain = 512;

using U8 = uint8_t __attribute__((vector_size(8)));
using I64 = int64_t __attribute__((vector_size(64)));
// The type of the result of a comparison of vectors of T.
template <class T>
using Mask = std::conditional_t<std::is_same_v<T, double>, I64, I32>;

// Calls f(row, offset of its first value, number of values) for the rows of a block.
template <class F>
GAN_FAST_INLINE void for_rows(int64_t block, int64_t count, const F& f) {
  const int64_t first = block * kBlock;
  if (first + kBlock <= count) {
    GAN_FAST_UNROLL
    for (int k = 0; k < kRows; ++k) f(k, first + k * kLanes, kLanes);
    return;
  }
  for (int k = 0; k < kRows && first + k * kLanes < count; ++k) {
    const int64_t at = first + k * kLanes;
    f(k, at, static_cast<int>(std::min<int64_t>(kLanes, count - at)));
  }
}

template <class T>
struct Over {
  T* values;
  uint8_t* signs;
  int64_t count;
  Compute<T> slope;

  GAN_FAST_INLINE void operator()(int64_t from, int64_t to) const {
    for (int64_t block = from; block < to; ++block) {
      Mask<T> bits = {};
      for_rows(block, count, [&](int k, int64_t at, int valid) GAN_FAST_INLINE_LAMBDA {
        const Vec<T> x = load(values + at, valid);
        const Mask<T> positive = x > 0;
        bits |= positive & (1 << k);
        store(values + at, positive ? x : x * slope, valid);
      });
      const U8 bytes = __builtin_convertvector(bits, U8);
      std::memcpy(signs + block * kLanes, &bytes, sizeof(bytes));
    }
  }
};

template <class T>
struct Backward {
  const T* grad_output;
  const uint8_t* signs;
  T* grad_input;
  int64_t count;
  Compute<T> slope;

  GAN_FAST_INLINE void operator()(int64_t from, int64_t to) const {
    for (int64_t block = from; block < to; ++block) {
      const Mask<T> bits = __builtin_convertvector(detail::load_raw<U8>(signs + block * kLanes), Mask<T>);
      for_rows(block, count, [&](int k, int64_t at, int valid) GAN_FAST_INLINE_LAMBDA {
        const Vec<T> grad = load(grad_output + at, valid);
        store(grad_input + at, (bits & (1 << k)) != 0 ? grad : grad * slope, valid);
      });
    }
  }
};

int64_t blocks_of(int64_t count) { return (count + kBlock - 1) / kBlock; }

template <class Kernel>
void run_blocks(const Kernel& kernel) {
  torch::stable::parallel_for(0, blocks_of(kernel.count), kGrain,
                              [&](int64_t from, int64_t to) { isa::run(kernel, from, to); });
}

Tensor over(const Tensor& input, double negative_slope) {
  check::cpu(kOver, "input", input);
  check::floating(kOver, "input", input);
  STD_TORCH_CHECK(is_dense_in_some_order(input), kOver, ": expected input without gaps in memory, got shape ",
                  check::shape_of(input), " with gaps");
  const int64_t count = input.numel();
  const Tensor signs = empty_strided(input, {blocks_of(count) * kLanes}, {1}, ScalarType::Byte);
  for_dtype(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    run_blocks(Over<T>{static_cast<T*>(input.mutable_data_ptr()), static_cast<uint8_t*>(signs.mutable_data_ptr()),
                       count, static_cast<Compute<T>>(negative_slope)});
  });
  return signs;
}

Tensor backward(const Tensor& grad_output, const Tensor& signs, std::vector<int64_t> stride, double negative_slope) {
  check::cpu(kBackward, "grad_output", grad_output);
  check::floating(kBackward, "grad_output", grad_output);
  check::cpu(kBackward, "signs", signs);
  check::dtype(kBackward, "signs", signs, ScalarType::Byte);
  const int64_t count = grad_output.numel();
  check::length(kBackward, "signs", signs, blocks_of(count) * kLanes);
  STD_TORCH_CHECK(static_cast<int64_t>(stride.size()) == grad_output.dim(), kBackward, ": expected stride length ",
                  grad_output.dim(), ", got ", stride.size());
  const auto size = grad_output.sizes();
  Tensor grad_input = empty_strided(grad_output, {size.begin(), size.end()}, stride, grad_output.scalar_type());
  STD_TORCH_CHECK(is_dense_in_some_order(grad_input), kBackward, ": expected stride of a tensor without gaps");
  const auto grad_stride = grad_output.strides();
  bool same = true;
  for (int64_t d = 0; d < grad_output.dim(); ++d) same = same && (size[d] == 1 || grad_stride[d] == stride[d]);
  if (!same) torch::stable::copy_(grad_input, grad_output);
  for_dtype(grad_output.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const Tensor& from = same ? grad_output : grad_input;
    run_blocks(
        Backward<T>{static_cast<const T*>(from.const_data_ptr()), static_cast<const uint8_t*>(signs.const_data_ptr()),
                    static_cast<T*>(grad_input.mutable_data_ptr()), count, static_cast<Compute<T>>(negative_slope)});
  });
  return grad_input;
}

}  // namespace
}  // namespace gan_fast

STABLE_TORCH_LIBRARY_IMPL(gan_fast, CPU, m) {
  m.impl("leaky_relu_over", TORCH_BOX(&gan_fast::over));
  m.impl("leaky_relu_backward", TORCH_BOX(&gan_fast::backward));
}
