// Passes over the channels of a dense tensor on a GPU: sums per channel, and maps with coefficients per channel, as in
// csrc/cpu/channels.h.
//
// A column is one channel or, with channels last, the adjacent channels of one access. It has `positions` accesses. A
// block handles `lanes` adjacent columns (a tile) and a chunk of their positions; its threads are `rows` x `lanes`, and
// a thread handles every rows-th position of one column. Sums are added over threads and then over chunks, in an order
// that depends only on the shape, the alignment and the GPU. So results are deterministic.
#pragma once

#include "batch_norm_act.h"
#include "scalar.cuh"

namespace gan_fast::cuda {

constexpr int kThreads = 256;
// Adjacent columns of a block with channels last, if a column is an access of 16 bytes; kMaxNeighbors if it is one
// channel. Both are whole cache lines.
constexpr int kWideNeighbors = 8;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct ChannelGrid {
  int64_t channels, columns, positions;
  int64_t run;  // number of positions at position_stride from each other; runs are run_stride apart
  int64_t position_stride, run_stride, column_stride;
  int64_t tiles, chunks, chunk_positions;
  int64_t step_in_run, step_offset, carry_offset;  // from a thread's position to its next one
  int64_t values;                                  // values of one channel at a position
  int lanes, rows;                                 // threads along columns and along positions

  // A grid of about `blocks` blocks, for accesses of `width` values.
  static ChannelGrid of(const Shape& shape, int width, int64_t blocks) {
    constexpr int64_t kMinPositions = 4;  // per thread; with fewer, coefficients and sums cost more than the values
    ChannelGrid g{};
    g.channels = shape.C;
    if (shape.channels_last) {
      g.columns = shape.C / width;
      g.positions = g.run = shape.N * shape.S;
      g.position_stride = shape.C;
      g.column_stride = width;
      g.values = 1;
      const int64_t most = width > 1 ? kWideNeighbors : kMaxNeighbors;
      for (g.lanes = 1; g.lanes < most && g.lanes < g.columns;) g.lanes *= 2;
    } else {
      g.columns = shape.C;
      g.run = shape.S / width;
      g.positions = shape.N * g.run;
      g.position_stride = width;
      g.run_stride = shape.C * shape.S;
      g.column_stride = shape.S;
      g.values = width;
      g.lanes = 1;
    }
    g.rows = kThreads / g.lanes;
    g.tiles = ceil_div(g.columns, g.lanes);
    const int64_t most = ceil_div(g.positions, g.rows * kMinPositions);
    int64_t chunks = blocks / g.tiles;
    chunks = chunks < 1 ? 1 : chunks < most ? chunks : most;
    g.chunk_positions = ceil_div(ceil_div(g.positions, chunks), g.rows) * g.rows;
    g.chunks = ceil_div(g.positions, g.chunk_positions);
    g.step_in_run = g.rows % g.run;
    g.step_offset = g.rows / g.run * g.run_stride + g.step_in_run * g.position_stride;
    g.carry_offset = g.run_stride - g.run * g.position_stride;
    return g;
  }

  int64_t blocks() const { return tiles * chunks; }

  __host__ __device__ int64_t last_position(int64_t chunk) const {
    const int64_t end = (chunk + 1) * chunk_positions;
    return end < positions ? end : positions;
  }

  // Values of one channel in a chunk.
  __host__ __device__ int64_t count(int64_t chunk) const {
    return (last_position(chunk) - chunk * chunk_positions) * values;
  }
};

// Iterates over the positions of one thread.
struct Walk {
  int64_t chunk, column;
  int64_t position, end;  // equal for a thread without a column
  int64_t in_run, offset;
  int lane, row;

  __device__ explicit Walk(const ChannelGrid& g) {
    const int64_t block = blockIdx.x;
    chunk = block / g.tiles;
    lane = threadIdx.x % g.lanes;
    row = threadIdx.x / g.lanes;
    column = block % g.tiles * g.lanes + lane;
    position = chunk * g.chunk_positions + row;
    end = column < g.columns ? g.last_position(chunk) : position;
    in_run = position % g.run;
    offset = position / g.run * g.run_stride + in_run * g.position_stride + column * g.column_stride;
  }

