// Kernels of batch norm followed by an activation: the passes of csrc/cpu/batch_norm_act.cpp on a GPU.
//
// Notation: xc = x - mean, r = 1 / sqrt(var + eps), z = gamma r xc + beta, u = dL/dy f'(z). docs/batch_norm_act.md
// derives the formulas.
//
// Tensor reads + writes: forward 1 + 0 and 1 + 1; backward 2 + 0 and 2 + 1; double backward 3 + 0 (twice for tanh and
// sigmoid) and 3 + 2.
#pragma once

#include "activation.cuh"
#include "channels.cuh"

namespace gan_fast::cuda {

template <class A, int kSlots>
struct AffineChannel {
  A mean[kSlots], scale[kSlots], shift[kSlots];
};

template <class T, int kSlots>
__device__ void load_affine(const Affine& affine, int64_t c, AffineChannel<Compute<T>, kSlots>& channel) {
  Compute<T> gamma[kSlots];
  read<T, kSlots>(affine.mean, c, 0, channel.mean);
  read<T, kSlots>(affine.invstd, c, 0, channel.scale);
  read<T, kSlots>(affine.weight, c, 1, gamma);
  read<T, kSlots>(affine.bias, c, 0, channel.shift);
#pragma unroll
  for (int j = 0; j < kSlots; ++j) channel.scale[j] *= gamma[j];
}

// Coefficients of the map passes, computed by a kernel that finishes sums. kScale is also kU (of backward), kWa and kQ
// of csrc/cpu/batch_norm_act.cpp.
enum Slot : int { kMean, kScale, kShift, kOwn };
enum BackwardSlot : int { kXc = kOwn, kOne };
enum DoubleSlot : int { kWxc = kOwn, kWone, kByU, kByA, kByXc, kByOne };
static_assert(kOne + 1 == kBackwardCoefficients && kByOne + 1 == kDoubleCoefficients);

template <class A, int kSlots, int kCoefficients>
struct Coefficients {
  A values[kCoefficients][kSlots];

  __device__ void load(const A* coefficients, const ChannelGrid& g, int64_t c) {
#pragma unroll
    for (int k = 0; k < kCoefficients; ++k) read<A, kSlots>(coefficients, k, g.channels, c, values[k]);
  }

