// Minibatch discrimination of projected features (N, B, C), with first and second derivatives. The output (N, B) is
// exp(-L1 distance over C), summed over all other samples. Pairs are never stored.

#include <algorithm>
#include <vector>

#include "../common/checks.h"
#include "../common/dtype.h"
#include "isa.h"
#include "lanes.h"
#include "math.h"

namespace gan_fast {
namespace {

constexpr const char* kForward = "minibatch_discrimination_forward";
constexpr const char* kBackward = "minibatch_discrimination_backward";
constexpr const char* kDoubleBackward = "minibatch_discrimination_double_backward";

// Pairs times components per thread: with fewer, another thread costs more than it saves.
constexpr int64_t kGrain = 8192;

struct Sizes {
  int64_t n;  // samples
  int64_t b;  // kernels
  int64_t c;  // components of a kernel
};

// Copies eight kernels of all samples, one per lane, to to[n][width][lane] in double precision. Kernels beyond the last
// are zero.
template <class T>
GAN_FAST_INLINE void gather(const T* from, double* to, Sizes size, int64_t width, int64_t first, int count) {
  const int64_t row = size.b * width;
  for (int64_t i = 0; i < size.n; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const T* values = from + i * row + (first + lane) * width;
      for (int64_t c = 0; c < width; ++c) {
        to[(i * width + c) * kLanes + lane] =
            lane < count ? static_cast<double>(static_cast<Compute<T>>(values[c])) : 0;
      }
    }
  }
}

template <class T>
GAN_FAST_INLINE void scatter(const double* from, T* to, Sizes size, int64_t width, int64_t first, int count) {
  const int64_t row = size.b * width;
  for (int64_t i = 0; i < size.n; ++i) {
    for (int lane = 0; lane < count; ++lane) {
      T* values = to + i * row + (first + lane) * width;
      for (int64_t c = 0; c < width; ++c) {
        values[c] = static_cast<T>(static_cast<Compute<T>>(from[(i * width + c) * kLanes + lane]));
      }
    }
  }
}

GAN_FAST_INLINE F64 at(const double* p) { return detail::load_raw<F64>(p); }
GAN_FAST_INLINE void put(double* p, F64 v) { std::memcpy(p, &v, sizeof(v)); }
GAN_FAST_INLINE void add(double* p, F64 v) { put(p, at(p) + v); }

GAN_FAST_INLINE F64 magnitude(F64 x) {
  return bit_cast<F64>(bit_cast<math::I64>(x) & static_cast<int64_t>(0x7fffffffffffffff));
}

// sign(difference) * value. `none` is the result for a difference of 0 or NaN: value * 0, which keeps NaN and infinity
// as a product would.
GAN_FAST_INLINE F64 signed_by(F64 difference, F64 value, F64 none) {
  return difference > 0.0 ? value : (difference < 0.0 ? -value : none);
}

// exp(-L1 distance) of samples x and y.
template <class T>
GAN_FAST_INLINE F64 closeness(const double* x, const double* y, int64_t components) {
  F64 distance{};
  for (int64_t c = 0; c < components; ++c) distance += magnitude(at(x + c * kLanes) - at(y + c * kLanes));
  return math::exp_nonpositive<Vec<T>>(-distance);
}

// output_i = sum over j != i of closeness(i, j). Each pair is computed once.
template <class T>
struct Forward {
  const T* projected;
  T* output;
  Sizes size;

  int64_t scratch() const { return size.n * (size.c + 1) * kLanes; }

  GAN_FAST_INLINE void operator()(double* x, int64_t first, int count) const {
    const int64_t step = size.c * kLanes;
    double* sums = x + size.n * step;
    gather(projected, x, size, size.c, first, count);
    std::fill_n(sums, size.n * kLanes, 0.0);
    for (int64_t i = 0; i < size.n; ++i) {
      F64 sum{};
      for (int64_t j = i + 1; j < size.n; ++j) {
        const F64 e = closeness<T>(x + i * step, x + j * step, size.c);
        sum += e;
        add(sums + j * kLanes, e);
      }
      add(sums + i * kLanes, sum);
    }
    scatter(sums, output, size, 1, first, count);
  }
};

// For each pair: with w = closeness(i, j) (grad_output_i + grad_output_j), grad_i -= w sign(x_i - x_j) and
// grad_j += w sign(x_i - x_j).
template <class T>
struct Backward {
  const T* grad_output;
  const T* projected;
  T* grad_projected;
  Sizes size;

