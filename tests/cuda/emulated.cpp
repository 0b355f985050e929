// Runs the kernels of csrc/cuda on a CPU, for tests/cuda_emulated.py.

#include "emulator.h"
//
#include "../../csrc/cuda/adversarial_loss.cuh"
#include "../../csrc/cuda/batch_norm_act.cuh"

using namespace gan_fast;
using namespace gan_fast::cuda;

namespace {

// dtype is an index into DTYPES of tests/cuda_emulated.py.
template <class F>
void for_dtype(int dtype, const F& f) {
  switch (dtype) {
    case 0:
      return f(double{});
    case 1:
      return f(float{});
    case 2:
      return f(__nv_bfloat16{});
    default:
      return f(__half{});
  }
}

struct Options {
  int dtype, multiprocessors;
  bool backwards, aligned, training, affine_wanted;
  int activation;
  double negative_slope, momentum, eps;
  Shape shape;

  emulator::Launch launch() const { return {multiprocessors, backwards}; }
  ActivationChoice choice() const { return {static_cast<Activation>(activation), negative_slope}; }
};

template <class P>
P* as(const void* p) {
  return static_cast<P*>(const_cast<void*>(p));
}

std::vector<double> partial(const Options& o, int sums) {
  return std::vector<double>(partial_size(o.shape, o.multiprocessors, sums), std::nan(""));
}

template <class A>
std::vector<A> channels(const Options& o, int count) {
  return std::vector<A>(o.shape.C * count, static_cast<A>(std::nan("")));
}

template <class T>
LossBatch<T> batch(const LossBatch<void>& b) {
  return {as<T>(b.logits), as<T>(b.grad), b.count, b.target};
}

}  // namespace

extern "C" {

void norm_forward(const Options* o, const void* x, void* y, void* mean, void* invstd, Parameter running_mean,
                  Parameter running_var, Parameter weight, Parameter bias) {
  for_dtype(o->dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = Compute<T>;
    auto sums = partial(*o, kMomentsSums);
    const ForwardArguments<T> arguments{o->shape,     as<T>(x),    as<T>(y),    as<A>(mean), as<A>(invstd),
                                        running_mean, running_var, weight,      bias,        o->training,
                                        o->momentum,  o->eps,      o->choice(), o->aligned,  sums.data()};
    run_forward(o->launch(), arguments);
  });
}

void norm_normalize(const Options* o, const void* x, void* y, Affine affine) {
  for_dtype(o->dtype, [&](auto tag) {
    using T = decltype(tag);
    run_normalize(o->launch(), NormalizeArguments<T>{o->shape, as<T>(x), as<T>(y), affine, o->choice(), o->aligned});
  });
}

void norm_backward(const Options* o, const void* grad, const void* x, Affine affine, void* grad_input,
                   Parameter grad_weight, Parameter grad_bias) {
  for_dtype(o->dtype, [&](auto tag) {
    using T = decltype(tag);
    auto sums = partial(*o, kBackwardSums);
    auto coefficients = channels<Compute<T>>(*o, kBackwardCoefficients);
    const BackwardArguments<T> arguments{
        o->shape,          as<T>(grad), as<T>(x),  affine,     o->training,         o->affine_wanted, o->choice(),
        as<T>(grad_input), grad_weight, grad_bias, o->aligned, coefficients.data(), sums.data()};
    run_backward(o->launch(), arguments);
  });
}

void norm_double_backward(const Options* o, const void* cotangent, Parameter cotangent_weight, Parameter cotangent_bias,
                          const void* grad, const void* x, Affine affine, void* grad_grad, void* grad_input,
                          Parameter grad_weight, Parameter grad_bias) {
  for_dtype(o->dtype, [&](auto tag) {
    using T = decltype(tag);
    auto sums = partial(*o, kDoubleSums);
    auto coefficients = channels<Compute<T>>(*o, kDoubleCoefficients);
    auto means = channels<double>(*o, kDoubleSums);
    const DoubleBackwardArguments<T> arguments{o->shape,    as<T>(cotangent), as<T>(grad),         as<T>(x),
                                               affine,      cotangent_weight, cotangent_bias,      o->training,
                                               o->choice(), as<T>(grad_grad), as<T>(grad_input),   grad_weight,
                                               grad_bias,   o->aligned,       coefficients.data(), means.data(),
                                               sums.data()};
    run_double_backward(o->launch(), arguments);
  });
}

void launch_empty_kernel(int64_t blocks, int threads) {
  emulator::Launch{1, false}(+[] {}, blocks, threads);
}

// Counts how often the threads of a grid visit each value.
void visits(const Shape* shape, int width, int64_t blocks, int32_t* counts) {
  const ChannelGrid g = ChannelGrid::of(*shape, width, blocks);
  const int slots = shape->channels_last ? width : 1;
  for (int64_t b = 0; b < g.blocks(); ++b) {
    for (int t = 0; t < kThreads; ++t) {
      blockIdx.x = static_cast<unsigned>(b);
      threadIdx.x = static_cast<unsigned>(t);
      for (Walk walk(g); walk.position < walk.end; walk.next(g)) {
        for (int v = 0; v < width; ++v) counts[walk.offset + v] += 1;
        const int64_t c = walk.column * slots;
        if ((shape->channels_last ? walk.offset % shape->C : walk.offset / shape->S % shape->C) != c) counts[0] = -1;
      }
    }
  }
}

void adversarial_loss(int dtype, bool backwards, bool forward, const void* grad_loss, LossBatch<void> first,
                      LossBatch<void> second, bool two, double scale, int kind, int relativistic, void* loss,
                      void* means) {
  for_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    const LossArguments<T> arguments{as<T>(grad_loss),
                                     batch<T>(first),
                                     batch<T>(second),
                                     two,
                                     scale,
                                     static_cast<Kind>(kind),
                                     static_cast<Relativistic>(relativistic),
                                     as<T>(loss),
                                     as<T>(means)};
    const emulator::Launch launch{1, backwards};
    if (forward) {
      run_loss_forward(launch, arguments);
    } else {
      run_loss_backward(launch, arguments);
    }
  });
}
}