  __device__ A at(int index, int j) const { return values[index][j]; }
};

// ---- forward

template <class T_, int kWidth_, int kSlots_>
struct Moments {
  using T = T_;
  static constexpr int kWidth = kWidth_, kSlots = kSlots_, kInputs = 1, kUnroll = 4, kBlocks = 2;
  const T* inputs[1];
};

// Mean and sum of squared deviations of a chunk: partial[0] and partial[1] of (2, chunk, channel).
template <class Kernel>
__global__ void __launch_bounds__(kThreads, Kernel::kBlocks)
    moments_kernel(const Kernel kernel, const ChannelGrid g, double* partial) {
  using A = Compute<typename Kernel::T>;
  constexpr int kSlots = Kernel::kSlots, kWidth = Kernel::kWidth;
  __shared__ double scratch[kSlots * kThreads];
  Walk walk(g);
  // Deviations are taken from the mean of the thread's first values, so that little cancels in the correction below.
  A pivot[kSlots] = {}, sum[kSlots] = {}, squares[kSlots] = {};
  int64_t count = 0;
  while (walk.position < walk.end) {
    Batch<Kernel> batch;
    batch.load(kernel, g, walk);
    int here = 0;
#pragma unroll
    for (int u = 0; u < Kernel::kUnroll; ++u) here += batch.valid[u] ? kWidth / kSlots : 0;
    if (count == 0) {
#pragma unroll
      for (int u = 0; u < Kernel::kUnroll; ++u) {
#pragma unroll
        for (int v = 0; v < kWidth; ++v) pivot[v % kSlots] += batch.values[u][0].at(v);  // zeros where invalid
      }
#pragma unroll
      for (int j = 0; j < kSlots; ++j) {
        // An infinite pivot would make the mean NaN instead of infinite.
        pivot[j] = std::isfinite(pivot[j]) ? pivot[j] / static_cast<A>(here) : A{0};
      }
    }
    A few[kSlots] = {}, few_squares[kSlots] = {};
#pragma unroll
    for (int u = 0; u < Kernel::kUnroll; ++u) {
      if (!batch.valid[u]) continue;
#pragma unroll
      for (int v = 0; v < kWidth; ++v) {
        const int j = v % kSlots;
        const A distance = batch.values[u][0].at(v) - pivot[j];
        few[j] += distance;
        few_squares[j] += distance * distance;
      }
    }
#pragma unroll
    for (int j = 0; j < kSlots; ++j) {
      sum[j] += few[j];
      squares[j] += few_squares[j];
    }
    count += here;
  }
  // Merges threads (Chan, Golub and LeVeque, 1979), in a form in which an infinite mean stays infinite.
  double thread_mean[kSlots], weighted[kSlots], mean[kSlots], deviations[kSlots];
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
    const double shift = count ? static_cast<double>(sum[j]) / static_cast<double>(count) : 0.0;
    thread_mean[j] = pivot[j] + shift;
    weighted[j] = count ? thread_mean[j] * static_cast<double>(count) : 0.0;
    deviations[j] = static_cast<double>(squares[j]) - shift * sum[j];
  }
  sum_rows<kSlots>(scratch, g.lanes, weighted);
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
    mean[j] = scratch[j * kThreads + walk.lane] / static_cast<double>(g.count(walk.chunk));
    const double distance = thread_mean[j] - mean[j];
    deviations[j] = count ? deviations[j] + static_cast<double>(count) * distance * distance : 0.0;
  }
  sum_rows<kSlots>(scratch, g.lanes, deviations);
  if (walk.row == 0 && walk.column < g.columns) {
#pragma unroll
    for (int j = 0; j < kSlots; ++j) {
      const int64_t at = walk.chunk * g.channels + walk.column * kSlots + j;
      partial[at] = mean[j];
      partial[g.chunks * g.channels + at] = scratch[j * kThreads + walk.lane];
    }
  }
}

// The statistics of a forward pass: from the chunks or, in evaluation mode, from the running statistics.
template <class T>
struct Statistics {
  Compute<T>*mean, *invstd;
  Parameter running_mean, running_var;
  double momentum, eps;
  int64_t per_channel;
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    statistics_kernel(const Statistics<T> statistics, const ChannelGrid g, const double* partial) {
  using A = Compute<T>;
  __shared__ double scratch[kThreads];
  const int lane = threadIdx.x % kFinishChannels, first = threadIdx.x / kFinishChannels;
  constexpr int kStep = kThreads / kFinishChannels;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kFinishChannels + lane;
  const int64_t chunks = c < g.channels ? g.chunks : 0;
  const double m = static_cast<double>(statistics.per_channel);
  double value = 0;
  for (int64_t chunk = first; chunk < chunks; chunk += kStep) {
    value += partial[chunk * g.channels + c] * static_cast<double>(g.count(chunk));
  }
  sum_rows<1>(scratch, kFinishChannels, &value);
  const double mean = scratch[lane] / m;
  value = 0;
  for (int64_t chunk = first; chunk < chunks; chunk += kStep) {
    const double distance = partial[chunk * g.channels + c] - mean;
    value += partial[(g.chunks + chunk) * g.channels + c] + distance * distance * static_cast<double>(g.count(chunk));
  }
  sum_rows<1>(scratch, kFinishChannels, &value);
  if (first == 0 && c < g.channels) {
    const double squares = scratch[lane] < 0 ? 0.0 : scratch[lane];  // unlike fmax, keeps NaN
    const double old_mean = read<T>(statistics.running_mean, c, 0), old_var = read<T>(statistics.running_var, c, 0);
    statistics.mean[c] = static_cast<A>(mean);
    statistics.invstd[c] = static_cast<A>(1 / std::sqrt(squares / m + statistics.eps));
    const double momentum = statistics.momentum;
    write<T>(statistics.running_mean, c, momentum * mean + (1 - momentum) * old_mean);
    write<T>(statistics.running_var, c, momentum * squares / (m - 1) + (1 - momentum) * old_var);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) running_kernel(const Statistics<T> statistics, int64_t channels) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= channels) return;
  const double var = read<T>(statistics.running_var, c, 0);
  statistics.mean[c] = read<T>(statistics.running_mean, c, 0);
  statistics.invstd[c] = static_cast<Compute<T>>(1 / std::sqrt(var + statistics.eps));
}

