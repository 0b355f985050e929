// Batch norm followed by an activation: forward, backward and double backward.
//
// Notation, for a channel with m values: xc = x - mean, r = 1 / sqrt(var + eps), z = gamma r xc + beta, y = f(z),
// u = dL/dy f'(z). docs/batch_norm_act.md derives the formulas.

#include "../common/batch_norm_act.h"

#include <cmath>

#include "../common/dtype.h"
#include "activation.h"
#include "channels.h"

namespace gan_fast {
namespace {

using namespace norm;  // checks

// Coefficients per channel: all passes use the first three; those of a single pass begin at kOwn.
enum Slot : int { kMean, kScale, kShift, kOwn };

template <class T>
struct Moments {
  using A = Compute<T>;
  static constexpr int kCoefficients = 1, kSums = 2;
  static constexpr bool kCheap = true;
  const T* x;

  // Deviations from a pivot near the mean, squared in double, so that almost nothing cancels.
  GAN_FAST_INLINE void terms(int64_t i, int count, const Vec<T>* c, F64* out) const {
    const F64 d = widen(load(x + i, count)) - widen(c[kMean]);
    out[0] = d;
    out[1] = d * d;
  }
};

// Act is PiecewiseLinear or Curved on Vec<T>.
template <class T, class Act>
struct Normalize {
  using A = Compute<T>;
  static constexpr bool kCheap = !Act::kCurved;
  static constexpr int kCoefficients = kOwn;
  const T* x;
  T* y;
  Act act;

  GAN_FAST_INLINE void apply(int64_t i, int count, const Vec<T>* c) const {
    store(y + i, act.value((load(x + i, count) - c[kMean]) * c[kScale] + c[kShift]), count);
  }
};

// xc, z and u of a value, which all backward passes need.
template <class T, class Act>
struct Point {
  using A = Compute<T>;
  const T* x;
  const T* grad;
  Act act;

  GAN_FAST_INLINE void at(int64_t i, int count, const Vec<T>* c, Vec<T>* xc, Vec<T>* z, Vec<T>* u) const {
    *xc = load(x + i, count) - c[kMean];
    *z = *xc * c[kScale] + c[kShift];
    *u = act.backward(load(grad + i, count), *z);
  }
};

template <class T, class Act>
struct BackwardSums {
  using A = Compute<T>;
  static constexpr bool kCheap = !Act::kCurved;
  static constexpr int kCoefficients = kOwn, kSums = 2;
  Point<T, Act> point;

  GAN_FAST_INLINE void terms(int64_t i, int count, const Vec<T>* c, F64* out) const {
    Vec<T> xc, z, u;
    point.at(i, count, c, &xc, &z, &u);
    out[0] = widen(u);
    out[1] = widen(u) * widen(xc);
  }
};

template <class T, class Act>
struct BackwardMap {
  using A = Compute<T>;
  static constexpr bool kCheap = !Act::kCurved;
  enum : int { kU = kOwn, kXc, kOne, kCoefficients };
  Point<T, Act> point;
  bool through_statistics;  // zero coefficients would not do: 0 times an infinite xc is NaN
  T* grad_input;

  GAN_FAST_INLINE void apply(int64_t i, int count, const Vec<T>* c) const {
    Vec<T> xc, z, u;
    point.at(i, count, c, &xc, &z, &u);
    Vec<T> g = c[kU] * u;
    if (through_statistics) g += c[kXc] * xc + c[kOne];
    store(grad_input + i, g, count);
  }
};

// a: the cotangent of grad_input; null means zeros.
template <class T, class Act>
struct DoubleSums {
  using A = Compute<T>;
  static constexpr bool kCheap = !Act::kCurved;
  static constexpr int kCoefficients = kOwn, kSums = 5;
  Point<T, Act> point;
  const T* a;

