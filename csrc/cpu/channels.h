// Passes over the channels of a tensor: a pass either sums per channel (Reduce), or maps values with coefficients per
// channel (Map). N: samples, C: channels, S: values per sample and channel.
//
// An op lists its passes in order. There are two implementations, one per memory order:
//   channels first (N, C, S): a channel is N runs of S values. A thread runs all passes on a group of channels, while
//     the cache holds them.
//   channels last (N * S, C): the tensor is rows of C values. A pass covers all rows, in chunks. The sums of the chunks
//     are added in order, so results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "../common/tensor.h"
#include "isa.h"
#include "lanes.h"

namespace gan_fast {

struct Extent {
  int64_t N = 0, C = 0, S = 0;
  bool channels_last = false;

  int64_t per_channel() const { return N * S; }

  static Extent of(const Tensor& t, MemoryFormat format) {
    Extent extent{t.size(0), t.size(1), 1, false};
    for (int64_t d = 2; d < t.dim(); ++d) extent.S *= t.size(d);
    // With S = 1 the tensor is a matrix of rows in both formats. With C = 1 it is runs of one channel in both.
    extent.channels_last = extent.C > 1 && (extent.S == 1 || format != MemoryFormat::Contiguous);
    return extent;
  }
};

// Coefficients per channel: `count` arrays, one after the other. With channels last, an array is repeated until its
// length (width) is a multiple of eight: several rows are then processed at once, in full vectors for any
// number of channels.
template <class A>
class Coefficients {
 public:
  Coefficients(const Extent& extent, int count)
      : channels_(extent.C),
        width_(extent.channels_last ? extent.C * (kLanes / std::gcd<int64_t>(extent.C, kLanes)) : extent.C),
        values_(static_cast<size_t>(count * width_)) {}

  int64_t width() const { return width_; }
  A& at(int index, int64_t channel) { return values_[index * width_ + channel]; }
  const A* data() const { return values_.data(); }

  void repeat() {
    for (size_t begin = 0; begin < values_.size(); begin += width_) {
      for (int64_t lane = channels_; lane < width_; ++lane) values_[begin + lane] = values_[begin + lane - channels_];
    }
  }

 private:
  int64_t channels_, width_;
  std::vector<A> values_;
};

// Sums kernel.terms over each channel, then calls finish(channel, sums) to compute results and coefficients.
template <class Kernel, class Finish>
struct Reduce {
  Kernel kernel;
  Finish finish;
};
template <class Kernel, class Finish>
Reduce(Kernel, Finish) -> Reduce<Kernel, Finish>;

template <class Kernel>
struct Map {
  Kernel kernel;
};
template <class Kernel>
Map(Kernel) -> Map<Kernel>;

namespace detail {

// Values per thread: with fewer, another thread costs more than it saves.
constexpr int64_t kGrain = 32768;
// Rows are processed in blocks of this size, which stay in the first-level cache. Within a block, eight columns at a
// time go through all rows, with coefficients and sums in registers.
constexpr int64_t kFirstLevelBytes = 16384;
// With channels first, adjacent channels with short runs form a group of up to this size. So reads are long enough for
// the hardware prefetcher, and the group stays in the second-level cache.
constexpr int64_t kSecondLevelBytes = 262144;
constexpr int64_t kMaxChannels = 16;

template <class A>
inline int64_t rows_in_cache(int64_t width) {
  return std::max<int64_t>(1, kFirstLevelBytes / (width * static_cast<int64_t>(sizeof(A))));
}

// Adds the terms of the vectors at begin, begin + step, ..., before end, to the totals. Cheap kernels get an unrolled
// loop with two sets of totals, since they are limited by the latency of additions. For others a second copy of their
// code would not pay.
template <class Kernel>
GAN_FAST_INLINE void add_run(const Kernel& kernel, int64_t begin, int64_t end, int64_t step,
                             const Vec<typename Kernel::A>* c, F64* total) {
  int64_t i = begin;
  if constexpr (Kernel::kCheap) {
    F64 second[Kernel::kSums] = {};
    for (; i + step + kLanes <= end; i += 2 * step) {
      F64 terms[Kernel::kSums];
      kernel.terms(i, kLanes, c, terms);
      GAN_FAST_UNROLL
      for (int k = 0; k < Kernel::kSums; ++k) total[k] += terms[k];
      kernel.terms(i + step, kLanes, c, terms);
      GAN_FAST_UNROLL
      for (int k = 0; k < Kernel::kSums; ++k) second[k] += terms[k];
    }
    GAN_FAST_UNROLL
    for (int k = 0; k < Kernel::kSums; ++k) total[k] += second[k];
  }
  for (; i < end; i += step) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, end - i));
    F64 terms[Kernel::kSums];
    kernel.terms(i, count, c, terms);
    GAN_FAST_UNROLL
    for (int k = 0; k < Kernel::kSums; ++k) total[k] += keep(terms[k], count);
  }
}