template <class T_, int kWidth_, int kSlots_, class Act>
struct Normalize {
  using T = T_;
  using A = Compute<T>;
  using Channel = AffineChannel<A, kSlots_>;
  static constexpr int kWidth = kWidth_, kSlots = kSlots_, kInputs = 1, kOutputs = 1, kUnroll = 4, kBlocks = 3;
  const T* inputs[1];
  T* outputs[1];
  Affine affine;
  Act act;

  __device__ void load(Channel& channel, const ChannelGrid&, int64_t c) const { load_affine<T>(affine, c, channel); }

  __device__ void apply(const Channel& c, int j, const A* in, A* out) const {
    out[0] = act.value(std::fma(in[0] - c.mean[j], c.scale[j], c.shift[j]));
  }
};

// ---- backward

// inputs: x, dL/dy.
template <class T_, int kWidth_, int kSlots_, class Act>
struct BackwardSums {
  using T = T_;
  using A = Compute<T>;
  using Channel = AffineChannel<A, kSlots_>;
  static constexpr int kWidth = kWidth_, kSlots = kSlots_, kInputs = 2, kSums = 2, kUnroll = 2, kBlocks = 2;
  const T* inputs[2];
  Affine affine;
  Act act;

  __device__ void load(Channel& channel, const ChannelGrid&, int64_t c) const { load_affine<T>(affine, c, channel); }

  __device__ void terms(const Channel& c, int j, const A* in, A* out) const {
    const A xc = in[0] - c.mean[j];
    const A u = act.backward(in[1], std::fma(xc, c.scale[j], c.shift[j]));
    out[0] = u;
    out[1] = u * xc;
  }
};

template <class T_, int kWidth_, int kSlots_, class Act>
struct BackwardMap {
  using T = T_;
  using A = Compute<T>;
  using Channel = Coefficients<A, kSlots_, kBackwardCoefficients>;
  static constexpr int kWidth = kWidth_, kSlots = kSlots_, kInputs = 2, kOutputs = 1, kUnroll = 2, kBlocks = 2;
  const T* inputs[2];
  T* outputs[1];
  const A* coefficients;
  bool through_statistics;  // zero coefficients would not do: 0 times an infinite xc is NaN
  Act act;

  __device__ void load(Channel& channel, const ChannelGrid& g, int64_t c) const { channel.load(coefficients, g, c); }

  __device__ void apply(const Channel& c, int j, const A* in, A* out) const {
    const A xc = in[0] - c.at(kMean, j);
    const A u = act.backward(in[1], std::fma(xc, c.at(kScale, j), c.at(kShift, j)));
    out[0] = through_statistics ? std::fma(c.at(kScale, j), u, std::fma(c.at(kXc, j), xc, c.at(kOne, j)))
                                : c.at(kScale, j) * u;
  }
};

template <class T>
__device__ void write_affine(const Affine& affine, Compute<T>* coefficients, int64_t channels, int64_t c) {
  AffineChannel<Compute<T>, 1> channel;
  load_affine<T>(affine, c, channel);
  coefficients[kMean * channels + c] = channel.mean[0];
  coefficients[kScale * channels + c] = channel.scale[0];
  coefficients[kShift * channels + c] = channel.shift[0];
}

