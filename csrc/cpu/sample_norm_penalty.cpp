// The sample norm penalty, the last step of gradient penalties: scale * mean_n c_n (norm_n - center)^2, where norm_n is
// the Euclidean norm of sample n.

#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/checks.h"
#include "../common/dtype.h"
#include "isa.h"
#include "lanes.h"

namespace gan_fast {
namespace {

constexpr const char* kForward = "sample_norm_penalty_forward";
constexpr const char* kBackward = "sample_norm_penalty_backward";

// Squares are summed in blocks of this many values of a sample, and the blocks are added in order. So results do not
// depend on the number of threads.
constexpr int64_t kBlock = 16384;
// Values per thread: with fewer, another thread costs more than it saves.
constexpr int64_t kGrain = 32768;

// A tensor as `count` samples of `length` values, one after the other in memory.
struct Samples {
  int64_t count;
  int64_t length;
  int64_t blocks;  // per sample

  explicit Samples(const Tensor& t)
      : count(t.size(0)), length(count ? t.numel() / count : 0), blocks((length + kBlock - 1) / kBlock) {}
};

// Whether the samples follow each other in memory, each without gaps and with any order of its dims.
bool are_blocks(const Tensor& t) {
  return is_dense_in_some_order(t) && (t.size(0) <= 1 || t.stride(0) == t.numel() / t.size(0));
}

// Sums of squares in double, in which the square of a float neither overflows nor underflows.
template <class T>
struct SumSquares {
  const T* input;
  Samples samples;
  double* sums;

  GAN_FAST_INLINE void operator()(int64_t from, int64_t to) const {
    for (int64_t block = from; block < to; ++block) {
      const int64_t first = block % samples.blocks * kBlock;
      const T* x = input + block / samples.blocks * samples.length + first;
      const int64_t count = std::min(kBlock, samples.length - first);
      // Several totals hide the latency of additions.
      constexpr int kTotals = 4;
      F64 total[kTotals] = {};
      int64_t i = 0;
      for (; i + kTotals * kLanes <= count; i += kTotals * kLanes) {
        GAN_FAST_UNROLL
        for (int k = 0; k < kTotals; ++k) {
          const F64 value = widen(load(x + i + k * kLanes));
          total[k] += value * value;
        }
      }
      for (; i < count; i += kLanes) {
        const F64 value = widen(load(x + i, static_cast<int>(std::min<int64_t>(kLanes, count - i))));
        total[0] += value * value;
      }
      sums[block] = sum((total[0] + total[1]) + (total[2] + total[3]));
    }
  }
};

// output = input times the factor of its sample.
template <class T>
struct Scale {
  const T* input;
  T* output;
  Samples samples;
  const double* factors;

  GAN_FAST_INLINE void operator()(int64_t from, int64_t to) const {
    for (int64_t block = from; block < to; ++block) {
      const int64_t sample = block / samples.blocks;
      const int64_t first = block % samples.blocks * kBlock;
      const int64_t begin = sample * samples.length + first;
      const int64_t end = begin + std::min(kBlock, samples.length - first);
      const double factor = factors[sample];
      int64_t i = begin;
      for (; i + kLanes <= end; i += kLanes) store(output + i, narrow<Vec<T>>(widen(load(input + i)) * factor));
      if (i < end) {
        const int count = static_cast<int>(end - i);
        store(output + i, narrow<Vec<T>>(widen(load(input + i, count)) * factor), count);
      }
    }
  }
};

template <class Kernel>
void run_blocks(const Kernel& kernel, const Samples& samples) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, std::min(kBlock, samples.length)));
  torch::stable::parallel_for(0, samples.count * samples.blocks, grain,
                              [&](int64_t from, int64_t to) { isa::run(kernel, from, to); });
}

void check_arguments(const char* op, const Tensor& input, const MaybeTensor& coefficients) {
  check::cpu(op, "input", input);
  check::floating(op, "input", input);
  STD_TORCH_CHECK(input.dim() > 0, op, ": expected input dimensions at least 1 (N, ...), got shape ",
                  check::shape_of(input));
  if (!coefficients) return;
  check::cpu(op, "coefficients", *coefficients);
  check::dtype(op, "coefficients", *coefficients, compute_dtype(input.scalar_type()));
  check::length(op, "coefficients", *coefficients, input.size(0));
}

