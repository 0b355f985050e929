// Spectral norm: weight / sigma, where sigma is the largest singular value of the weight as a matrix W, by power
// iteration.
//
// An iteration reads the weight once, where ATen's ops read it three times. W^T u is W^T (W v) up to a factor, so each
// row is added to W^T u right after its product with v, while it is in the cache. sigma = u^T W v follows from the
// norms.

#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/checks.h"
#include "../common/dtype.h"
#include "isa.h"
#include "lanes.h"

namespace gan_fast {
namespace {

constexpr const char* kForward = "spectral_norm_forward";
constexpr const char* kBackward = "spectral_norm_backward";

// Number of blocks of rows. Their sums are added in order, so results do not depend on the number of threads.
constexpr int64_t kBlocks = 16;
// Values per thread: with fewer, another thread costs more than it saves.
constexpr int64_t kGrain = 1 << 15;

// A contiguous weight (outer, rows, inner), viewed as a matrix with `rows` rows and outer * inner columns.
struct Matrix {
  int64_t outer;
  int64_t rows;
  int64_t inner;

  int64_t columns() const { return outer * inner; }
  int64_t rows_in_block() const { return (rows + kBlocks - 1) / kBlocks; }
  int64_t blocks() const { return rows ? (rows + rows_in_block() - 1) / rows_in_block() : 0; }
  const auto* piece(const auto* weight, int64_t o, int64_t row) const { return weight + (o * rows + row) * inner; }
};

GAN_FAST_INLINE int lanes_at(int64_t i, int64_t count) {
  return static_cast<int>(std::min<int64_t>(kLanes, count - i));
}

// The sum of a[i] b[i], in two independent chains of additions to hide their latency.
template <class A, class B>
GAN_FAST_INLINE double dot(const A* a, const B* b, int64_t count) {
  F64 even{}, odd{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    even += widen(load(a + i)) * widen(load(b + i));
    odd += widen(load(a + i + kLanes)) * widen(load(b + i + kLanes));
  }
  for (; i < count; i += kLanes) {
    const int lanes = lanes_at(i, count);
    even += widen(load(a + i, lanes)) * widen(load(b + i, lanes));
  }
  return sum(even + odd);
}

// sums += factor * values.
template <class T>
GAN_FAST_INLINE void add_scaled(double* sums, const T* values, double factor, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int lanes = lanes_at(i, count);
    store(sums + i, load(sums + i, lanes) + factor * widen(load(values + i, lanes)), lanes);
  }
}

// For a block of rows: products[row] = W_row v and, if `sums` is not null, sums = sum over rows of products[row] W_row.
template <class T>
struct Products {
  const T* weight;
  const double* v;
  double* products;
  double* sums;
  Matrix size;

  GAN_FAST_INLINE void operator()(int64_t block) const {
    const int64_t first = block * size.rows_in_block(), last = std::min(size.rows, first + size.rows_in_block());
    double* block_sums = sums ? sums + block * size.columns() : nullptr;
    if (block_sums) std::fill_n(block_sums, size.columns(), 0.0);
    for (int64_t row = first; row < last; ++row) {
      double product = 0;
      for (int64_t o = 0; o < size.outer; ++o) {
        product += dot(size.piece(weight, o, row), v + o * size.inner, size.inner);
      }
      products[row] = product;
      if (!block_sums) continue;
      for (int64_t o = 0; o < size.outer; ++o) {
        add_scaled(block_sums + o * size.inner, size.piece(weight, o, row), product, size.inner);
      }
    }
  }
};

template <class T>
struct Divide {
  const T* weight;
  T* output;
  Compute<T> sigma;

  GAN_FAST_INLINE void operator()(int64_t from, int64_t to) const {
    for (int64_t i = from; i < to; i += kLanes) {
      const int lanes = lanes_at(i, to);
      store(output + i, load(weight + i, lanes) / sigma, lanes);
    }
  }
};

// For a block of rows: the sum of grad * weight.
template <class T>
struct Inner {
  const T* grad;
  const T* weight;
  double* sums;
  Matrix size;