template <class T>
struct BackwardFinish {
  static constexpr int kSums = 2;
  using A = Compute<T>;
  Affine affine;
  A* coefficients;
  Parameter grad_weight, grad_bias;
  int64_t channels, per_channel;

  __device__ void operator()(int64_t c, const double* sums) const {
    write_affine<T>(affine, coefficients, channels, c);
    const double m = static_cast<double>(per_channel);
    const double r = read<T>(affine.invstd, c, 0), scale = read<T>(affine.weight, c, 1) * r;
    coefficients[kXc * channels + c] = static_cast<A>(-scale * r * r * (sums[1] / m));
    coefficients[kOne * channels + c] = static_cast<A>(-scale * (sums[0] / m));
    write<T>(grad_weight, c, r * sums[1]);
    write<T>(grad_bias, c, sums[0]);
  }
};

// ---- double backward

// inputs: x, dL/dy, and a, the cotangent of grad_input.
template <class T_, int kWidth_, int kSlots_, class Act>
struct DoubleSums {
  using T = T_;
  using A = Compute<T>;
  using Channel = AffineChannel<A, kSlots_>;
  static constexpr int kWidth = kWidth_, kSlots = kSlots_, kInputs = 3, kSums = 5, kUnroll = 1, kBlocks = 1;
  const T* inputs[3];
  Affine affine;
  Act act;

  __device__ void load(Channel& channel, const ChannelGrid&, int64_t c) const { load_affine<T>(affine, c, channel); }

  __device__ void terms(const Channel& c, int j, const A* in, A* out) const {
    const A xc = in[0] - c.mean[j];
    const A u = act.backward(in[1], std::fma(xc, c.scale[j], c.shift[j]));
    out[0] = u;
    out[1] = in[2];
    out[2] = u * xc;
    out[3] = in[2] * xc;
    out[4] = u * in[2];
  }
};

template <class A, class Channel>
__device__ A cotangent_of_u(const Channel& c, int j, A a, A xc) {
  return std::fma(c.at(kScale, j), a, std::fma(c.at(kWxc, j), xc, c.at(kWone, j)));
}

template <class T_, int kWidth_, int kSlots_, class Act>
struct CurvatureSums {
  using T = T_;
  using A = Compute<T>;
  using Channel = Coefficients<A, kSlots_, kWone + 1>;
  static constexpr int kWidth = kWidth_, kSlots = kSlots_, kInputs = 3, kSums = 2, kUnroll = 1, kBlocks = 1;
  const T* inputs[3];
  const A* coefficients;
  Act act;

  __device__ void load(Channel& channel, const ChannelGrid& g, int64_t c) const { channel.load(coefficients, g, c); }

  __device__ void terms(const Channel& c, int j, const A* in, A* out) const {
    const A xc = in[0] - c.at(kMean, j);
    const A w = cotangent_of_u(c, j, in[2], xc);
    out[0] = in[1] * act.curvature(std::fma(xc, c.at(kScale, j), c.at(kShift, j))) * w;
    out[1] = out[0] * xc;
  }
};

// outputs: the gradients of dL/dy and of x.
template <class T_, int kWidth_, int kSlots_, class Act>
struct DoubleMap {
  using T = T_;
  using A = Compute<T>;
  using Channel = Coefficients<A, kSlots_, kDoubleCoefficients>;
  static constexpr int kWidth = kWidth_, kSlots = kSlots_, kInputs = 3, kOutputs = 2, kUnroll = 1, kBlocks = 1;
  const T* inputs[3];
  T* outputs[2];
  const A* coefficients;
  bool through_statistics;
  Act act;

  __device__ void load(Channel& channel, const ChannelGrid& g, int64_t c) const { channel.load(coefficients, g, c); }

