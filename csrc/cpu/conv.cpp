// im2col and col2im, which turn a convolution into a matrix product.
//
// A convolution reads a big map and writes a small map; a transposed convolution reads the small map and writes the big
// one. The kernel moves over the big map, and each of its positions is a pixel of the small map. A row of the matrix
// `columns` has the values of the big map under the kernel at one position: columns[(n, position), (channel, tap)].
// Taps have the order of the weight, so that the contiguous weight is the other matrix.
//
// A task handles a few channels of one sample in a tile: a padded copy of these channels of the big map that fits the
// cache. So the inner loops need no bounds checks, and are the same for every memory format.

#include <algorithm>
#include <cstring>
#include <vector>

#include "../common/checks.h"
#include "../common/dtype.h"
#include "copy.h"
#include "lanes.h"
#include "macros.h"
#include "sub_pixel.h"

namespace gan_fast {
namespace {

using Ints = std::vector<int64_t>;

constexpr int kMaxDims = 3;
constexpr int64_t kTileBytes = 65536;
constexpr int64_t kMaxTileChannels = 64;

// A spatial dim. 1-d and 2-d convolutions have leading dims of size one.
struct Dim {
  int64_t size = 1;       // of the big map
  int64_t positions = 1;  // size of the small map
  int64_t kernel = 1, stride = 1, padding = 0, dilation = 1;
  int64_t map_stride = 0;  // of the big map in memory

  // Size of the tile: the part of the padded big map that the kernel covers.
  int64_t extent() const { return (positions - 1) * stride + dilation * (kernel - 1) + 1; }
  // The range of the tile that is inside the map.
  int64_t first() const { return std::min(padding, extent()); }
  int64_t last() const { return std::clamp(padding + size, first(), extent()); }
};

struct PatchGrid {
  Dim dims[kMaxDims];
  int64_t N = 0, C = 0, batch_stride = 0, channel_stride = 0;

  int64_t positions() const { return dims[0].positions * dims[1].positions * dims[2].positions; }
  int64_t taps() const { return dims[0].kernel * dims[1].kernel * dims[2].kernel; }
  int64_t plane() const { return dims[0].extent() * dims[1].extent() * dims[2].extent(); }
  int64_t rows() const { return N * positions(); }
  int64_t columns() const { return C * taps(); }