  GAN_FAST_INLINE void terms(int64_t i, int count, const Vec<T>* c, F64* out) const {
    Vec<T> xc, z, u;
    point.at(i, count, c, &xc, &z, &u);
    const Vec<T> v = a ? load(a + i, count) : Vec<T>{};
    out[0] = widen(u);
    out[1] = widen(v);
    out[2] = widen(u) * widen(xc);
    out[3] = widen(v) * widen(xc);
    out[4] = widen(u) * widen(v);
  }
};

// The scalar that double backward differentiates has the derivative w = kWa a + kWxc xc + kWone by u, and
// q = dL/dy f''(z) w by z.
enum DoubleSlot : int { kWa = kOwn, kWxc, kWone, kWCoefficients };

template <class T>
GAN_FAST_INLINE Vec<T> cotangent_of_u(const Vec<T>* c, Vec<T> a, Vec<T> xc) {
  return c[kWa] * a + (c[kWxc] * xc + c[kWone]);
}

template <class T, class Act>
struct CurvatureSums {
  using A = Compute<T>;
  static constexpr bool kCheap = !Act::kCurved;
  static constexpr int kCoefficients = kWCoefficients, kSums = 2;
  Point<T, Act> point;
  const T* a;

  GAN_FAST_INLINE void terms(int64_t i, int count, const Vec<T>* c, F64* out) const {
    Vec<T> xc, z, u;
    point.at(i, count, c, &xc, &z, &u);
    const Vec<T> w = cotangent_of_u<T>(c, a ? load(a + i, count) : Vec<T>{}, xc);
    const Vec<T> q = load(point.grad + i, count) * point.act.curvature(z) * w;
    out[0] = widen(q);
    out[1] = widen(q) * widen(xc);
  }
};

template <class T, class Act>
struct DoubleMap {
  using A = Compute<T>;
  static constexpr bool kCheap = !Act::kCurved;
  enum : int { kU = kWCoefficients, kA, kQ, kXc, kOne, kCoefficients };
  Point<T, Act> point;
  const T* a;
  bool through_statistics;
  T* grad_grad;   // null if not needed
  T* grad_input;  // null if not needed