  GAN_FAST_INLINE void operator()(int64_t block) const {
    const int64_t first = block * size.rows_in_block(), last = std::min(size.rows, first + size.rows_in_block());
    double total = 0;
    for (int64_t o = 0; o < size.outer; ++o) {
      for (int64_t row = first; row < last; ++row) {
        total += dot(size.piece(grad, o, row), size.piece(weight, o, row), size.inner);
      }
    }
    sums[block] = total;
  }
};

// For a block of rows: grad / sigma - factor u v^T.
template <class T>
struct Gradient {
  const T* grad;
  const double* u;
  const double* v;
  T* output;
  double sigma;
  double factor;
  Matrix size;

  GAN_FAST_INLINE void operator()(int64_t block) const {
    const int64_t first = block * size.rows_in_block(), last = std::min(size.rows, first + size.rows_in_block());
    for (int64_t o = 0; o < size.outer; ++o) {
      for (int64_t row = first; row < last; ++row) {
        const int64_t at = (o * size.rows + row) * size.inner;
        const double scale = factor * u[row];
        for (int64_t i = 0; i < size.inner; i += kLanes) {
          const int lanes = lanes_at(i, size.inner);
          const F64 by_sigma = load(v + o * size.inner + i, lanes) * scale;
          const F64 result = widen(load(grad + at + i, lanes)) / sigma - by_sigma;
          store(output + at + i, narrow<Vec<T>>(result), lanes);
        }
      }
    }
  }
};

// Calls f(block) for all blocks of rows.
template <class Kernel>
void run_blocks(Matrix size, const Kernel& kernel) {
  const int64_t work = std::max<int64_t>(1, size.rows_in_block() * size.columns());
  torch::stable::parallel_for(0, size.blocks(), std::max<int64_t>(1, kGrain / work), [&](int64_t from, int64_t to) {
    for (int64_t block = from; block < to; ++block) isa::run(kernel, block);
  });
}

template <class T>
std::vector<double> read(const Tensor& t) {
  const T* values = static_cast<const T*>(t.const_data_ptr());
  std::vector<double> result(t.numel());
  for (int64_t i = 0; i < t.numel(); ++i) result[i] = static_cast<double>(static_cast<Compute<T>>(values[i]));
  return result;
}

template <class T>
void write(const std::vector<double>& values, const Tensor& t) {
  T* to = static_cast<T*>(t.mutable_data_ptr());
  for (size_t i = 0; i < values.size(); ++i) to[i] = static_cast<T>(static_cast<Compute<T>>(values[i]));
}

double norm(const std::vector<double>& values) {
  double squares = 0;
  for (double value : values) squares += value * value;
  return std::sqrt(squares);
}

Matrix check_weight(const char* op, const Tensor& weight, const Tensor& u, const Tensor& v, int64_t dim) {
  check::cpu(op, "weight", weight);
  check::floating(op, "weight", weight);
  STD_TORCH_CHECK(weight.dim() >= 2, op, ": expected weight dimensions at least 2, got shape ",
                  check::shape_of(weight));
  STD_TORCH_CHECK(is_dense(weight, MemoryFormat::Contiguous), op, ": expected weight contiguous, got other strides");
  STD_TORCH_CHECK(0 <= dim && dim < weight.dim(), op, ": expected dim between 0 and ", weight.dim() - 1, ", got ", dim);
  Matrix size{1, weight.size(dim), 1};
  for (int64_t d = 0; d < weight.dim(); ++d) {
    if (d < dim) size.outer *= weight.size(d);
    if (d > dim) size.inner *= weight.size(d);
  }
  for (const auto& [name, vector, length] :
       {std::tuple<const char*, const Tensor&, int64_t>{"u", u, size.rows}, {"v", v, size.columns()}}) {
    check::cpu(op, name, vector);
    check::dtype(op, name, vector, weight.scalar_type());
    check::length(op, name, vector, length);
    STD_TORCH_CHECK(is_dense(vector, MemoryFormat::Contiguous), op, ": expected ", name, " contiguous, got gaps");
  }
  return size;
}

template <class T>
Tensor forward_as(const Tensor& weight, Tensor& u, Tensor& v, int64_t iterations, double eps, Matrix size,
                  const Tensor& sigma) {
  const T* w = static_cast<const T*>(weight.const_data_ptr());
  std::vector<double> left = read<T>(u), right = read<T>(v);
  double value = 0;
  if (iterations == 0) {
    std::vector<double> products(size.rows);
    run_blocks(size, Products<T>{w, right.data(), products.data(), nullptr, size});
    for (int64_t row = 0; row < size.rows; ++row) value += left[row] * products[row];
  } else {
    std::vector<double> sums(size.blocks() * size.columns());
    for (int64_t i = 0; i < iterations; ++i) {
      // u = W v / |W v|. W^T u is the sum over the rows divided by |W v|. v = W^T u / |W^T u|.
      run_blocks(size, Products<T>{w, right.data(), left.data(), sums.data(), size});
      const double scale = std::max(norm(left), eps);
      for (double& x : left) x /= scale;
      std::fill(right.begin(), right.end(), 0.0);
      for (int64_t block = 0; block < size.blocks(); ++block) {
        for (int64_t c = 0; c < size.columns(); ++c) right[c] += sums[block * size.columns() + c] / scale;
      }
      const double length = norm(right), bounded = std::max(length, eps);
      for (double& x : right) x /= bounded;
      value = length / bounded * length;
    }
    write<T>(left, u);
    write<T>(right, v);
  }
  const Compute<T> rounded = static_cast<Compute<T>>(static_cast<T>(static_cast<Compute<T>>(value)));
  *static_cast<T*>(sigma.mutable_data_ptr()) = static_cast<T>(rounded);
  const Tensor output = empty_like(weight, MemoryFormat::Contiguous);
  const Divide<T> divide{w, static_cast<T*>(output.mutable_data_ptr()), rounded};
  torch::stable::parallel_for(0, weight.numel(), kGrain, [&](int64_t from, int64_t to) { isa::run(divide, from, to); });
  return output;
}

std::tuple<Tensor, Tensor> forward(const Tensor& weight, Tensor u, Tensor v, int64_t iterations, double eps,
                                   int64_t dim) {
  const Matrix size = check_weight(kForward, weight, u, v, dim);
  STD_TORCH_CHECK(iterations >= 0, kForward, ": expected n_power_iterations at least 0, got ", iterations);
  const Tensor sigma = empty_strided(weight, {}, {}, weight.scalar_type());
  const Tensor output = for_dtype(weight.scalar_type(), [&](auto tag) {
    return forward_as<decltype(tag)>(weight, u, v, iterations, eps, size, sigma);
  });
  return {output, sigma};
}

Tensor backward(const Tensor& grad_output, const Tensor& weight, const Tensor& u, const Tensor& v, const Tensor& sigma,
                int64_t dim) {
  const Matrix size = check_weight(kBackward, weight, u, v, dim);
  check::cpu(kBackward, "grad_output", grad_output);
  check::dtype(kBackward, "grad_output", grad_output, weight.scalar_type());
  check::same_shape(kBackward, "grad_output", grad_output, "weight", weight);
  check::cpu(kBackward, "sigma", sigma);
  check::dtype(kBackward, "sigma", sigma, weight.scalar_type());
  STD_TORCH_CHECK(sigma.numel() == 1, kBackward, ": expected sigma shape (), got ", check::shape_of(sigma));
  const Tensor g = dense(grad_output, MemoryFormat::Contiguous);
  const Tensor output = empty_like(weight, MemoryFormat::Contiguous);
  for_dtype(weight.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const T* grad = static_cast<const T*>(g.const_data_ptr());
    const double value = static_cast<Compute<T>>(*static_cast<const T*>(sigma.const_data_ptr()));
    const std::vector<double> left = read<T>(u), right = read<T>(v);
    std::vector<double> partial(size.blocks());
    run_blocks(size, Inner<T>{grad, static_cast<const T*>(weight.const_data_ptr()), partial.data(), size});
    double total = 0;
    for (double x : partial) total += x;
    run_blocks(size, Gradient<T>{grad, left.data(), right.data(), static_cast<T*>(output.mutable_data_ptr()), value,
                                 total / value / value, size});
  });
  return output;
}

}  // namespace
}  // namespace gan_fast

STABLE_TORCH_LIBRARY_IMPL(gan_fast, CPU, m) {
  m.impl("spectral_norm_forward", TORCH_BOX(&gan_fast::forward));
  m.impl("spectral_norm_backward", TORCH_BOX(&gan_fast::backward));
}