  int64_t scratch() const { return size.n * (2 * size.c + 1) * kLanes; }

  GAN_FAST_INLINE void operator()(double* x, int64_t first, int count) const {
    const int64_t step = size.c * kLanes;
    double* grad = x + size.n * step;
    double* g = grad + size.n * step;
    gather(projected, x, size, size.c, first, count);
    gather(grad_output, g, size, 1, first, count);
    std::fill_n(grad, size.n * step, 0.0);
    for (int64_t i = 0; i < size.n; ++i) {
      for (int64_t j = i + 1; j < size.n; ++j) {
        const F64 e = closeness<T>(x + i * step, x + j * step, size.c);
        const F64 w = e * (at(g + i * kLanes) + at(g + j * kLanes));
        const F64 none = w * 0.0;
        for (int64_t c = 0; c < step; c += kLanes) {
          const F64 by_j = signed_by(at(x + i * step + c) - at(x + j * step + c), w, none);
          add(grad + j * step + c, by_j);
          add(grad + i * step + c, -by_j);
        }
      }
    }
    scatter(grad, grad_projected, size, size.c, first, count);
  }
};

// The gradients of <cotangent, grad_projected>. For each pair, with q = <sign(x_i - x_j), cotangent_i - cotangent_j>
// and e = closeness(i, j): grad_grad_i -= e q, grad_grad_j -= e q, grad_i += e q (grad_output_i + grad_output_j)
// sign(x_i - x_j), and grad_j -= the same.
template <class T>
struct DoubleBackward {
  const T* cotangent;
  const T* grad_output;
  const T* projected;
  T* grad_grad_output;
  T* grad_projected;
  Sizes size;

  int64_t scratch() const { return size.n * (3 * size.c + 2) * kLanes; }