// Applies the kernel to the vectors at begin, begin + step, ..., before end.
template <class Kernel>
GAN_FAST_INLINE void map_run(const Kernel& kernel, int64_t begin, int64_t end, int64_t step,
                             const Vec<typename Kernel::A>* c) {
  int64_t i = begin;
  if constexpr (Kernel::kCheap) {
    for (; i + kLanes <= end; i += step) kernel.apply(i, kLanes, c);
  }
  for (; i < end; i += step) kernel.apply(i, static_cast<int>(std::min<int64_t>(kLanes, end - i)), c);
}

template <class Kernel>
struct SumChannels {
  using A = typename Kernel::A;
  Kernel kernel;
  Extent extent;
  const A* coefficients;

  // Writes sums[(channel - first) * kSums + k] for at most kMaxChannels channels.
  GAN_FAST_INLINE void operator()(int64_t first, int64_t last, double* sums) const {
    F64 total[kMaxChannels * Kernel::kSums] = {};
    for (int64_t n = 0; n < extent.N; ++n) {
      for (int64_t channel = first; channel < last; ++channel) {
        Vec<A> c[Kernel::kCoefficients];
        GAN_FAST_UNROLL
        for (int k = 0; k < Kernel::kCoefficients; ++k) c[k] = Vec<A>{} + coefficients[k * extent.C + channel];
        const int64_t begin = (n * extent.C + channel) * extent.S;
        F64* of_channel = total + (channel - first) * Kernel::kSums;
        F64 run[Kernel::kSums];
        GAN_FAST_UNROLL
        for (int k = 0; k < Kernel::kSums; ++k) run[k] = of_channel[k];
        add_run(kernel, begin, begin + extent.S, kLanes, c, run);
        GAN_FAST_UNROLL
        for (int k = 0; k < Kernel::kSums; ++k) of_channel[k] = run[k];
      }
    }
    for (int64_t i = 0; i < (last - first) * Kernel::kSums; ++i) sums[i] = sum(total[i]);
  }
};

template <class Kernel>
struct MapChannels {
  using A = typename Kernel::A;
  Kernel kernel;
  Extent extent;
  const A* coefficients;

  GAN_FAST_INLINE void operator()(int64_t first, int64_t last) const {
    for (int64_t n = 0; n < extent.N; ++n) {
      for (int64_t channel = first; channel < last; ++channel) {
        Vec<A> c[Kernel::kCoefficients];
        GAN_FAST_UNROLL
        for (int k = 0; k < Kernel::kCoefficients; ++k) c[k] = Vec<A>{} + coefficients[k * extent.C + channel];
        const int64_t begin = (n * extent.C + channel) * extent.S;
        map_run(kernel, begin, begin + extent.S, kLanes, c);
      }
    }
  }
};

// Adds the terms of the values in [begin, end) to sums[k * width + lane]. begin is the start of a row.
template <class Kernel>
struct SumRows {
  using A = typename Kernel::A;
  Kernel kernel;
  int64_t width;
  const A* coefficients;

  GAN_FAST_INLINE void operator()(int64_t begin, int64_t end, double* sums) const {
    const int64_t block = rows_in_cache<A>(width) * width;
    for (int64_t first = begin; first < end; first += block) {
      const int64_t last = std::min(end, first + block);
      for (int64_t lane = 0; lane < width; lane += kLanes) {
        Vec<A> c[Kernel::kCoefficients];
        GAN_FAST_UNROLL
        for (int k = 0; k < Kernel::kCoefficients; ++k) c[k] = load(coefficients + k * width + lane);
        F64 total[Kernel::kSums];
        GAN_FAST_UNROLL
        for (int k = 0; k < Kernel::kSums; ++k) total[k] = load(sums + k * width + lane);
        add_run(kernel, first + lane, last, width, c, total);
        GAN_FAST_UNROLL
        for (int k = 0; k < Kernel::kSums; ++k) store(sums + k * width + lane, total[k]);
      }
    }
  }
};

template <class Kernel>
struct MapRows {
  using A = typename Kernel::A;
  Kernel kernel;
  int64_t width;
  const A* coefficients;