  __device__ void apply(const Channel& c, int j, const A* in, A* out) const {
    const A xc = in[0] - c.at(kMean, j);
    const A z = std::fma(xc, c.at(kScale, j), c.at(kShift, j));
    const A w = cotangent_of_u(c, j, in[2], xc);
    out[0] = act.backward(w, z);
    out[1] = c.at(kByU, j) * act.backward(in[1], z);
    if (through_statistics) out[1] += std::fma(c.at(kByA, j), in[2], std::fma(c.at(kByXc, j), xc, c.at(kByOne, j)));
    if (act.is_curved()) out[1] = std::fma(c.at(kScale, j), in[1] * act.curvature(z) * w, out[1]);
  }
};

// Data of the two kernels that finish sums of a double backward.
template <class T>
struct DoubleChannels {
  using A = Compute<T>;
  Affine affine;
  Parameter cotangent_weight, cotangent_bias;
  Parameter grad_weight, grad_bias;
  A* coefficients;
  double* means;  // (5, channels): means of u, a, u xhat, a xhat, and the covariance; stored for CurvatureFinish
  int64_t channels;
  double per_channel, part;  // part = 1 / per_channel
  bool training;

  // Computes coefficients and gradients from the means and the sums of q and q xc.
  __device__ void finish(int64_t c, const double* mean, double sum_q, double sum_q_xc) const {
    const double r = read<T>(affine.invstd, c, 0), gamma = read<T>(affine.weight, c, 1), scale = gamma * r;
    const double u = mean[0], a = mean[1], u_xhat = mean[2], a_xhat = mean[3], covariance = mean[4];
    const double b = read<T>(cotangent_weight, c, 0) - scale * a_xhat;
    const double mean_h = training ? u * b - a * scale * u_xhat + gamma * sum_q * part : 0;
    const double mean_h_xhat = training ? u_xhat * b - a_xhat * scale * u_xhat + gamma * r * sum_q_xc * part : 0;
    const double through_r = training ? scale * r * r * covariance * part : 0;
    coefficients[kByU * channels + c] = static_cast<A>(r * b);
    coefficients[kByA * channels + c] = static_cast<A>(-scale * r * u_xhat);
    coefficients[kByXc * channels + c] = static_cast<A>(-r * r * mean_h_xhat - through_r);
    coefficients[kByOne * channels + c] = static_cast<A>(-r * mean_h);
    write<T>(grad_weight, c, r * (covariance + sum_q_xc));
    write<T>(grad_bias, c, sum_q);
  }
};

template <class T>
struct DoubleFinish {
  static constexpr int kSums = 5;
  using A = Compute<T>;
  DoubleChannels<T> all;

  __device__ void operator()(int64_t c, const double* sums) const {
    write_affine<T>(all.affine, all.coefficients, all.channels, c);
    const double m = all.per_channel, part = all.part;
    const double r = read<T>(all.affine.invstd, c, 0), scale = read<T>(all.affine.weight, c, 1) * r;
    // In evaluation mode the statistics do not depend on x, and the other means stay zero.
    double mean[5] = {0, 0, 0, 0, sums[4]};
    if (all.training) {
      mean[0] = sums[0] * part;
      mean[1] = sums[1] * part;
      mean[2] = r * sums[2] * part;
      mean[3] = r * sums[3] * part;
      mean[4] -= m * (mean[0] * mean[1] + mean[2] * mean[3]);
    }
    for (int k = 0; k < 5; ++k) all.means[k * all.channels + c] = mean[k];
    const double b = read<T>(all.cotangent_weight, c, 0) - scale * mean[3];
    all.coefficients[kWxc * all.channels + c] = static_cast<A>(b * r);
    all.coefficients[kWone * all.channels + c] = static_cast<A>(read<T>(all.cotangent_bias, c, 0) - scale * mean[1]);
    all.finish(c, mean, 0, 0);
  }
};

template <class T>
struct CurvatureFinish {
  static constexpr int kSums = 2;
  DoubleChannels<T> all;