  int64_t tile_channels(int64_t element_size) const {
    return std::clamp<int64_t>(kTileBytes / (plane() * element_size), 1, std::min(C, kMaxTileChannels));
  }
};

PatchGrid geometry_of(const char* op, const Tensor& map, const Ints& kernel_size, const Ints& stride,
                      const Ints& padding, const Ints& dilation, const Ints& positions) {
  const int64_t space = map.dim() - 2;
  STD_TORCH_CHECK(space >= 1 && space <= kMaxDims, op, ": expected 3 to 5 dimensions (N, C, ...), got ",
                  check::shape_of(map));
  PatchGrid g;
  g.N = map.size(0), g.C = map.size(1);
  g.batch_stride = map.stride(0), g.channel_stride = map.stride(1);
  const auto read = [&](const char* name, const Ints& values, int64_t least, auto member) {
    STD_TORCH_CHECK(static_cast<int64_t>(values.size()) == space, op, ": expected ", name, " length ", space, ", got ",
                    values.size());
    for (int64_t d = 0; d < space; ++d) {
      STD_TORCH_CHECK(values[d] >= least, op, ": expected ", name, " at least ", least, ", got ", values[d]);
      g.dims[kMaxDims - space + d].*member = values[d];
    }
  };
  read("kernel_size", kernel_size, 1, &Dim::kernel);
  read("stride", stride, 1, &Dim::stride);
  read("padding", padding, 0, &Dim::padding);
  read("dilation", dilation, 1, &Dim::dilation);
  read("positions", positions, 1, &Dim::positions);
  for (int64_t d = 0; d < space; ++d) {
    Dim& dim = g.dims[kMaxDims - space + d];
    dim.size = map.size(2 + d);
    dim.map_stride = map.stride(2 + d);
  }
  return g;
}

// Calls f(offset in the tile, offset in the map, length) for every run of values along the last dim that is in both.
template <class F>
GAN_FAST_INLINE void for_runs(const PatchGrid& g, const F& f) {
  const Dim& d0 = g.dims[0];
  const Dim& d1 = g.dims[1];
  const Dim& d2 = g.dims[2];
  const int64_t length = d2.last() - d2.first();
  if (length <= 0) return;
  for (int64_t i = d0.first(); i < d0.last(); ++i) {
    for (int64_t j = d1.first(); j < d1.last(); ++j) {
      f((i * d1.extent() + j) * d2.extent() + d2.first(),
        (i - d0.padding) * d0.map_stride + (j - d1.padding) * d1.map_stride + (d2.first() - d2.padding) * d2.map_stride,
        length);
    }
  }
}

// Calls f(row of the columns within the sample, offset in the tile) for every position.
template <class F>
GAN_FAST_INLINE void for_positions(const PatchGrid& g, const F& f) {
  const Dim& d0 = g.dims[0];
  const Dim& d1 = g.dims[1];
  const Dim& d2 = g.dims[2];
  int64_t row = 0;
  for (int64_t i = 0; i < d0.positions; ++i) {
    for (int64_t j = 0; j < d1.positions; ++j) {
      int64_t offset = (i * d0.stride * d1.extent() + j * d1.stride) * d2.extent();
      for (int64_t k = 0; k < d2.positions; ++k, ++row, offset += d2.stride) f(row, offset);
    }
  }
}

// The offset in the tile of each row of taps along the last dim, relative to the kernel's first tap.
std::vector<int64_t> tap_rows(const PatchGrid& g) {
  const Dim& d0 = g.dims[0];
  const Dim& d1 = g.dims[1];
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i < d0.kernel; ++i) {
    for (int64_t j = 0; j < d1.kernel; ++j) {
      offsets.push_back((i * d0.dilation * d1.extent() + j * d1.dilation) * g.dims[2].extent());
    }
  }
  return offsets;
}

// Calls f(sample, first channel, number of channels) in parallel for all tiles.
template <class F>
void for_tiles(const PatchGrid& g, int64_t tile, const F& f) {
  const int64_t tiles = (g.C + tile - 1) / tile;
  torch::stable::parallel_for(0, g.N * tiles, 1, [&](int64_t from, int64_t to) {
    for (int64_t task = from; task < to; ++task) {
      const int64_t first = task % tiles * tile;
      f(task / tiles, first, std::min(tile, g.C - first));
    }
  });
}

// Calls f(offset in the tile, its step, offset in the map, its step, count) for runs that together cover the
// intersection of tile and map. Runs are along the channels if these are adjacent in memory and many, else along the
// last dim.
template <class F>
GAN_FAST_INLINE void for_shared(const PatchGrid& g, int64_t channels, const F& f) {
  const int64_t plane = g.plane(), step = g.dims[2].map_stride;
  for_runs(g, [&](int64_t tile, int64_t map, int64_t length) {
    if (g.channel_stride == 1 && channels >= kLanes) {
      for (int64_t k = 0; k < length; ++k) f(tile + k, plane, map + k * step, 1, channels);
    } else {
      for (int64_t c = 0; c < channels; ++c) f(tile + c * plane, 1, map + c * g.channel_stride, step, length);
    }
  });
}

// kTaps: the number of adjacent taps along the last dim; 0 for any number with any dilation.
template <int kTaps, class T>
void gather_tile(const PatchGrid& g, const std::vector<int64_t>& tap_rows, int64_t channels, const T* tile, T* rows) {
  const int64_t plane = g.plane(), width = g.columns(), dilation = g.dims[2].dilation;
  const int64_t length = kTaps > 0 ? kTaps : g.dims[2].kernel;
  for_positions(g, [&](int64_t row, int64_t offset) {
    T* to = rows + row * width;
    for (int64_t c = 0; c < channels; ++c) {
      for (const int64_t tap_row : tap_rows) {
        const T* from = tile + c * plane + offset + tap_row;
        if constexpr (kTaps > 0) {
          std::memcpy(to, from, kTaps * sizeof(T));
        } else {
          for (int64_t k = 0; k < length; ++k) to[k] = from[k * dilation];
        }
        to += length;
      }
    }
  });
}

template <int kTaps, class A>
void scatter_tile(const PatchGrid& g, const std::vector<int64_t>& tap_rows, int64_t channels, const A* rows, A* tile) {
  const int64_t plane = g.plane(), width = g.columns(), dilation = g.dims[2].dilation;
  const int64_t length = kTaps > 0 ? kTaps : g.dims[2].kernel;
  for_positions(g, [&](int64_t row, int64_t offset) {
    const A* from = rows + row * width;
    for (int64_t c = 0; c < channels; ++c) {
      for (const int64_t tap_row : tap_rows) {
        A* to = tile + c * plane + offset + tap_row;
        if constexpr (kTaps == 4) {
          typedef A V __attribute__((vector_size(kTaps * sizeof(A))));
          V sum, more;
          std::memcpy(&sum, to, sizeof(V));
          std::memcpy(&more, from, sizeof(V));
          sum += more;
          std::memcpy(to, &sum, sizeof(V));
        } else if constexpr (kTaps > 0) {
          GAN_FAST_UNROLL
          for (int k = 0; k < kTaps; ++k) to[k] += from[k];
        } else {
          for (int64_t k = 0; k < length; ++k) to[k * dilation] += from[k];
        }
        from += length;
      }
    }
  });
}

// For four taps with stride 2: the last two values of a position are the first two of the next one. Their sum is formed
// in registers, since reading back a vector of which half was just written stalls.
template <class A>
void scatter_tile_of_pairs(const PatchGrid& g, const std::vector<int64_t>& tap_rows, int64_t channels, const A* rows,
                           A* tile) {
  typedef A V __attribute__((vector_size(4 * sizeof(A))));
  using I = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  typedef I Order __attribute__((vector_size(4 * sizeof(A))));
  const int64_t plane = g.plane(), width = g.columns();
  const Dim& d0 = g.dims[0];
  const Dim& d1 = g.dims[1];
  const int64_t positions = g.dims[2].positions;
  const auto load_four = [](const A* p) {
    V v;
    std::memcpy(&v, p, sizeof(V));
    return v;
  };
  for (int64_t i = 0; i < d0.positions; ++i) {
    for (int64_t j = 0; j < d1.positions; ++j, rows += positions * width) {
      A* line = tile + (i * d0.stride * d1.extent() + j * d1.stride) * g.dims[2].extent();
      const A* first = rows;
      for (int64_t c = 0; c < channels; ++c) {
        for (const int64_t tap_row : tap_rows) {
          const A* from = first;
          A* to = line + c * plane + tap_row;
          V before{};
          int64_t k = 0;
          for (; k + 2 <= positions; k += 2, from += 2 * width, to += 4) {
            const V left = load_four(from), right = load_four(from + width);
            const V sum = load_four(to) + __builtin_shuffle(before, left, Order{2, 3, 6, 7}) +
                          __builtin_shuffle(left, right, Order{0, 1, 4, 5});
            std::memcpy(to, &sum, sizeof(V));
            before = right;
          }
          if (k < positions) {
            const V left = load_four(from);
            to[0] = to[0] + before[2] + left[0];
            to[1] = to[1] + before[3] + left[1];
            to += 2;
            before = left;
          }
          to[0] += before[2];
          to[1] += before[3];
          first += 4;
        }
      }
    }
  }
}

// Calls f with the number of taps along the last dim as a constant, or 0 for the general case.
template <class F>
void for_taps(const PatchGrid& g, const F& f) {
  const Dim& d2 = g.dims[2];
  if (d2.dilation == 1) {
    if (d2.kernel == 3) return f(std::integral_constant<int, 3>{});
    if (d2.kernel == 4) return f(std::integral_constant<int, 4>{});
    if (d2.kernel == 5) return f(std::integral_constant<int, 5>{});
  }
  f(std::integral_constant<int, 0>{});
}

Tensor im2col(const Tensor& input, Ints kernel_size, Ints stride, Ints padding, Ints dilation, Ints positions) {
  constexpr const char* kOp = "im2col";
  check::cpu(kOp, "input", input);
  check::floating(kOp, "input", input);
  const PatchGrid g = geometry_of(kOp, input, kernel_size, stride, padding, dilation, positions);
  const Tensor columns = empty_strided(input, {g.rows(), g.columns()}, {g.columns(), 1}, input.scalar_type());
  if (!columns.numel()) return columns;
  for_dtype(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const T* map = static_cast<const T*>(input.const_data_ptr());
    T* out = static_cast<T*>(columns.mutable_data_ptr());
    const int64_t plane = g.plane(), tile_channels = g.tile_channels(sizeof(T));
    const auto offsets = tap_rows(g);
    for_tiles(g, tile_channels, [&](int64_t n, int64_t first, int64_t channels) {
      std::vector<T> tile(channels * plane);
      const T* from = map + n * g.batch_stride + first * g.channel_stride;
      for_shared(g, channels, [&](int64_t to, int64_t to_step, int64_t offset, int64_t step, int64_t count) {
        copy_run(from + offset, step, tile.data() + to, to_step, count);
      });
      T* rows = out + n * g.positions() * g.columns() + first * g.taps();
      for_taps(g, [&](auto taps) { gather_tile<taps>(g, offsets, channels, tile.data(), rows); });
    });
  });
  return columns;
}