  GAN_FAST_INLINE void operator()(int64_t begin, int64_t end) const {
    const int64_t block = rows_in_cache<A>(width) * width;
    for (int64_t first = begin; first < end; first += block) {
      const int64_t last = std::min(end, first + block);
      for (int64_t lane = 0; lane < width; lane += kLanes) {
        Vec<A> c[Kernel::kCoefficients];
        GAN_FAST_UNROLL
        for (int k = 0; k < Kernel::kCoefficients; ++k) c[k] = load(coefficients + k * width + lane);
        map_run(kernel, first + lane, last, width, c);
      }
    }
  }
};

template <class A, class Kernel, class Finish>
void run_channels(const Reduce<Kernel, Finish>& pass, const Extent& extent, Coefficients<A>& coefficients,
                  int64_t first, int64_t last) {
  double sums[kMaxChannels * Kernel::kSums];
  isa::run(SumChannels<Kernel>{pass.kernel, extent, coefficients.data()}, first, last, static_cast<double*>(sums));
  for (int64_t c = first; c < last; ++c) pass.finish(c, sums + (c - first) * Kernel::kSums);
}

template <class A, class Kernel>
void run_channels(const Map<Kernel>& pass, const Extent& extent, Coefficients<A>& coefficients, int64_t first,
                  int64_t last) {
  isa::run(MapChannels<Kernel>{pass.kernel, extent, coefficients.data()}, first, last);
}

// A partition into chunks of whole rows that depends only on the shape.
struct Chunks {
  int64_t total, size, count;

  Chunks(const Extent& extent, int64_t width) : total(extent.N * extent.C * extent.S) {
    constexpr int64_t kMax = 1024;
    constexpr int64_t kMinRows = 16;  // so that a chunk's sums are few compared to its values, also for wide rows
    const int64_t rows = (total + width - 1) / width;
    size = std::max({kMinRows, kGrain / width, (rows + kMax - 1) / kMax}) * width;
    count = (total + size - 1) / size;
  }

  template <class F>
  void parallel(const F& f) const {
    torch::stable::parallel_for(0, count, 1, [&](int64_t from, int64_t to) {
      for (int64_t chunk = from; chunk < to; ++chunk) f(chunk, chunk * size, std::min(total, (chunk + 1) * size));
    });
  }
};

template <class A, class Kernel, class Finish>
void run_rows(const Reduce<Kernel, Finish>& pass, const Extent& extent, Coefficients<A>& coefficients) {
  const int64_t width = coefficients.width();
  const Chunks chunks(extent, width);
  const int64_t stride = Kernel::kSums * width;
  std::vector<double> partial(static_cast<size_t>(chunks.count * stride));
  const SumRows<Kernel> kernel{pass.kernel, width, coefficients.data()};
  chunks.parallel([&](int64_t chunk, int64_t begin, int64_t end) {
    isa::run(kernel, begin, end, partial.data() + chunk * stride);
  });
  for (int64_t chunk = 1; chunk < chunks.count; ++chunk) {
    for (int64_t j = 0; j < stride; ++j) partial[j] += partial[chunk * stride + j];
  }
  for (int64_t c = 0; c < extent.C; ++c) {
    double sums[Kernel::kSums] = {};
    for (int k = 0; k < Kernel::kSums; ++k) {
      for (int64_t lane = c; lane < width; lane += extent.C) sums[k] += partial[k * width + lane];
    }
    pass.finish(c, sums);
  }
  coefficients.repeat();
}

template <class A, class Kernel>
void run_rows(const Map<Kernel>& pass, const Extent& extent, Coefficients<A>& coefficients) {
  const MapRows<Kernel> kernel{pass.kernel, coefficients.width(), coefficients.data()};
  Chunks(extent, coefficients.width()).parallel([&](int64_t, int64_t begin, int64_t end) {
    isa::run(kernel, begin, end);
  });
}

}  // namespace detail

// Runs the passes in order on every channel of a tensor with at least one value.
template <class A, class... Passes>
void run_passes(const Extent& extent, Coefficients<A>& coefficients, const Passes&... passes) {
  if (extent.channels_last) {
    coefficients.repeat();
    (detail::run_rows(passes, extent, coefficients), ...);
    return;
  }
  const int64_t bytes = extent.per_channel() * static_cast<int64_t>(sizeof(A));
  const int64_t group = std::clamp<int64_t>(detail::kSecondLevelBytes / bytes, 1, detail::kMaxChannels);
  const int64_t grain = std::max<int64_t>(1, detail::kGrain / extent.per_channel());
  torch::stable::parallel_for(0, extent.C, grain, [&](int64_t from, int64_t to) {
    for (int64_t first = from; first < to; first += group) {
      const int64_t last = std::min(to, first + group);
      (detail::run_channels(passes, extent, coefficients, first, last), ...);
    }
  });
}

}  // namespace gan_fast
