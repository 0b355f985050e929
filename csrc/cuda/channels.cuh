// Passes over a dense tensor that is a set of channels: sums per channel, then maps with coefficients per channel; what
// csrc/cpu/channels.h is to a CPU.
//
// A channel, or with channels last the neighbouring ones that one access holds (a column), is a line of positions.
// Threads of a block take `lanes` columns side by side and share their positions out; blocks share out columns (tiles)
// and positions (chunks). A channel's sums are those of threads, blocks and chunks in an order that shape, alignment
// and GPU decide: two runs give the same bits.
#pragma once

#include "batch_norm_act.h"
#include "scalar.cuh"

namespace gan_fast::cuda {

constexpr int kThreads = 256;
// Columns of a block where one is an access of 16 bytes; kMostNeighbours where it is one channel. Whole lines of
// memory.
constexpr int kWideNeighbours = 8;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct ChannelGrid {
  int64_t channels, columns, positions;
  int64_t run;  // positions that follow each other at position_stride; then comes the next run, at run_stride
  int64_t position_stride, run_stride, column_stride;
  int64_t tiles, chunks, chunk_positions;
  int64_t step_in_run, step_offset, carry_offset;  // of a thread from one position to its next
  int64_t values;                                  // of one channel at a position
  int lanes, rows;                                 // threads along columns, along positions

  // For `width` values at a time and about so many blocks.
  static ChannelGrid of(const Shape& shape, int width, int64_t blocks) {
    constexpr int64_t kLeastPositions = 4;  // of a thread, or its coefficients and sums cost more than its values
    ChannelGrid g{};
    g.channels = shape.C;
    if (shape.channels_last) {
      g.columns = shape.C / width;
      g.positions = g.run = shape.N * shape.S;
      g.position_stride = shape.C;
      g.column_stride = width;
      g.values = 1;
      const int64_t most = width > 1 ? kWideNeighbours : kMostNeighbours;
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
    const int64_t most = ceil_div(g.positions, g.rows * kLeastPositions);
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

// The positions of one thread, and where their values are.
struct Walk {
  int64_t chunk, column;
  int64_t position, end;  // end at once for a thread without a column
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

// Coefficients of a later pass: arrays over channels, one behind the other.
template <class A, int kSlots>
__device__ void read(const A* coefficients, int index, int64_t channels, int64_t c, A* out) {
  const auto pack = *reinterpret_cast<const Pack<A, kSlots>*>(coefficients + index * channels + c);
#pragma unroll
  for (int j = 0; j < kSlots; ++j) out[j] = pack.at(j);
}

// A sum with what its additions round off.
template <class A>
struct Sum {
  A high = 0, low = 0;

  __device__ void add(A x) {
    const A sum = high + x;
    const A of_x = sum - high;
    low += (high - (sum - of_x)) + (x - of_x);
    high = sum;
  }

  // Beside an infinity, what was rounded off is NaN.
  __device__ double value() const {
    return std::isfinite(high) ? static_cast<double>(high) + low : static_cast<double>(high);
  }
};

// Adds up scratch[threadIdx.x] over the rows of a block's threads, `lanes` to a row; the sums are those of row 0, for
// all to read. kSlots sums at once, kThreads apart.
template <int kSlots>
__device__ void sum_rows(double* scratch, int lanes, const double* values) {
  const int thread = threadIdx.x;
  __syncthreads();  // those of the last call have been read
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

// Kernels are structs: T, kWidth values an access, kSlots channels in it (kWidth or 1), kInputs and `inputs` (null
// stands for zeros), kUnroll positions in flight, kBlocks a multiprocessor shall hold, a Channel's coefficients and
// `load`. Sums have kSums and `terms`, maps have kOutputs, `outputs` (null where nobody asked) and `apply`.

template <class Kernel>
struct Batch {
  Pack<typename Kernel::T, Kernel::kWidth> values[Kernel::kUnroll][Kernel::kInputs];
  int64_t offset[Kernel::kUnroll];
  bool valid[Kernel::kUnroll];

  // All loads before the first use of any: memory is far away.
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
    // Half types have fewer digits than what a handful of plain additions rounds off.
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

// Threads that finish sums: so many channels beside each other, and the others share their chunks out.
constexpr int kFinishChannels = 8;

inline int64_t finish_blocks(const ChannelGrid& g) { return ceil_div(g.channels, kFinishChannels); }

// finish(channel, sums) for every channel. One block a multiprocessor is enough: left to itself ptxas would rather
// spill.
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
