// sub_pixel_conv: a transposed convolution with kernel 4, stride 2 and few output channels, as in the last layer of a
// generator.
//
// Along each dim the output at 2 q + r sums two of the four taps, those with parity (r + padding) % 2, at the inputs
// q + d and q + d - 1, where d = (r + padding) / 2. So each of the four phases of the output is a 2x2 convolution of
// the input, and no zeros are multiplied. A vector holds sixteen outputs of one phase and channel. It stays in a
// register while all input channels are summed. Each loaded input is used for all phases and channels.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "../common/checks.h"
#include "../common/dtype.h"
#include "copy.h"
#include "isa.h"
#include "lanes.h"
#include "macros.h"

namespace gan_fast::sub_pixel {

constexpr int kWide = 16;
using Wide = float __attribute__((vector_size(kWide * sizeof(float))));
using WideOrder = int32_t __attribute__((vector_size(kWide * sizeof(float))));

using Four = float __attribute__((vector_size(16)));
using FourOrder = int32_t __attribute__((vector_size(16)));

constexpr int64_t kMaxChannels = 4;
// Padding of a line for shifted loads, which reach beyond its last vector.
constexpr int64_t kMargin = kWide;
// Number of buffered input rows: those that a pair of output rows needs.
constexpr int64_t kRing = 3;

// The arguments for one row of the output. depth: number of input channels.
struct RowOfPhases {
  std::array<const float*, 2> lines;    // two input rows, each (depth, line_width); null outside the input
  std::array<const float*, 2> weights;  // for the two taps along the height, each (depth, channels, 4)
  const float* bias;                    // (channels,)
  int64_t depth, line_width;
  int64_t count;  // number of values of q
  float* out;     // (channels, 2 count)
};

template <int kChannels, bool kOddPadding>
struct Phases {
  template <isa::Level kLevel>
  struct Kernel {
    const RowOfPhases& row;

    GAN_FAST_INLINE void operator()() const {
      // With two vectors at a time the sums and operands fill AVX-512's 32 registers.
      constexpr int kVectors = kLevel == isa::Level::avx512 ? 2 : 1;
      int64_t q = 0;
      for (; q + kVectors * kWide <= row.count; q += kVectors * kWide) vectors<kVectors>(q);
      for (; q < row.count; q += kWide) vectors<1>(q);
    }