  GAN_FAST_INLINE void apply(int64_t i, int count, const Vec<T>* c) const {
    Vec<T> xc, z, u;
    point.at(i, count, c, &xc, &z, &u);
    const Vec<T> v = a ? load(a + i, count) : Vec<T>{};
    const Vec<T> w = cotangent_of_u<T>(c, v, xc);
    if (grad_grad) store(grad_grad + i, point.act.backward(w, z), count);
    if (grad_input) {
      Vec<T> g = c[kU] * u;
      if (through_statistics) g += c[kA] * v + (c[kXc] * xc + c[kOne]);
      if constexpr (Act::kCurved) g += c[kQ] * (load(point.grad + i, count) * point.act.curvature(z) * w);
      store(grad_input + i, g, count);
    }
  }
};

// ---- arguments

// Calls f with a value of the storage type and the activation on its vectors.
template <class F>
void for_kernel(ScalarType dtype, Activation activation, double negative_slope, const F& f) {
  for_dtype(dtype, [&](auto tag) {
    using V = Vec<decltype(tag)>;
    if (is_curved(activation)) {
      f(tag, Curved<V>(activation, negative_slope));
    } else {
      f(tag, PiecewiseLinear<V>(activation, negative_slope));
    }
  });
}

std::vector<double> read(const MaybeTensor& t, int64_t length, double otherwise) {
  std::vector<double> values(length, otherwise);
  if (!t) return values;
  const int64_t stride = t->stride(0);
  for_dtype(t->scalar_type(), [&](auto tag) {
    const auto* p = static_cast<const decltype(tag)*>(t->const_data_ptr());
    for (int64_t c = 0; c < length; ++c) values[c] = static_cast<double>(p[c * stride]);
  });
  return values;
}

void write(const Tensor& t, const std::vector<double>& values) {
  const int64_t stride = t.stride(0);
  for_dtype(t.scalar_type(), [&](auto tag) {
    using P = decltype(tag);
    auto* p = static_cast<P*>(t.mutable_data_ptr());
    for (size_t c = 0; c < values.size(); ++c) p[c * stride] = static_cast<P>(static_cast<Compute<P>>(values[c]));
  });
}

Tensor new_vector(const Tensor& like, const std::vector<double>& values, ScalarType dtype) {
  Tensor result = empty_vector(like, static_cast<int64_t>(values.size()), dtype);
  write(result, values);
  return result;
}

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// Uses the first value of each channel as a pivot near its mean. An infinite pivot would make the mean NaN instead of
// infinite.
template <class T, class A>
void set_pivots(const T* x, const Extent& extent, Coefficients<A>& coefficients) {
  for (int64_t c = 0; c < extent.C; ++c) {
    const A first = static_cast<A>(x[extent.channels_last ? c : c * extent.S]);
    coefficients.at(kMean, c) = std::isfinite(first) ? first : A{0};
  }
}

template <class A>
void set_affine(Coefficients<A>& coefficients, int64_t c, double mean, double invstd, double gamma, double beta) {
  coefficients.at(kMean, c) = static_cast<A>(mean);
  coefficients.at(kScale, c) = static_cast<A>(static_cast<A>(invstd) * static_cast<A>(gamma));
  coefficients.at(kShift, c) = static_cast<A>(beta);
}

// ---- forward

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& input, const MaybeTensor& running_mean,
                                           const MaybeTensor& running_var, const MaybeTensor& weight,
                                           const MaybeTensor& bias, bool training, double momentum, double eps,
                                           const std::string& activation, double negative_slope) {
  check::cpu(kOp, "input", input);
  check_input(input);
  check_parameter("running_mean", running_mean, input);
  check_parameter("running_var", running_var, input);
  check_parameter("weight", weight, input);
  check_parameter("bias", bias, input);
  check_running(running_mean, running_var, training);
  const Activation kind = parse(activation);

  const MemoryFormat format = suggest_memory_format(input);
  const Tensor x = dense(input, format);
  const Extent extent = Extent::of(x, format);
  const Tensor output = empty_like(x, format);
  const auto gamma = read(weight, extent.C, 1), beta = read(bias, extent.C, 0);
  std::vector<double> mean(extent.C), invstd(extent.C);
  auto running_m = read(running_mean, extent.C, 0), running_v = read(running_var, extent.C, 0);
  const int64_t m = extent.per_channel();
  check_count(input, m, training);
  if (!training) {
    for (int64_t c = 0; c < extent.C; ++c) {
      mean[c] = running_m[c];
      invstd[c] = 1 / std::sqrt(running_v[c] + eps);
    }
  }
  const ScalarType statistics = compute_dtype(x.scalar_type());
  if (x.numel()) {
    for_kernel(x.scalar_type(), kind, negative_slope, [&](auto tag, auto act) {
      using T = decltype(tag);
      using Act = decltype(act);
      using A = Compute<T>;
      Coefficients<A> coefficients(extent, kOwn);
      const T* in = data<T>(x);
      const Map normalize{Normalize<T, Act>{in, static_cast<T*>(output.mutable_data_ptr()), act}};
      if (!training) {
        for (int64_t c = 0; c < extent.C; ++c) set_affine(coefficients, c, mean[c], invstd[c], gamma[c], beta[c]);
        return run_passes(extent, coefficients, normalize);
      }
      set_pivots(in, extent, coefficients);
      const Reduce moments{Moments<T>{in}, [&](int64_t c, const double* sums) {
                             const double shift = sums[0] / m;
                             const double squares = sums[1] - sums[0] * shift;
                             const double var = (squares < 0 ? 0 : squares) / m;
                             mean[c] = coefficients.at(kMean, c) + shift;
                             invstd[c] = 1 / std::sqrt(var + eps);
                             running_m[c] = momentum * mean[c] + (1 - momentum) * running_m[c];
                             running_v[c] = momentum * var * m / (m - 1) + (1 - momentum) * running_v[c];
                             set_affine(coefficients, c, mean[c], invstd[c], gamma[c], beta[c]);
                           }};
      if constexpr (std::is_same_v<T, double>) {
        // double has no wider type to square in, so a first pass finds the mean.
        const Reduce pivot{Moments<T>{in}, [&](int64_t c, const double* sums) {
                             const double shift = sums[0] / m;
                             if (std::isfinite(shift)) coefficients.at(kMean, c) += shift;
                           }};
        run_passes(extent, coefficients, pivot, moments, normalize);
      } else {
        run_passes(extent, coefficients, moments, normalize);
      }
    });
    if (training && running_mean) write(*running_mean, running_m);
    if (training && running_var) write(*running_var, running_v);
  }
  return {output, new_vector(x, mean, statistics), new_vector(x, invstd, statistics)};
}

// Recomputes the output of a forward pass, to the last bit, from the statistics that it returned.
Tensor normalize(const Tensor& input, const Tensor& mean, const Tensor& invstd, const MaybeTensor& weight,
                 const MaybeTensor& bias, const std::string& activation, double negative_slope) {
  check::cpu(kOp, "input", input);
  check_input(input);
  check_statistics(mean, invstd, input);
  check_parameter("weight", weight, input);
  check_parameter("bias", bias, input);
  const Activation kind = parse(activation);

  const MemoryFormat format = suggest_memory_format(input);
  const Tensor x = dense(input, format);
  const Extent extent = Extent::of(x, format);
  const Tensor output = empty_like(x, format);
  if (!x.numel()) return output;
  const auto mu = read(mean, extent.C, 0), r = read(invstd, extent.C, 0);
  const auto gamma = read(weight, extent.C, 1), beta = read(bias, extent.C, 0);
  for_kernel(x.scalar_type(), kind, negative_slope, [&](auto tag, auto act) {
    using T = decltype(tag);
    using Act = decltype(act);
    Coefficients<Compute<T>> coefficients(extent, kOwn);
    for (int64_t c = 0; c < extent.C; ++c) set_affine(coefficients, c, mu[c], r[c], gamma[c], beta[c]);
    run_passes(extent, coefficients,
               Map{Normalize<T, Act>{data<T>(x), static_cast<T*>(output.mutable_data_ptr()), act}});
  });
  return output;
}

// ---- backward

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                            const Tensor& invstd, const MaybeTensor& weight, const MaybeTensor& bias,
                                            bool training, const std::string& activation, double negative_slope,
                                            bool input_wanted, bool affine_wanted) {
  check::cpu(kOp, "input", input);
  check_input(input);
  check_like_input("grad_output", grad_output, input);
  check_statistics(mean, invstd, input);
  check_parameter("weight", weight, input);
  check_parameter("bias", bias, input);
  const Activation kind = parse(activation);

  const MemoryFormat format = suggest_memory_format(input);
  const Tensor x = dense(input, format), g = dense(grad_output, format);
  const Extent extent = Extent::of(x, format);
  const Tensor grad_input = input_wanted ? empty_like(x, format) : nothing();
  const auto mu = read(mean, extent.C, 0), r = read(invstd, extent.C, 0);
  const auto gamma = read(weight, extent.C, 1), beta = read(bias, extent.C, 0);
  std::vector<double> grad_weight(extent.C), grad_bias(extent.C);
  if (x.numel()) {
    for_kernel(x.scalar_type(), kind, negative_slope, [&](auto tag, auto act) {
      using T = decltype(tag);
      using Act = decltype(act);
      using A = Compute<T>;
      using M = BackwardMap<T, Act>;
      const int64_t m = extent.per_channel();
      Coefficients<A> coefficients(extent, M::kCoefficients);
      const Point<T, Act> point{data<T>(x), data<T>(g), act};
      const auto set_map = [&](int64_t c, double mean_u, double mean_u_xc) {
        const double scale = gamma[c] * r[c];
        coefficients.at(M::kU, c) = static_cast<A>(scale);
        coefficients.at(M::kXc, c) = static_cast<A>(-scale * r[c] * r[c] * mean_u_xc);
        coefficients.at(M::kOne, c) = static_cast<A>(-scale * mean_u);
      };
      for (int64_t c = 0; c < extent.C; ++c) {
        set_affine(coefficients, c, mu[c], r[c], gamma[c], beta[c]);
        set_map(c, 0, 0);
      }
      const Reduce reduce{BackwardSums<T, Act>{point}, [&](int64_t c, const double* sums) {
                            grad_bias[c] = sums[0];
                            grad_weight[c] = r[c] * sums[1];
                            if (training) set_map(c, sums[0] / m, sums[1] / m);
                          }};
      const Map map{M{point, training, input_wanted ? static_cast<T*>(grad_input.mutable_data_ptr()) : nullptr}};
      if (!input_wanted) {
        run_passes(extent, coefficients, reduce);
      } else if (training || affine_wanted) {
        run_passes(extent, coefficients, reduce, map);
      } else {
        run_passes(extent, coefficients, map);
      }
    });
  }
  const auto parameter_grad = [&](const MaybeTensor& parameter, const std::vector<double>& values) {
    return affine_wanted && parameter ? new_vector(x, values, parameter->scalar_type()) : nothing();
  };
  return {grad_input, parameter_grad(weight, grad_weight), parameter_grad(bias, grad_bias)};
}