  __device__ void next(const ChannelGrid& g) {
    position += g.rows;
    in_run += g.step_in_run;
    offset += g.step_offset;
    if (in_run >= g.run) {
      in_run -= g.run;
      offset += g.carry_offset;
    }
  }
};

template <class T>
__device__ Compute<T> read(const Parameter& p, int64_t c, Compute<T> otherwise) {
  if (!p.data) return otherwise;
  return p.wide ? static_cast<const Compute<T>*>(p.data)[c * p.stride]
                : widen(static_cast<const T*>(p.data)[c * p.stride]);
}

template <class T>
__device__ void write(const Parameter& p, int64_t c, double value) {
  using A = Compute<T>;
  if (!p.data) return;
  if (p.wide) {
    static_cast<A*>(p.data)[c * p.stride] = static_cast<A>(value);
  } else {
    static_cast<T*>(p.data)[c * p.stride] = narrow<T>(static_cast<A>(value));
  }
}

template <class T, int kSlots>
__device__ void read(const Parameter& p, int64_t c, Compute<T> otherwise, Compute<T>* out) {
  using A = Compute<T>;
  if (kSlots > 1 && p.packed) {
    const auto pack = *reinterpret_cast<const Pack<A, kSlots>*>(static_cast<const A*>(p.data) + c);
#pragma unroll
    for (int j = 0; j < kSlots; ++j) out[j] = pack.at(j);
  } else {
#pragma unroll
    for (int j = 0; j < kSlots; ++j) out[j] = read<T>(p, c + j, otherwise);
  }
}

// Reads coefficients of a map pass, which are arrays over channels, one after the other.
template <class A, int kSlots>
__device__ void read(const A* coefficients, int index, int64_t channels, int64_t c, A* out) {
  const auto pack = *reinterpret_cast<const Pack<A, kSlots>*>(coefficients + index * channels + c);
#pragma unroll
  for (int j = 0; j < kSlots; ++j) out[j] = pack.at(j);
}

// A compensated sum: `low` collects the rounding errors of `high`.
template <class A>
struct Sum {
  A high = 0, low = 0;

  __device__ void add(A x) {
    const A sum = high + x;
    const A of_x = sum - high;
    low += (high - (sum - of_x)) + (x - of_x);
    high = sum;
  }

  // If `high` is infinite, `low` is NaN.
  __device__ double value() const {
    return std::isfinite(high) ? static_cast<double>(high) + low : static_cast<double>(high);
  }
};

// Sums `values` over the rows of a block's threads, which have `lanes` threads each. All threads can then read the
// sums: sum j of lane l is scratch[j * kThreads + l].
template <int kSlots>
__device__ void sum_rows(double* scratch, int lanes, const double* values) {
  const int thread = threadIdx.x;
  __syncthreads();  // all threads have read the sums of the last call
#pragma unroll
  for (int j = 0; j < kSlots; ++j) scratch[j * kThreads + thread] = values[j];
  for (int half = kThreads / 2; half >= lanes; half /= 2) {
    __syncthreads();
    if (thread < half) {
#pragma unroll
      for (int j = 0; j < kSlots; ++j) scratch[j * kThreads + thread] += scratch[j * kThreads + thread + half];
    }
  }
  __syncthreads();
}

// A Kernel is a struct with T, kWidth values per access, kSlots channels per access (kWidth or 1), kInputs pointers in
// `inputs` (null means zeros), kUnroll positions in flight per thread, kBlocks blocks per multiprocessor, and a type
// Channel for the coefficients, which `load` reads. A sum pass has kSums and `terms`; a map pass has kOutputs, `apply`
// and `outputs` (null if not needed).

// The inputs at kUnroll positions of a thread.
template <class Kernel>
struct Batch {
  Pack<typename Kernel::T, Kernel::kWidth> values[Kernel::kUnroll][Kernel::kInputs];
  int64_t offset[Kernel::kUnroll];
  bool valid[Kernel::kUnroll];

  // Issues all loads before the first use of any, to hide the latency of memory.
  __device__ void load(const Kernel& kernel, const ChannelGrid& g, Walk& walk) {
    using P = Pack<typename Kernel::T, Kernel::kWidth>;
#pragma unroll
    for (int u = 0; u < Kernel::kUnroll; ++u) {
      valid[u] = walk.position < walk.end;
      offset[u] = walk.offset;
#pragma unroll
      for (int k = 0; k < Kernel::kInputs; ++k) {
        values[u][k] = P{};
        if (valid[u] && kernel.inputs[k]) values[u][k] = *reinterpret_cast<const P*>(kernel.inputs[k] + walk.offset);
      }
      walk.next(g);
    }
  }