  __device__ void operator()(int64_t c, const double* sums) const {
    double mean[5];
    for (int k = 0; k < 5; ++k) mean[k] = all.means[k * all.channels + c];
    all.finish(c, mean, sums[0], sums[1]);
  }
};

// ---- launches
//
// Launch is cuda::Launch of launch.cuh or emulator::Launch of tests/cuda/emulator.h. It is called with a kernel, the
// number of blocks, the threads per block, and the kernel's arguments. Nothing is launched for an empty tensor; the
// host code then sets the gradients of the parameters to zero.

// Calls f with kWidth and kSlots as types: accesses of 16 bytes if the alignment and the shape allow them.
template <class T, class F>
void for_access(const Shape& shape, bool aligned, const F& f) {
  using One = std::integral_constant<int, 1>;
  using Wide = std::integral_constant<int, kWidest<T>>;
  // float64 is for correctness rather than speed, so it needs no wide accesses.
  if constexpr (!std::is_same_v<T, double>) {
    if (aligned && (shape.channels_last ? shape.C : shape.S) % Wide::value == 0) {
      return shape.channels_last ? f(Wide{}, Wide{}) : f(Wide{}, One{});
    }
  }
  f(One{}, One{});
}

// Calls f with the activation. Kernels with wide accesses are compiled separately for each class of activations.
template <class A, int kWidth, class F>
void for_activation(const ActivationChoice& choice, const F& f) {
  if constexpr (kWidth == 1) {
    f(AnyActivation<A>(choice.activation, choice.negative_slope));
  } else if (is_curved(choice.activation)) {
    f(Curved<A>(choice.activation, choice.negative_slope));
  } else {
    f(PiecewiseLinear<A>(choice.activation, choice.negative_slope));
  }
}

template <class Launch>
ChannelGrid geometry(const Launch& launch, const Shape& shape, int width, int blocks_each) {
  return ChannelGrid::of(shape, width, static_cast<int64_t>(launch.multiprocessors) * blocks_each);
}

template <class T, class Launch>
void run_normalize(const Launch& launch, const NormalizeArguments<T>& a) {
  if (a.shape.is_empty()) return;
  for_access<T>(a.shape, a.aligned, [&](auto width, auto slots) {
    for_activation<Compute<T>, decltype(width)::value>(a.activation, [&](auto act) {
      using Kernel = Normalize<T, decltype(width)::value, decltype(slots)::value, decltype(act)>;
      const ChannelGrid g = geometry(launch, a.shape, Kernel::kWidth, Kernel::kBlocks);
      launch(map_kernel<Kernel>, g.blocks(), kThreads, Kernel{{a.x}, {a.y}, a.affine, act}, g);
    });
  });
}

template <class T, class Launch>
void run_forward(const Launch& launch, const ForwardArguments<T>& a) {
  const Statistics<T> statistics{a.mean,     a.invstd, a.running_mean,       a.running_var,
                                 a.momentum, a.eps,    a.shape.per_channel()};
  if (a.training ? a.shape.is_empty() : !a.shape.C) return;
  if (a.training) {
    for_access<T>(a.shape, a.aligned, [&](auto width, auto slots) {
      using Kernel = Moments<T, decltype(width)::value, decltype(slots)::value>;
      const ChannelGrid g = geometry(launch, a.shape, Kernel::kWidth, Kernel::kBlocks);
      launch(moments_kernel<Kernel>, g.blocks(), kThreads, Kernel{{a.x}}, g, a.partial);
      launch(statistics_kernel<T>, finish_blocks(g), kThreads, statistics, g, a.partial);
    });
  } else {
    launch(running_kernel<T>, ceil_div(a.shape.C, kThreads), kThreads, statistics, a.shape.C);
  }
  // mean and invstd are new allocations, and therefore aligned to 16 bytes.
  const Affine affine{{a.mean, 1, true, true}, {a.invstd, 1, true, true}, a.weight, a.bias};
  run_normalize(launch, NormalizeArguments<T>{a.shape, a.x, a.y, affine, a.activation, a.aligned});
}