// ---- double backward

std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward(
    const MaybeTensor& cotangent_input, const MaybeTensor& cotangent_weight, const MaybeTensor& cotangent_bias,
    const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& invstd, const MaybeTensor& weight,
    const MaybeTensor& bias, bool training, const std::string& activation, double negative_slope,
    bool grad_output_wanted, bool input_wanted) {
  check::cpu(kOp, "input", input);
  check_input(input);
  check_like_input("grad_output", grad_output, input);
  if (cotangent_input) check_like_input("cotangent_input", *cotangent_input, input);
  check_statistics(mean, invstd, input);
  check_parameter("weight", weight, input);
  check_parameter("bias", bias, input);
  check_parameter("cotangent_weight", cotangent_weight, input);
  check_parameter("cotangent_bias", cotangent_bias, input);
  const Activation kind = parse(activation);

  const MemoryFormat format = suggest_memory_format(input);
  const Tensor x = dense(input, format), g = dense(grad_output, format);
  const MaybeTensor cotangent = cotangent_input ? MaybeTensor(dense(*cotangent_input, format)) : std::nullopt;
  const Extent extent = Extent::of(x, format);
  const Tensor grad_grad = grad_output_wanted ? empty_like(x, format) : nothing();
  const Tensor grad_input = input_wanted ? empty_like(x, format) : nothing();
  const auto mu = read(mean, extent.C, 0), r = read(invstd, extent.C, 0);
  const auto gamma = read(weight, extent.C, 1), beta = read(bias, extent.C, 0);
  const auto b_gamma = read(cotangent_weight, extent.C, 0), b_beta = read(cotangent_bias, extent.C, 0);
  std::vector<double> grad_weight(extent.C), grad_bias(extent.C);
  if (x.numel()) {
    for_kernel(x.scalar_type(), kind, negative_slope, [&](auto tag, auto act) {
      using T = decltype(tag);
      using Act = decltype(act);
      using A = Compute<T>;
      using M = DoubleMap<T, Act>;
      const double m = static_cast<double>(extent.per_channel());
      Coefficients<A> coefficients(extent, M::kCoefficients);
      const Point<T, Act> point{data<T>(x), data<T>(g), act};
      const T* a = cotangent ? data<T>(*cotangent) : nullptr;
      for (int64_t c = 0; c < extent.C; ++c) set_affine(coefficients, c, mu[c], r[c], gamma[c], beta[c]);

      // Means over each channel; the curvature pass needs them too. In evaluation mode the statistics do not depend on
      // x, so all means except the covariance stay zero.
      struct Means {
        double u = 0, a = 0, u_xhat = 0, a_xhat = 0, covariance = 0;
      };
      std::vector<Means> means(extent.C);
      const auto set_map = [&](int64_t c, double sum_q, double sum_q_xc) {
        const Means& s = means[c];
        const double scale = gamma[c] * r[c];
        const double b = b_gamma[c] - scale * s.a_xhat;
        const double mean_h = training ? s.u * b - s.a * scale * s.u_xhat + gamma[c] * sum_q / m : 0;
        const double mean_h_xhat =
            training ? s.u_xhat * b - s.a_xhat * scale * s.u_xhat + gamma[c] * r[c] * sum_q_xc / m : 0;
        const double through_r = training ? scale * r[c] * r[c] * s.covariance / m : 0;
        coefficients.at(M::kU, c) = static_cast<A>(r[c] * b);
        coefficients.at(M::kA, c) = static_cast<A>(-scale * r[c] * s.u_xhat);
        coefficients.at(M::kQ, c) = static_cast<A>(scale);
        coefficients.at(M::kXc, c) = static_cast<A>(-r[c] * r[c] * mean_h_xhat - through_r);
        coefficients.at(M::kOne, c) = static_cast<A>(-r[c] * mean_h);
        grad_weight[c] = r[c] * (s.covariance + sum_q_xc);
        grad_bias[c] = sum_q;
      };
      const Reduce reduce{DoubleSums<T, Act>{point, a}, [&](int64_t c, const double* sums) {
                            Means& s = means[c];
                            s.covariance = sums[4];
                            if (training) {
                              s = {sums[0] / m, sums[1] / m, r[c] * sums[2] / m, r[c] * sums[3] / m, sums[4]};
                              s.covariance -= m * (s.u * s.a + s.u_xhat * s.a_xhat);
                            }
                            const double scale = gamma[c] * r[c];
                            coefficients.at(kWa, c) = static_cast<A>(scale);
                            coefficients.at(kWxc, c) = static_cast<A>((b_gamma[c] - scale * s.a_xhat) * r[c]);
                            coefficients.at(kWone, c) = static_cast<A>(b_beta[c] - scale * s.a);
                            set_map(c, 0, 0);
                          }};
      [[maybe_unused]] const Reduce curvature{CurvatureSums<T, Act>{point, a},
                                              [&](int64_t c, const double* sums) { set_map(c, sums[0], sums[1]); }};
      const Map map{M{point, a, training, grad_output_wanted ? static_cast<T*>(grad_grad.mutable_data_ptr()) : nullptr,
                      input_wanted ? static_cast<T*>(grad_input.mutable_data_ptr()) : nullptr}};
      if constexpr (Act::kCurved) {
        run_passes(extent, coefficients, reduce, curvature, map);
      } else {
        run_passes(extent, coefficients, reduce, map);
      }
    });
  }
  const auto parameter_grad = [&](const MaybeTensor& parameter, const std::vector<double>& values) {
    return parameter ? new_vector(x, values, parameter->scalar_type()) : nothing();
  };
  return {grad_grad, grad_input, parameter_grad(weight, grad_weight), parameter_grad(bias, grad_bias)};
}

}  // namespace
}  // namespace gan_fast

STABLE_TORCH_LIBRARY_IMPL(gan_fast, CPU, m) {
  m.impl("batch_norm_act_forward", TORCH_BOX(&gan_fast::forward));
  m.impl("batch_norm_act_normalize", TORCH_BOX(&gan_fast::normalize));
  m.impl("batch_norm_act_backward", TORCH_BOX(&gan_fast::backward));
  m.impl("batch_norm_act_double_backward", TORCH_BOX(&gan_fast::double_backward));
}
