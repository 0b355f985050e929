// Adversarial losses of one or two batches of logits, with their gradients, the means of D's answers, and its accuracy.

#include "../common/adversarial_loss.h"

#include <algorithm>

#include "../common/dtype.h"
#include "isa.h"
#include "lanes.h"
#include "math.h"

namespace gan_fast {
namespace {

using namespace adversarial;

// Logits are summed in blocks of this size, and the blocks are added in order. So results do not depend on the number
// of threads.
constexpr int64_t kBlock = 2048;
// Blocks per thread: with fewer, another thread costs more than it saves. ATen's threshold is 32768 values
// (at::internal::GRAIN_SIZE) of a cheap op; a logit takes about thirty times as long.
constexpr int64_t kGrain = 4;

// Sums over a block or a batch.
struct Sums {
  double logits = 0;
  double loss = 0;
  double slopes = 0;         // phi'
  double answers = 0;        // D(x): sigmoid(x) for minimax if not relativistic, else x
  double other_answers = 0;  // of the paired logits
  double correct = 0;        // number of logits on the correct side of the threshold

  void operator+=(const Sums& s) {
    logits += s.logits;
    loss += s.loss;
    slopes += s.slopes;
    answers += s.answers;
    other_answers += s.other_answers;
    correct += s.correct;
  }
};

GAN_FAST_INLINE F64 exp_nonpositive(F64 x) { return math::exp_nonpositive<F64>(x); }
GAN_FAST_INLINE F32 exp_nonpositive(F32 x) { return math::exp_nonpositive(x); }
GAN_FAST_INLINE F64 log1p_unit(F64 x) { return math::log1p_unit<F64>(x); }
GAN_FAST_INLINE F32 log1p_unit(F32 x) { return math::log1p_unit(x); }

// phi and its derivative. minimax is computed in V, the logits' precision or float for half types. The kinds without an
// exponential are computed in double, since their arguments may cancel.
template <class V, Kind kKind>
class Phi {
  using A = std::remove_reference_t<decltype(V{}[0])>;

 public:
  explicit Phi(double target) : target_(target), rest_(1 - target) {}

  // exp(-|u|), used by the value, slope and probability of minimax.
  GAN_FAST_INLINE V exponential(F64 u) const {
    if constexpr (kKind != Kind::minimax) return V{};
    return exp_nonpositive(narrow<V>(u < 0.0 ? u : -u));
  }

  GAN_FAST_INLINE F64 value(F64 u, V e) const {
    const F64 zero{};
    if constexpr (kKind == Kind::minimax) {  // this form gives the same infinities and NaN as ATen
      const V x = narrow<V>(u), none{};
      return widen(static_cast<A>(rest_) * x + ((x < none ? -x : none) + log1p_unit(e)));
    } else if constexpr (kKind == Kind::hinge) {
      // Skip a side with weight 0, since 0 times infinity is NaN.
      const F64 below = 1.0 - u, above = 1.0 + u;
      const F64 real = target_ == 0 ? zero : target_ * (below < zero ? zero : below);
      return rest_ == 0 ? real : real + rest_ * (above < zero ? zero : above);
    } else if constexpr (kKind == Kind::wasserstein) {
      return (rest_ - target_) * u;
    } else {
      const F64 distance = u - target_;
      return distance * distance * 0.5;
    }
  }

  GAN_FAST_INLINE F64 slope(F64 u, V e) const {
    const F64 zero{};
    if constexpr (kKind == Kind::minimax) {  // sigmoid(u) - target, without cancellation if the target is 0 or 1
      const A target = static_cast<A>(target_), rest = static_cast<A>(rest_);
      return widen((narrow<V>(u) < V{} ? e * rest - target : rest - e * target) / (A{1} + e));
    } else if constexpr (kKind == Kind::hinge) {  // as in ATen: 0 at a kink, and NaN counts as inside the margin
      return (1.0 + u <= zero ? zero : zero + rest_) - (1.0 - u <= zero ? zero : zero + target_);
    } else if constexpr (kKind == Kind::wasserstein) {
      return zero + (rest_ - target_);
    } else {
      return u - target_;
    }
  }

  GAN_FAST_INLINE static F64 probability(V x, V e) { return widen((x >= A{0} ? V{} + A{1} : e) / (A{1} + e)); }