  GAN_FAST_INLINE void operator()(double* x, int64_t first, int count) const {
    const int64_t step = size.c * kLanes;
    double* v = x + size.n * step;
    double* grad = v + size.n * step;
    double* g = grad + size.n * step;
    double* grad_g = g + size.n * kLanes;
    gather(projected, x, size, size.c, first, count);
    gather(cotangent, v, size, size.c, first, count);
    gather(grad_output, g, size, 1, first, count);
    std::fill_n(grad, size.n * step, 0.0);
    std::fill_n(grad_g, size.n * kLanes, 0.0);
    for (int64_t i = 0; i < size.n; ++i) {
      for (int64_t j = i + 1; j < size.n; ++j) {
        F64 distance{}, q{};
        for (int64_t c = 0; c < step; c += kLanes) {
          const F64 difference = at(x + i * step + c) - at(x + j * step + c);
          const F64 direction = at(v + i * step + c) - at(v + j * step + c);
          distance += magnitude(difference);
          q += signed_by(difference, direction, direction * 0.0);
        }
        const F64 eq = math::exp_nonpositive<Vec<T>>(-distance) * q;
        add(grad_g + i * kLanes, -eq);
        add(grad_g + j * kLanes, -eq);
        const F64 w = eq * (at(g + i * kLanes) + at(g + j * kLanes));
        const F64 none = w * 0.0;
        for (int64_t c = 0; c < step; c += kLanes) {
          const F64 by_i = signed_by(at(x + i * step + c) - at(x + j * step + c), w, none);
          add(grad + i * step + c, by_i);
          add(grad + j * step + c, -by_i);
        }
      }
    }
    scatter(grad_g, grad_grad_output, size, 1, first, count);
    scatter(grad, grad_projected, size, size.c, first, count);
  }
};

// Kernels are independent of each other: one thread handles all pairs of samples for eight kernels, in a fixed order.
template <class Kernel>
void run(const Kernel& kernel) {
  const Sizes size = kernel.size;
  if (size.n == 0 || size.b == 0) return;
  const int64_t blocks = (size.b + kLanes - 1) / kLanes;
  const int64_t work = std::max<int64_t>(1, size.n * size.n / 2 * (size.c + 8));
  torch::stable::parallel_for(0, blocks, std::max<int64_t>(1, kGrain / work), [&](int64_t from, int64_t to) {
    std::vector<double> scratch(kernel.scratch());
    for (int64_t block = from; block < to; ++block) {
      const int64_t first = block * kLanes;
      const int count = static_cast<int>(std::min<int64_t>(kLanes, size.b - first));
      isa::run(kernel, scratch.data(), first, count);
    }
  });
}

Sizes check_projected(const char* op, const Tensor& projected) {
  check::cpu(op, "projected", projected);
  check::floating(op, "projected", projected);
  STD_TORCH_CHECK(projected.dim() == 3, op, ": expected projected dimensions 3 (N, B, C), got shape ",
                  check::shape_of(projected));
  return {projected.size(0), projected.size(1), projected.size(2)};
}

void check_grad_output(const char* op, const Tensor& grad_output, const Tensor& projected, Sizes size) {
  check::cpu(op, "grad_output", grad_output);
  check::dtype(op, "grad_output", grad_output, projected.scalar_type());
  STD_TORCH_CHECK(grad_output.dim() == 2 && grad_output.size(0) == size.n && grad_output.size(1) == size.b, op,
                  ": expected grad_output shape (", size.n, ", ", size.b, "), got ", check::shape_of(grad_output));
}

Tensor as_contiguous(const Tensor& t) { return dense(t, MemoryFormat::Contiguous); }

template <class T>
const T* values(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* values_to_write(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

Tensor forward(const Tensor& projected) {
  const Sizes size = check_projected(kForward, projected);
  const Tensor x = as_contiguous(projected);
  const Tensor output = empty_strided(x, {size.n, size.b}, {size.b, 1}, x.scalar_type());
  for_dtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    run(Forward<T>{values<T>(x), values_to_write<T>(output), size});
  });
  return output;
}

Tensor backward(const Tensor& grad_output, const Tensor& projected) {
  const Sizes size = check_projected(kBackward, projected);
  check_grad_output(kBackward, grad_output, projected, size);
  const Tensor x = as_contiguous(projected), g = as_contiguous(grad_output);
  const Tensor grad = empty_like(x, MemoryFormat::Contiguous);
  for_dtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    run(Backward<T>{values<T>(g), values<T>(x), values_to_write<T>(grad), size});
  });
  return grad;
}

std::tuple<Tensor, Tensor> double_backward(const Tensor& cotangent, const Tensor& grad_output,
                                           const Tensor& projected) {
  const Sizes size = check_projected(kDoubleBackward, projected);
  check_grad_output(kDoubleBackward, grad_output, projected, size);
  check::cpu(kDoubleBackward, "cotangent", cotangent);
  check::dtype(kDoubleBackward, "cotangent", cotangent, projected.scalar_type());
  check::same_shape(kDoubleBackward, "cotangent", cotangent, "projected", projected);
  const Tensor x = as_contiguous(projected), g = as_contiguous(grad_output), v = as_contiguous(cotangent);
  const Tensor grad_grad = empty_like(g, MemoryFormat::Contiguous);
  const Tensor grad = empty_like(x, MemoryFormat::Contiguous);
  for_dtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    run(DoubleBackward<T>{values<T>(v), values<T>(g), values<T>(x), values_to_write<T>(grad_grad),
                          values_to_write<T>(grad), size});
  });
  return {grad_grad, grad};
}

}  // namespace
}  // namespace gan_fast

STABLE_TORCH_LIBRARY_IMPL(gan_fast, CPU, m) {
  m.impl("minibatch_discrimination_forward", TORCH_BOX(&gan_fast::forward));
  m.impl("minibatch_discrimination_backward", TORCH_BOX(&gan_fast::backward));
  m.impl("minibatch_discrimination_double_backward", TORCH_BOX(&gan_fast::double_backward));
}