void col2im(const Tensor& columns, const Tensor& output, const MaybeTensor& bias, Ints kernel_size, Ints stride,
            Ints padding, Ints dilation, Ints positions) {
  constexpr const char* kOp = "col2im";
  check::cpu(kOp, "columns", columns);
  check::cpu(kOp, "output", output);
  check::floating(kOp, "output", output);
  check::dtype(kOp, "columns", columns, compute_dtype(output.scalar_type()));
  const PatchGrid g = geometry_of(kOp, output, kernel_size, stride, padding, dilation, positions);
  STD_TORCH_CHECK(columns.dim() == 2 && columns.size(0) == g.rows() && columns.size(1) == g.columns(), kOp,
                  ": expected columns shape (", g.rows(), ", ", g.columns(), "), got ", check::shape_of(columns));
  STD_TORCH_CHECK(columns.numel() == 0 || is_dense(columns, MemoryFormat::Contiguous), kOp,
                  ": expected columns contiguous, got strides (", columns.stride(0), ", ", columns.stride(1), ")");
  if (bias) {
    check::cpu(kOp, "bias", *bias);
    check::length(kOp, "bias", *bias, g.C);
    check::dtype(kOp, "bias", *bias, output.scalar_type());
  }
  if (!output.numel()) return;
  for_dtype(output.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = Compute<T>;
    const A* in = static_cast<const A*>(columns.const_data_ptr());
    T* map = static_cast<T*>(output.mutable_data_ptr());
    const T* shift = bias ? static_cast<const T*>(bias->const_data_ptr()) : nullptr;
    const int64_t shift_stride = bias ? bias->stride(0) : 0;
    const int64_t plane = g.plane(), tile_channels = g.tile_channels(sizeof(A));
    const auto offsets = tap_rows(g);
    // Whether the tile covers the map. If not, some values of the map are under no kernel and get the bias below.
    bool covered = true;
    for (const Dim& dim : g.dims) covered = covered && dim.padding + dim.size <= dim.extent();
    for_tiles(g, tile_channels, [&](int64_t n, int64_t first, int64_t channels) {
      std::vector<A> tile(channels * plane);
      std::vector<A> start(channels);
      for (int64_t c = 0; c < channels; ++c) start[c] = shift ? static_cast<A>(shift[(first + c) * shift_stride]) : A{};
      if (shift) {
        for (int64_t c = 0; c < channels; ++c) std::fill_n(tile.data() + c * plane, plane, start[c]);
      }
      const A* rows = in + n * g.positions() * g.columns() + first * g.taps();
      for_taps(g, [&](auto taps) {
        if (taps == 4 && g.dims[2].stride == 2) {
          scatter_tile_of_pairs(g, offsets, channels, rows, tile.data());
        } else {
          scatter_tile<taps>(g, offsets, channels, rows, tile.data());
        }
      });
      T* to = map + n * g.batch_stride + first * g.channel_stride;
      if (!covered) {
        for (int64_t c = 0; c < channels; ++c) {
          for (int64_t i = 0; i < g.dims[0].size; ++i) {
            for (int64_t j = 0; j < g.dims[1].size; ++j) {
              for (int64_t k = 0; k < g.dims[2].size; ++k) {
                to[c * g.channel_stride + i * g.dims[0].map_stride + j * g.dims[1].map_stride +
                   k * g.dims[2].map_stride] = static_cast<T>(start[c]);
              }
            }
          }
        }
      }
      for_shared(g, channels, [&](int64_t from, int64_t from_step, int64_t offset, int64_t step, int64_t count) {
        copy_run(tile.data() + from, from_step, to + offset, step, count);
      });
    });
  });
}

}  // namespace
}  // namespace gan_fast

STABLE_TORCH_LIBRARY_IMPL(gan_fast, CPU, m) {
  m.impl("im2col", TORCH_BOX(&gan_fast::im2col));
  m.impl("col2im", TORCH_BOX(&gan_fast::col2im));
  m.impl("sub_pixel_conv", TORCH_BOX(&gan_fast::sub_pixel::conv));
}