 private:
  double target_, rest_;  // rest = 1 - target
};

// A batch of logits, and what to compute from it.
template <class T>
struct Batch {
  const T* logits = nullptr;
  const T* paired = nullptr;  // u = logits - paired, else logits - shift
  T* grad = nullptr;          // factor (phi' - offset); null if not needed
  T* paired_grad = nullptr;   // the same times -1
  int64_t count = 0;
  Kind kind = Kind::minimax;
  double target = 0, shift = 0, factor = 0, offset = 0;
  // With means_wanted: sum D's answers, and count the logits above the threshold (below it if not `above`).
  bool means_wanted = false, probabilities = false, above = true;
  double threshold = 0;
  bool slopes_wanted = false;

  int64_t blocks() const { return (count + kBlock - 1) / kBlock; }

  GAN_FAST_INLINE F64 argument(Vec<T> x, int64_t i, int lanes) const {
    return widen(x) - (paired ? widen(load(paired + i, lanes)) : F64{} + shift);
  }

  GAN_FAST_INLINE void store_grad(int64_t i, F64 slope, int lanes) const {
    const Vec<T> value = narrow<Vec<T>>((slope - offset) * factor);
    if (grad) store(grad + i, value, lanes);
    if (paired_grad) store(paired_grad + i, -value, lanes);
  }
};

// Calls step(i, lanes) for the vectors of a block: with the constant kLanes, and once with the remaining lanes.
template <class Step>
GAN_FAST_INLINE void for_lanes(int64_t begin, int64_t end, const Step& step) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) step(i, kLanes);
  if (i < end) step(i, static_cast<int>(end - i));
}

// The sum of the logits.
template <class T>
struct SumBlock : Batch<T> {
  GAN_FAST_INLINE void operator()(Sums* sums, int64_t begin, int64_t end) const {
    F64 logits{};
    for_lanes(begin, end,
              [&](int64_t i, int lanes) GAN_FAST_INLINE_LAMBDA { logits += widen(load(this->logits + i, lanes)); });
    sums->logits = sum(logits);
  }
};

// Computes all other sums, and the gradients if needed.
template <class T, Kind kKind>
struct LossBlock : Batch<T> {
  GAN_FAST_INLINE void operator()(Sums* sums, int64_t begin, int64_t end) const {
    using V = Vec<T>;
    using P = Phi<V, kKind>;
    const P phi(this->target);
    const F64 zero{}, one = zero + 1.0;
    F64 loss{}, slopes{}, answers{}, other_answers{}, correct{};
    for_lanes(begin, end, [&](int64_t i, int lanes) GAN_FAST_INLINE_LAMBDA {
      const V x = load(this->logits + i, lanes);
      const F64 u = this->argument(x, i, lanes);
      const V e = phi.exponential(u);
      loss += keep(phi.value(u, e), lanes);
      if (this->slopes_wanted) slopes += keep(phi.slope(u, e), lanes);
      if (this->grad || this->paired_grad) this->store_grad(i, phi.slope(u, e), lanes);
      if (!this->means_wanted) return;
      answers += keep(this->probabilities ? P::probability(x, e) : widen(x), lanes);
      const F64 at = widen(x);
      F64 limit = zero + this->threshold;
      if (this->paired) {
        limit = widen(load(this->paired + i, lanes));
        other_answers += keep(limit, lanes);
      }
      correct += keep(this->above ? (at > limit ? one : zero) : (at < limit ? one : zero), lanes);
    });
    *sums = {0, sum(loss), sum(slopes), sum(answers), sum(other_answers), sum(correct)};
  }
};

// Computes only the gradients, bit for bit those of LossBlock.
template <class T, Kind kKind>
struct GradBlock : Batch<T> {
  GAN_FAST_INLINE void operator()(Sums*, int64_t begin, int64_t end) const {
    const Phi<Vec<T>, kKind> phi(this->target);
    for_lanes(begin, end, [&](int64_t i, int lanes) GAN_FAST_INLINE_LAMBDA {
      const F64 u = this->argument(load(this->logits + i, lanes), i, lanes);
      this->store_grad(i, phi.slope(u, phi.exponential(u)), lanes);
    });
  }
};