    template <int kVectors>
    GAN_FAST_INLINE void vectors(int64_t q) const {
      constexpr int kShifts = kOddPadding ? 3 : 2;
      constexpr int64_t kChain = 32;
      Wide sums[kChannels][2][kVectors];
      GAN_FAST_UNROLL
      for (int c = 0; c < kChannels; ++c) {
        GAN_FAST_UNROLL
        for (int v = 0; v < kVectors; ++v) sums[c][0][v] = sums[c][1][v] = all(row.bias[c]);
      }
      for (int line = 0; line < 2; ++line) {
        if (!row.lines[line]) continue;
        const float* x = row.lines[line] + q;
        const float* w = row.weights[line];
        for (int64_t first = 0; first < row.depth; first += kChain) {
          // A partial sum of kChain channels: shorter chains of additions accumulate less rounding error.
          Wide part[kChannels][2][kVectors] = {};
          const int64_t last = std::min(row.depth, first + kChain);
          for (int64_t k = first; k < last; ++k, x += row.line_width, w += kChannels * 4) {
            Wide values[kShifts][kVectors];
            GAN_FAST_UNROLL
            for (int s = 0; s < kShifts; ++s) {
              GAN_FAST_UNROLL
              for (int v = 0; v < kVectors; ++v) values[s][v] = load_once(x + s + v * kWide);
            }
            GAN_FAST_UNROLL
            for (int c = 0; c < kChannels; ++c) {
              GAN_FAST_UNROLL
              for (int r = 0; r < 2; ++r) {
                GAN_FAST_UNROLL
                for (int m = 0; m < 2; ++m) {
                  const Wide weight = all(w[c * 4 + (kOddPadding ? 1 - r : r) + 2 * m]);
                  GAN_FAST_UNROLL
                  for (int v = 0; v < kVectors; ++v) {
                    part[c][r][v] = multiply_add(weight, values[(kOddPadding ? r : 0) + 1 - m][v], part[c][r][v]);
                  }
                }
              }
            }
          }
          GAN_FAST_UNROLL
          for (int c = 0; c < kChannels; ++c) {
            GAN_FAST_UNROLL
            for (int v = 0; v < kVectors; ++v) {
              sums[c][0][v] += part[c][0][v];
              sums[c][1][v] += part[c][1][v];
            }
          }
        }
      }
      GAN_FAST_UNROLL
      for (int c = 0; c < kChannels; ++c) {
        GAN_FAST_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          float* to = row.out + 2 * (c * row.count + q + v * kWide);
          const Wide even = sums[c][0][v], odd = sums[c][1][v];
          const Wide low =
              __builtin_shuffle(even, odd, WideOrder{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
          const Wide high =
              __builtin_shuffle(even, odd, WideOrder{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
          std::memcpy(to, &low, sizeof(Wide));
          std::memcpy(to + kWide, &high, sizeof(Wide));
        }
      }
    }

    // x in all lanes. Adding it to zero as an integer is exact, so the compiler can emit a single broadcast
    // instruction.
    static GAN_FAST_INLINE Wide all(float x) { return bit_cast<Wide>(WideOrder{} + bit_cast<int32_t>(x)); }

    // Prevents the compiler from repeating the load at each use: these loads may cross cache lines.
    static GAN_FAST_INLINE Wide load_once(const float* from) {
      Wide value;
      std::memcpy(&value, from, sizeof(Wide));
#if defined(__x86_64__)
      if constexpr (kLevel == isa::Level::avx512) asm("" : "+v"(value));
#endif
      return value;
    }

    // a * b + c. With AVX-512 it is one fused instruction, which -ffp-contract=off requires to be written out. Other
    // instruction sets have too few registers for this kernel, and gan_fast/ops/conv_kernels.py does not use it there.
    static GAN_FAST_INLINE Wide multiply_add(Wide a, Wide b, Wide c) {
      if constexpr (kLevel != isa::Level::avx512) return a * b + c;
      Wide result;
      for (int lane = 0; lane < kWide; ++lane) result[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
      return result;
    }
  };
};

inline void run_row(int64_t channels, bool odd_padding, const RowOfPhases& row) {
  const auto of = [&](auto kChannels) {
    if (odd_padding) {
      isa::run_each<Phases<kChannels, true>::template Kernel>(row);
    } else {
      isa::run_each<Phases<kChannels, false>::template Kernel>(row);
    }
  };
  switch (channels) {
    case 1:
      return of(std::integral_constant<int, 1>{});
    case 2:
      return of(std::integral_constant<int, 2>{});
    case 3:
      return of(std::integral_constant<int, 3>{});
    default:
      return of(std::integral_constant<int, kMaxChannels>{});
  }
}

// Transposes: to[k * to_step + i] = from[i * from_step + k]. It works on squares whose side is the length of a vector.
template <isa::Level kLevel>
struct Transpose {
  static constexpr int kSide = kLevel == isa::Level::avx512 ? kWide : 4;
  using V = std::conditional_t<kSide == kWide, Wide, Four>;
  using Order = std::conditional_t<kSide == kWide, WideOrder, FourOrder>;

  const float* from;
  int64_t from_step;
  float* to;
  int64_t to_step, rows, columns;

  GAN_FAST_INLINE void operator()() const {
    int64_t i = 0;
    for (; i + kSide <= rows; i += kSide) {
      int64_t k = 0;
      for (; k + kSide <= columns; k += kSide) square(from + i * from_step + k, to + k * to_step + i);
      one_by_one(i, i + kSide, k);
    }
    one_by_one(i, rows, 0);
  }

  GAN_FAST_INLINE void one_by_one(int64_t first_row, int64_t last_row, int64_t first_column) const {
    for (int64_t k = first_column; k < columns; ++k) {
      for (int64_t i = first_row; i < last_row; ++i) to[k * to_step + i] = from[i * from_step + k];
    }
  }

  // Transposes by exchanging the off-diagonal squares of side 1, 2, 4 and so on within squares of twice the side.
  GAN_FAST_INLINE void square(const float* in, float* out) const {
    V v[kSide];
    GAN_FAST_UNROLL
    for (int i = 0; i < kSide; ++i) std::memcpy(&v[i], in + i * from_step, sizeof(V));
    exchange<1>(v);
    exchange<2>(v);
    if constexpr (kSide == kWide) {
      exchange<4>(v);
      exchange<8>(v);
    }
    GAN_FAST_UNROLL
    for (int i = 0; i < kSide; ++i) std::memcpy(out + i * to_step, &v[i], sizeof(V));
  }

  template <int kStep>
  static GAN_FAST_INLINE void exchange(V (&v)[kSide]) {
    Order low, high;
    GAN_FAST_UNROLL
    for (int j = 0; j < kSide; ++j) {
      low[j] = j & kStep ? kSide + j - kStep : j;
      high[j] = j & kStep ? kSide + j : j + kStep;
    }
    GAN_FAST_UNROLL
    for (int i = 0; i < kSide; ++i) {
      if (i & kStep) continue;
      const V a = v[i], b = v[i + kStep];
      v[i] = __builtin_shuffle(a, b, low);
      v[i + kStep] = __builtin_shuffle(a, b, high);
    }
  }
};

// Prefetches the values that the next read_line reads.
template <class T>
void prefetch_line(const T* from, int64_t step, int64_t channel_step, int64_t count, int64_t depth) {
  constexpr int64_t kPerLine = 64 / sizeof(T);
  const bool by_channels = channel_step == 1;
  const int64_t runs = by_channels ? count : depth, length = by_channels ? depth : count;
  const int64_t run_step = by_channels ? step : channel_step, value_step = by_channels ? 1 : step;
  for (int64_t i = 0; i < runs; ++i) {
    for (int64_t j = 0; j < length; j += kPerLine) __builtin_prefetch(from + i * run_step + j * value_step);
  }
}

// Copies a strided row (count, depth) of the input to lines (depth, count), `line_width` apart.
template <class T>
void read_line(const T* from, int64_t step, int64_t channel_step, int64_t count, int64_t depth, float* to,
               int64_t line_width) {
  if constexpr (std::is_same_v<T, float>) {
    if (channel_step == 1 && step != 1) return isa::run_each<Transpose>(from, step, to, line_width, count, depth);
  }
  for (int64_t k = 0; k < depth; ++k) copy_run(from + k * channel_step, step, to + k * line_width, 1, count);
}

inline void conv(const Tensor& input, const Tensor& weight, const Tensor& output, const MaybeTensor& bias,
                 std::vector<int64_t> padding) {
  constexpr const char* kOp = "sub_pixel_conv";
  check::cpu(kOp, "input", input);
  check::cpu(kOp, "weight", weight);
  check::cpu(kOp, "output", output);
  check::floating(kOp, "input", input);
  STD_TORCH_CHECK(input.scalar_type() != ScalarType::Double, kOp,
                  ": expected input dtype float32, bfloat16 or float16, got Double");
  check::dtype(kOp, "weight", weight, input.scalar_type());
  check::dtype(kOp, "output", output, input.scalar_type());
  STD_TORCH_CHECK(input.dim() == 4, kOp, ": expected input dimensions 4, got ", check::shape_of(input));
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(0) == input.size(1) && weight.size(1) >= 1 &&
                      weight.size(1) <= kMaxChannels && weight.size(2) == 4 && weight.size(3) == 4,
                  kOp, ": expected weight shape (", input.size(1), ", 1 to ", kMaxChannels, ", 4, 4), got ",
                  check::shape_of(weight));
  STD_TORCH_CHECK(output.dim() == 4 && output.size(0) == input.size(0) && output.size(1) == weight.size(1), kOp,
                  ": expected output shape (", input.size(0), ", ", weight.size(1), ", ...), got ",
                  check::shape_of(output));
  STD_TORCH_CHECK(padding.size() == 2, kOp, ": expected padding two numbers, got ", padding.size(), " of them");
  for (int64_t d = 0; d < 2; ++d) {
    // With more padding there is no output.
    STD_TORCH_CHECK(padding[d] >= 0 && padding[d] <= input.size(2 + d) + 2, kOp, ": expected padding between 0 and ",
                    input.size(2 + d) + 2, ", got ", padding[d]);
  }
  const int64_t N = input.size(0), depth = input.size(1), H = input.size(2), W = input.size(3);
  const int64_t C = output.size(1), H_out = output.size(2), W_out = output.size(3);
  if (bias) {
    check::cpu(kOp, "bias", *bias);
    check::length(kOp, "bias", *bias, C);
    check::dtype(kOp, "bias", *bias, input.scalar_type());
  }
  if (!output.numel()) return;

  // Index q of a line holds the input at q + padding / 2 - 1 along the width.
  const int64_t count = ((W_out + 1) / 2 + kWide - 1) / kWide * kWide, line_width = count + kMargin;
  const int64_t left = padding[1] / 2 - 1;
  const int64_t first_x = std::max<int64_t>(0, left),
                last_x = std::clamp(left + line_width, first_x, std::max(first_x, W));

  const int64_t in_n = input.stride(0), in_c = input.stride(1), in_y = input.stride(2), in_x = input.stride(3);
  const int64_t out_n = output.stride(0), out_c = output.stride(1), out_y = output.stride(2), out_x = output.stride(3);

  for_dtype_below_double(input.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const T* from = static_cast<const T*>(input.const_data_ptr());
    T* to = static_cast<T*>(output.mutable_data_ptr());
    float start[kMaxChannels] = {};
    if (bias) {
      const T* values = static_cast<const T*>(bias->const_data_ptr());
      for (int64_t c = 0; c < C; ++c) start[c] = static_cast<float>(values[c * bias->stride(0)]);
    }
    // Packed weights: (4 taps along the height, depth, C, 4 taps along the width).
    std::vector<float> weights(4 * depth * C * 4);
    const T* taps = static_cast<const T*>(weight.const_data_ptr());
    const int64_t steps[] = {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)};
    float* packed = weights.data();
    for (int64_t i = 0; i < 4; ++i) {
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t c = 0; c < C; ++c) {
          for (int64_t j = 0; j < 4; ++j) {
            *packed++ = static_cast<float>(taps[k * steps[0] + c * steps[1] + i * steps[2] + j * steps[3]]);
          }
        }
      }
    }
    // A task is a band of pairs of output rows, so that a small batch keeps all threads busy. Each band reads up to two
    // input rows more than it would as a part of a larger band.
    constexpr int64_t kTasks = 64;
    const int64_t pairs = (H_out + 1) / 2;
    const int64_t bands = std::clamp<int64_t>(kTasks / N, 1, std::max<int64_t>(1, pairs / 8));
    torch::stable::parallel_for(0, N * bands, 1, [&](int64_t first_task, int64_t last_task) {
      std::vector<Wide> ring(kRing * depth * line_width / kWide), out(C * 2 * count / kWide);
      float* lines = reinterpret_cast<float*>(ring.data());
      float* values = reinterpret_cast<float*>(out.data());
      for (int64_t task = first_task; task < last_task; ++task) {
        const int64_t n = task / bands, band = task % bands;
        const int64_t first_pair = pairs * band / bands, last_pair = pairs * (band + 1) / bands;
        int64_t next_y = std::max<int64_t>(0, first_pair + padding[0] / 2 - 1);
        const auto line_of = [&](int64_t y) -> const float* {
          return y < 0 || y >= H ? nullptr : lines + y % kRing * depth * line_width;
        };
        for (int64_t pair = first_pair; pair < last_pair; ++pair) {
          const T* row = from + n * in_n + next_y * in_y + first_x * in_x;
          for (; next_y < std::min(H, pair + (padding[0] + 1) / 2 + 1); ++next_y, row += in_y) {
            float* line = lines + next_y % kRing * depth * line_width + first_x - left;
            read_line(row, in_x, in_c, last_x - first_x, depth, line, line_width);
          }
          if (next_y < H) prefetch_line(row, in_x, in_c, last_x - first_x, depth);
          for (int64_t r = 0; r < 2 && 2 * pair + r < H_out; ++r) {
            const int64_t parity = (r + padding[0]) % 2, y = pair + (r + padding[0]) / 2;
            const float* of_parity = weights.data() + parity * depth * C * 4;
            run_row(C, padding[1] % 2,
                    {{line_of(y), line_of(y - 1)},
                     {of_parity, of_parity + 2 * depth * C * 4},
                     start,
                     depth,
                     line_width,
                     count,
                     values});
            for (int64_t c = 0; c < C; ++c) {
              T* row_of_output = to + n * out_n + c * out_c + (2 * pair + r) * out_y;
              copy_run(values + c * 2 * count, 1, row_of_output, out_x, W_out);
            }
          }
        }
      }
    });
  });
}

}  // namespace gan_fast::sub_pixel