double value_at(const Tensor& t, int64_t index) {
  return t.scalar_type() == ScalarType::Double ? static_cast<const double*>(t.const_data_ptr())[index]
                                               : static_cast<const float*>(t.const_data_ptr())[index];
}

void write(const Tensor& t, int64_t index, double value) {
  if (t.scalar_type() == ScalarType::Double) {
    static_cast<double*>(t.mutable_data_ptr())[index] = value;
  } else {
    static_cast<float*>(t.mutable_data_ptr())[index] = static_cast<float>(value);
  }
}

double coefficient(const MaybeTensor& coefficients, int64_t sample) {
  return coefficients ? value_at(*coefficients, sample * coefficients->stride(0)) : 1.0;
}

std::tuple<Tensor, Tensor> forward(const Tensor& input, const MaybeTensor& coefficients, double center, double scale) {
  check_arguments(kForward, input, coefficients);
  const Tensor x = are_blocks(input) ? input : torch::stable::contiguous(input);
  const Samples samples(x);
  std::vector<double> sums(static_cast<size_t>(samples.count * samples.blocks));
  for_dtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    run_blocks(SumSquares<T>{static_cast<const T*>(x.const_data_ptr()), samples, sums.data()}, samples);
  });
  const ScalarType dtype = compute_dtype(input.scalar_type());
  const Tensor penalty = empty_strided(input, {}, {}, dtype);
  const Tensor norms = empty_vector(input, samples.count, dtype);
  double total = 0;
  for (int64_t n = 0; n < samples.count; ++n) {
    double square = 0;
    for (int64_t block = 0; block < samples.blocks; ++block) square += sums[n * samples.blocks + block];
    const double norm = std::sqrt(square);
    const double deviation = norm - center;
    write(norms, n, norm);
    total += coefficient(coefficients, n) * (deviation * deviation);
  }
  // A mean over no samples is 0 / 0, as in ATen.
  write(penalty, 0, scale * (total / static_cast<double>(samples.count)));
  return {penalty, norms};
}

Tensor backward(const Tensor& grad_penalty, const Tensor& input, const Tensor& norms, const MaybeTensor& coefficients,
                double center, double scale) {
  check_arguments(kBackward, input, coefficients);
  const ScalarType dtype = compute_dtype(input.scalar_type());
  check::cpu(kBackward, "grad_penalty", grad_penalty);
  STD_TORCH_CHECK(grad_penalty.numel() == 1, kBackward, ": expected grad_penalty shape (), got ",
                  check::shape_of(grad_penalty));
  check::dtype(kBackward, "grad_penalty", grad_penalty, dtype);
  check::cpu(kBackward, "norms", norms);
  check::dtype(kBackward, "norms", norms, dtype);
  check::length(kBackward, "norms", norms, input.size(0));
  const bool blocks = are_blocks(input);
  const Tensor x = blocks ? input : torch::stable::contiguous(input);
  const auto size = x.sizes(), stride = x.strides();
  const Tensor grad = empty_strided(x, {size.begin(), size.end()}, {stride.begin(), stride.end()}, x.scalar_type());
  const Samples samples(x);
  const double factor = 2 * scale * value_at(grad_penalty, 0) / static_cast<double>(samples.count);
  std::vector<double> factors(static_cast<size_t>(samples.count));
  for (int64_t n = 0; n < samples.count; ++n) {
    const double norm = value_at(norms, n * norms.stride(0));
    // Infinity / infinity gives NaN, as in ATen. A sample with norm 0 gets the gradient 0.
    const double slope = center == 0 ? 1 : (norm - center) / norm;
    factors[n] = center != 0 && norm == 0 ? 0 : factor * coefficient(coefficients, n) * slope;
  }
  for_dtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    run_blocks(Scale<T>{static_cast<const T*>(x.const_data_ptr()), static_cast<T*>(grad.mutable_data_ptr()), samples,
                        factors.data()},
               samples);
  });
  if (blocks) return grad;
  // Return the strides that ATen's elementwise ops give their results.
  Tensor result = torch::stable::empty_like(input);
  return torch::stable::copy_(result, grad);
}

}  // namespace
}  // namespace gan_fast

STABLE_TORCH_LIBRARY_IMPL(gan_fast, CPU, m) {
  m.impl("sample_norm_penalty_forward", TORCH_BOX(&gan_fast::forward));
  m.impl("sample_norm_penalty_backward", TORCH_BOX(&gan_fast::backward));
}