  __device__ void at(int u, int v, Compute<typename Kernel::T>* out) const {
#pragma unroll
    for (int k = 0; k < Kernel::kInputs; ++k) out[k] = values[u][k].at(v);
  }
};

// partial[k][chunk][channel] = the sum of terms[k].
template <class Kernel>
__global__ void __launch_bounds__(kThreads, Kernel::kBlocks)
    sum_kernel(const Kernel kernel, const ChannelGrid g, double* partial) {
  using A = Compute<typename Kernel::T>;
  constexpr int kSlots = Kernel::kSlots, kSums = Kernel::kSums;
  __shared__ double scratch[kSlots * kThreads];
  Walk walk(g);
  const int64_t c = walk.column * kSlots;
  typename Kernel::Channel channel{};
  if (walk.position < walk.end) kernel.load(channel, g, c);
  Sum<A> sums[kSums][kSlots];
  while (walk.position < walk.end) {
    Batch<Kernel> batch;
    batch.load(kernel, g, walk);
    // For half types a few plain additions come first: their rounding error is far below the precision of the inputs.
    constexpr bool kFewFirst = sizeof(typename Kernel::T) == 2;
    A few[kSums][kSlots] = {};
#pragma unroll
    for (int u = 0; u < Kernel::kUnroll; ++u) {
      if (!batch.valid[u]) continue;
#pragma unroll
      for (int v = 0; v < Kernel::kWidth; ++v) {
        A values[Kernel::kInputs], terms[kSums];
        batch.at(u, v, values);
        kernel.terms(channel, v % kSlots, values, terms);
#pragma unroll
        for (int k = 0; k < kSums; ++k) {
          if constexpr (kFewFirst) {
            few[k][v % kSlots] += terms[k];
          } else {
            sums[k][v % kSlots].add(terms[k]);
          }
        }
      }
    }
    if constexpr (kFewFirst) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) {
#pragma unroll
        for (int j = 0; j < kSlots; ++j) sums[k][j].add(few[k][j]);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    double values[kSlots];
#pragma unroll
    for (int j = 0; j < kSlots; ++j) values[j] = sums[k][j].value();
    sum_rows<kSlots>(scratch, g.lanes, values);
    if (walk.row == 0 && walk.column < g.columns) {
#pragma unroll
      for (int j = 0; j < kSlots; ++j) {
        partial[(k * g.chunks + walk.chunk) * g.channels + c + j] = scratch[j * kThreads + walk.lane];
      }
    }
  }
}

template <class Kernel>
__global__ void __launch_bounds__(kThreads, Kernel::kBlocks) map_kernel(const Kernel kernel, const ChannelGrid g) {
  using T = typename Kernel::T;
  using A = Compute<T>;
  Walk walk(g);
  typename Kernel::Channel channel{};
  if (walk.position < walk.end) kernel.load(channel, g, walk.column * Kernel::kSlots);
  while (walk.position < walk.end) {
    Batch<Kernel> batch;
    batch.load(kernel, g, walk);
#pragma unroll
    for (int u = 0; u < Kernel::kUnroll; ++u) {
      if (!batch.valid[u]) continue;
      Pack<T, Kernel::kWidth> results[Kernel::kOutputs];
#pragma unroll
      for (int v = 0; v < Kernel::kWidth; ++v) {
        A values[Kernel::kInputs], out[Kernel::kOutputs];
        batch.at(u, v, values);
        kernel.apply(channel, v % Kernel::kSlots, values, out);
#pragma unroll
        for (int k = 0; k < Kernel::kOutputs; ++k) results[k].set(v, out[k]);
      }
#pragma unroll
      for (int k = 0; k < Kernel::kOutputs; ++k) {
        if (!kernel.outputs[k]) continue;
        *reinterpret_cast<Pack<T, Kernel::kWidth>*>(kernel.outputs[k] + batch.offset[u]) = results[k];
      }
    }
  }
}

// Channels of a block that finishes sums. Its other threads share the chunks of these channels.
constexpr int kFinishChannels = 8;

inline int64_t finish_blocks(const ChannelGrid& g) { return ceil_div(g.channels, kFinishChannels); }

// Calls finish(channel, sums) for every channel. The launch bound of one block per multiprocessor keeps ptxas from
// spilling registers.
template <class Finish>
__global__ void __launch_bounds__(kThreads, 1)
    finish_kernel(const Finish finish, const ChannelGrid g, const double* partial) {
  __shared__ double scratch[kThreads];
  const int lane = threadIdx.x % kFinishChannels;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kFinishChannels + lane;
  double sums[Finish::kSums] = {};
#pragma unroll
  for (int k = 0; k < Finish::kSums; ++k) {
    if (c < g.channels && partial) {
      for (int64_t chunk = threadIdx.x / kFinishChannels; chunk < g.chunks; chunk += kThreads / kFinishChannels) {
        sums[k] += partial[(k * g.chunks + chunk) * g.channels + c];
      }
    }
    sum_rows<1>(scratch, kFinishChannels, &sums[k]);
    sums[k] = scratch[lane];
  }
  if (threadIdx.x < kFinishChannels && c < g.channels) finish(c, sums);
}

}  // namespace gan_fast::cuda