template <class T, int kWidth, int kSlots, class Act, class Launch>
void backward_passes(const Launch& launch, const BackwardArguments<T>& a, const Act& act) {
  using Sums = BackwardSums<T, kWidth, kSlots, Act>;
  using Map = BackwardMap<T, kWidth, kSlots, Act>;
  const ChannelGrid g = geometry(launch, a.shape, kWidth, Sums::kBlocks);
  const bool sums = a.training || a.affine_wanted;
  if (sums) launch(sum_kernel<Sums>, g.blocks(), kThreads, Sums{{a.x, a.grad}, a.affine, act}, g, a.partial);
  const BackwardFinish<T> finish{a.affine,    a.coefficients, a.grad_weight,
                                 a.grad_bias, a.shape.C,      a.shape.per_channel()};
  launch(finish_kernel<BackwardFinish<T>>, finish_blocks(g), kThreads, finish, g, sums ? a.partial : nullptr);
  if (!a.grad_input) return;
  const Map map{{a.x, a.grad}, {a.grad_input}, a.coefficients, a.training, act};
  launch(map_kernel<Map>, g.blocks(), kThreads, map, g);
}

template <class T, class Launch>
void run_backward(const Launch& launch, const BackwardArguments<T>& a) {
  if (a.shape.is_empty()) return;
  for_access<T>(a.shape, a.aligned, [&](auto width, auto slots) {
    for_activation<Compute<T>, decltype(width)::value>(a.activation, [&](const auto& act) {
      backward_passes<T, decltype(width)::value, decltype(slots)::value>(launch, a, act);
    });
  });
}

template <class T, int kWidth, int kSlots, class Act, class Launch>
void double_backward_passes(const Launch& launch, const DoubleBackwardArguments<T>& a, const Act& act) {
  using Sums = DoubleSums<T, kWidth, kSlots, Act>;
  using Map = DoubleMap<T, kWidth, kSlots, Act>;
  const ChannelGrid g = geometry(launch, a.shape, kWidth, Sums::kBlocks);
  const double m = static_cast<double>(a.shape.per_channel());
  const DoubleChannels<T> all{
      a.affine, a.cotangent_weight, a.cotangent_bias, a.grad_weight, a.grad_bias, a.coefficients, a.means, a.shape.C, m,
      1 / m,    a.training};
  launch(sum_kernel<Sums>, g.blocks(), kThreads, Sums{{a.x, a.grad, a.cotangent}, a.affine, act}, g, a.partial);
  launch(finish_kernel<DoubleFinish<T>>, finish_blocks(g), kThreads, DoubleFinish<T>{all}, g, a.partial);
  if (act.is_curved()) {
    using Curvature = CurvatureSums<T, kWidth, kSlots, Act>;
    const Curvature curvature{{a.x, a.grad, a.cotangent}, a.coefficients, act};
    launch(sum_kernel<Curvature>, g.blocks(), kThreads, curvature, g, a.partial);
    launch(finish_kernel<CurvatureFinish<T>>, finish_blocks(g), kThreads, CurvatureFinish<T>{all}, g, a.partial);
  }
  if (!a.grad_grad && !a.grad_input) return;
  const Map map{{a.x, a.grad, a.cotangent}, {a.grad_grad, a.grad_input}, a.coefficients, a.training, act};
  launch(map_kernel<Map>, g.blocks(), kThreads, map, g);
}

template <class T, class Launch>
void run_double_backward(const Launch& launch, const DoubleBackwardArguments<T>& a) {
  if (a.shape.is_empty()) return;
  for_access<T>(a.shape, a.aligned, [&](auto width, auto slots) {
    const AnyActivation<Compute<T>> act(a.activation.activation, a.activation.negative_slope);
    double_backward_passes<T, decltype(width)::value, decltype(slots)::value>(launch, a, act);
  });
}

}  // namespace gan_fast::cuda