// Runs a kernel over the blocks of one or two batches, and adds their sums to the totals.
template <class Kernel, class T>
void walk(const Batch<T> (&batches)[2], Sums (&totals)[2]) {
  const int64_t first = batches[0].blocks(), blocks = first + batches[1].blocks();
  Sums few[2];
  std::vector<Sums> many(blocks > 2 ? blocks : 0);
  Sums* sums = blocks > 2 ? many.data() : few;
  const auto run = [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b) {
      const Batch<T>& batch = batches[b >= first];
      const int64_t begin = (b >= first ? b - first : b) * kBlock;
      isa::run(Kernel{batch}, sums + b, begin, std::min(batch.count, begin + kBlock));
    }
  };
  if (blocks <= kGrain) {
    run(0, blocks);
  } else {
    torch::stable::parallel_for(0, blocks, kGrain, run);
  }
  for (int64_t b = 0; b < blocks; ++b) totals[b >= first] += sums[b];
}

// The same for a kernel template, with the kind of the batches.
template <template <class, Kind> class Kernel, class T>
void walk_kind(const Batch<T> (&batches)[2], Sums (&totals)[2]) {
  switch (batches[0].kind) {
    case Kind::minimax:
      return walk<Kernel<T, Kind::minimax>>(batches, totals);
    case Kind::hinge:
      return walk<Kernel<T, Kind::hinge>>(batches, totals);
    case Kind::wasserstein:
      return walk<Kernel<T, Kind::wasserstein>>(batches, totals);
    default:
      return walk<Kernel<T, Kind::least_squares>>(batches, totals);
  }
}

// A call of the forward or the backward op.
struct Call {
  Relativistic relativistic;
  Kind kind;
  int count;         // number of batches
  Tensor logits[2];  // without gaps; paired logits have the same strides
  Tensor grads[2];
  double targets[2];
  double factor;  // of the gradients

  Call(const Tensor& x, double target, const MaybeTensor& other, double other_target, double factor, Kind kind,
       Relativistic relativistic, bool grad_wanted, bool other_grad_wanted)
      : relativistic(relativistic),
        kind(kind),
        count(other ? 2 : 1),
        logits{without_gaps(x), nothing()},
        grads{nothing(), nothing()},
        targets{target, other_target},
        factor(factor) {
    if (other) logits[1] = relativistic == Relativistic::paired ? in_order_of(logits[0], *other) : without_gaps(*other);
    if (grad_wanted) grads[0] = empty_as(logits[0]);
    if (other && other_grad_wanted) grads[1] = empty_as(logits[1]);
  }

  // Returns the loss without `scale`, and computes the gradients that are needed. If `means` is not null, it gets mean
  // D(x), mean D(G(z)) and the accuracy. Means of no logits are 0 / 0 = NaN, as in ATen.
  template <class T>
  double forward(double* means) const {
    Batch<T> batches[2];
    fill(batches);
    const bool two = count == 2, none = relativistic == Relativistic::none;
    for (int i = 0; i < 2; ++i) {
      batches[i].means_wanted = means;
      batches[i].probabilities = none && kind == Kind::minimax;
      batches[i].above = i == 0;
      batches[i].threshold = kind == Kind::least_squares ? 0.5 : 0;
    }
    Sums sums[2];
    if (relativistic == Relativistic::average) {
      against_averages(batches, sums);
    } else {
      if (means && two && none && kind == Kind::wasserstein) {
        double averages[2];
        take_averages(batches, averages);
        for (Batch<T>& batch : batches) batch.threshold = (averages[0] + averages[1]) / 2;
      }
      walk_kind<LossBlock>(batches, sums);
    }
    const double counts[2] = {static_cast<double>(batches[0].count), static_cast<double>(batches[1].count)};
    const bool second = two && relativistic != Relativistic::paired;
    if (means) {
      means[0] = sums[0].answers / counts[0];
      means[1] = second ? sums[1].answers / counts[1] : sums[0].other_answers / counts[0];
      means[2] = (sums[0].correct + sums[1].correct) / (counts[0] + counts[1]);
    }
    return sums[0].loss / counts[0] + (second ? sums[1].loss / counts[1] : 0);
  }

  template <class T>
  void backward() const {
    Batch<T> batches[2];
    fill(batches);
    Sums sums[2];
    if (relativistic == Relativistic::average) {
      against_averages(batches, sums);
    } else {
      walk_kind<GradBlock>(batches, sums);
    }
  }

 private:
  template <class T>
  void fill(Batch<T> (&batches)[2]) const {
    const auto data = [](const Tensor& t) { return t.defined() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr; };
    const bool paired = relativistic == Relativistic::paired;
    for (int i = 0; i < (paired ? 1 : count); ++i) {
      Batch<T>& batch = batches[i];
      batch.logits = static_cast<const T*>(logits[i].const_data_ptr());
      batch.grad = data(grads[i]);
      batch.count = logits[i].numel();
      batch.kind = kind;
      batch.target = targets[i];
      batch.factor = factor / static_cast<double>(batch.count);
    }
    if (paired) {
      batches[0].paired = static_cast<const T*>(logits[1].const_data_ptr());
      batches[0].paired_grad = data(grads[1]);
    }
  }

  template <class T>
  static void take_averages(const Batch<T> (&batches)[2], double (&averages)[2]) {
    Sums sums[2];
    walk<SumBlock<T>>(batches, sums);
    for (int i = 0; i < 2; ++i) averages[i] = sums[i].logits / static_cast<double>(batches[i].count);
  }

  // Compares each batch with the average of the other. A batch also gets a gradient through its average, from phi' of
  // the other batch. So all sums come before the gradients.
  template <class T>
  static void against_averages(Batch<T> (&batches)[2], Sums (&sums)[2]) {
    double averages[2];
    take_averages(batches, averages);
    const bool grads_wanted = batches[0].grad || batches[1].grad;
    Batch<T> first[2];
    for (int i = 0; i < 2; ++i) {
      batches[i].shift = batches[i].threshold = averages[1 - i];
      first[i] = batches[i];
      first[i].grad = nullptr;
      first[i].slopes_wanted = grads_wanted;
    }
    walk_kind<LossBlock>(first, sums);
    if (!grads_wanted) return;
    for (int i = 0; i < 2; ++i) {
      // An empty other batch contributes no gradient.
      const int64_t others = batches[1 - i].count;
      batches[i].offset = others ? sums[1 - i].slopes / static_cast<double>(others) : 0;
    }
    Sums unused[2];
    walk_kind<GradBlock>(batches, unused);
  }
};

template <class T>
void write(const Tensor& t, int64_t index, double value) {
  static_cast<T*>(t.mutable_data_ptr())[index] = static_cast<T>(static_cast<Compute<T>>(value));
}

double scalar_value(const Tensor& t) {
  return for_dtype(t.scalar_type(), [&](auto tag) {
    return static_cast<double>(*static_cast<const decltype(tag)*>(t.const_data_ptr()));
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& logits, double target, const MaybeTensor& other,
                                                   double other_target, double scale, std::string kind,
                                                   std::string relativistic, bool means_wanted, bool grad_wanted,
                                                   bool other_grad_wanted) {
  check::cpu(kForward, "logits", logits);
  const Relativistic related = parse_relativistic(kForward, relativistic);
  check_batches(kForward, logits, target, other, other_target, related);
  const Call call(logits, target, other, other_target, scale, parse_kind(kForward, kind), related, grad_wanted,
                  other_grad_wanted);
  const Tensor loss = empty_strided(logits, {}, {}, logits.scalar_type());
  const int64_t count = other ? 3 : 1;
  const Tensor means = means_wanted ? empty_vector(logits, count, logits.scalar_type()) : nothing();
  for_dtype(logits.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    double values[3];
    write<T>(loss, 0, scale * call.forward<T>(means_wanted ? values : nullptr));
    for (int64_t i = 0; means_wanted && i < count; ++i) write<T>(means, i, values[i]);
  });
  return {loss, means, call.grads[0], call.grads[1]};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_loss, const Tensor& logits, double target,
                                    const MaybeTensor& other, double other_target, double scale, std::string kind,
                                    std::string relativistic) {
  check::cpu(kBackward, "logits", logits);
  const Relativistic related = parse_relativistic(kBackward, relativistic);
  check_batches(kBackward, logits, target, other, other_target, related);
  check_grad_loss(grad_loss, logits);
  const Call call(logits, target, other, other_target, scale * scalar_value(grad_loss), parse_kind(kBackward, kind),
                  related, true, true);
  for_dtype(logits.scalar_type(), [&](auto tag) { call.backward<decltype(tag)>(); });
  return {call.grads[0], call.grads[1]};
}

}  // namespace
}  // namespace gan_fast

STABLE_TORCH_LIBRARY_IMPL(gan_fast, CPU, m) {
  m.impl("adversarial_loss_forward", TORCH_BOX(&gan_fast::forward));
  m.impl("adversarial_loss_backward", TORCH_BOX(&gan_fast::backward));
}
