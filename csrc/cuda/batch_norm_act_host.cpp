// Batch norm followed by an activation on a GPU: checks and allocation.

#include "../common/batch_norm_act.h"
#include "batch_norm_act.h"
#include "host.h"

namespace gan_fast {
namespace {

using namespace norm;
using cuda::data;
using cuda::mutable_data;

cuda::Shape shape_of(const Tensor& t, MemoryFormat format) {
  cuda::Shape shape{t.size(0), t.size(1), 1, false};
  for (int64_t d = 2; d < t.dim(); ++d) shape.S *= t.size(d);
  // With S = 1 the tensor is a matrix of rows in both formats. With C = 1 it is runs of one channel in both.
  shape.channels_last = shape.C > 1 && (shape.S == 1 || format != MemoryFormat::Contiguous);
  return shape;
}

bool at_16_bytes(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

cuda::Parameter parameter(const MaybeTensor& t, const Tensor& input) {
  if (!t || !t->defined()) return {};
  void* data = const_cast<void*>(t->const_data_ptr());
  const bool wide = t->scalar_type() == compute_dtype(input.scalar_type());
  return {data, t->stride(0), wide, wide && t->stride(0) == 1 && at_16_bytes(data)};
}

bool aligned(std::initializer_list<const Tensor*> tensors) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor* t) { return !t->defined() || at_16_bytes(t->const_data_ptr()); });
}

Tensor zeros(const Tensor& input, ScalarType dtype) {
  Tensor t = empty_vector(input, input.size(1), dtype);
  return torch::stable::zero_(t);
}

// A tensor for the gradient of a parameter: zeros if the input is empty, since no kernel is launched then.
Tensor parameter_grad(const MaybeTensor& parameter, const Tensor& input, bool wanted) {
  if (!parameter || !wanted) return nothing();
  const ScalarType dtype = parameter->scalar_type();
  return input.numel() ? empty_vector(input, input.size(1), dtype) : zeros(input, dtype);
}

// A buffer for the partial sums of a pass with `sums` sums.
Tensor partial_sums(const cuda::OnDevice& device, const cuda::Shape& shape, const Tensor& input, int sums) {
  const int64_t size = cuda::partial_size(shape, device.stream().multiprocessors, sums);
  return empty_vector(input, size, ScalarType::Double);
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& input, const MaybeTensor& running_mean,
                                           const MaybeTensor& running_var, const MaybeTensor& weight,
                                           const MaybeTensor& bias, bool training, double momentum, double eps,
                                           const std::string& activation, double negative_slope) {
  check::cuda(kOp, "input", input);
  check_input(input);
  check_parameter("running_mean", running_mean, input);
  check_parameter("running_var", running_var, input);
  check_parameter("weight", weight, input);
  check_parameter("bias", bias, input);
  check_running(running_mean, running_var, training);
  const cuda::ActivationChoice choice{parse(activation), negative_slope};

  const cuda::OnDevice device(kOp, input);
  const MemoryFormat format = suggest_memory_format(input);
  const Tensor x = dense(input, format);
  const cuda::Shape shape = shape_of(x, format);
  check_count(input, shape.per_channel(), training);
  const Tensor output = empty_like(x, format);
  const ScalarType statistics = compute_dtype(x.scalar_type());
  if (training && !x.numel()) return {output, zeros(x, statistics), zeros(x, statistics)};
  const Tensor mean = empty_vector(x, shape.C, statistics), invstd = empty_vector(x, shape.C, statistics);
  const Tensor partial = training ? partial_sums(device, shape, x, cuda::kMomentsSums) : nothing();
  cuda::for_dtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    using A = cuda::Compute<T>;
    cuda::forward<T>(device.stream(),
                     {shape, data<T>(x), mutable_data<T>(output), mutable_data<A>(mean), mutable_data<A>(invstd),
                      parameter(running_mean, x), parameter(running_var, x), parameter(weight, x), parameter(bias, x),
                      training, momentum, eps, choice, aligned({&x, &output}), mutable_data<double>(partial)});
  });
  return {output, mean, invstd};
}

// The caller's statistics, copied if they are not dense.
struct DenseStatistics {
  Tensor mean, invstd;

  DenseStatistics(const Tensor& mean, const Tensor& invstd)
      : mean(dense(mean, MemoryFormat::Contiguous)), invstd(dense(invstd, MemoryFormat::Contiguous)) {}

  cuda::Affine affine(const MaybeTensor& weight, const MaybeTensor& bias, const Tensor& input) const {
    return {parameter(mean, input), parameter(invstd, input), parameter(weight, input), parameter(bias, input)};
  }
};

// Recomputes the output of a forward pass, to the last bit, from the statistics that it returned.
Tensor normalize(const Tensor& input, const Tensor& mean, const Tensor& invstd, const MaybeTensor& weight,
                 const MaybeTensor& bias, const std::string& activation, double negative_slope) {
  check::cuda(kOp, "input", input);
  check_input(input);
  check_statistics(mean, invstd, input);
  check_parameter("weight", weight, input);
  check_parameter("bias", bias, input);
  const cuda::ActivationChoice choice{parse(activation), negative_slope};

  const cuda::OnDevice device(kOp, input);
  const MemoryFormat format = suggest_memory_format(input);
  const Tensor x = dense(input, format);
  const Tensor output = empty_like(x, format);
  const DenseStatistics statistics(mean, invstd);
  cuda::for_dtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    cuda::normalize<T>(device.stream(), {shape_of(x, format), data<T>(x), mutable_data<T>(output),
                                         statistics.affine(weight, bias, x), choice, aligned({&x, &output})});
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                            const Tensor& invstd, const MaybeTensor& weight, const MaybeTensor& bias,
                                            bool training, const std::string& activation, double negative_slope,
                                            bool input_wanted, bool affine_wanted) {
  check::cuda(kOp, "input", input);
  check_input(input);
  check_like_input("grad_output", grad_output, input);
  check_statistics(mean, invstd, input);
  check_parameter("weight", weight, input);
  check_parameter("bias", bias, input);
  const cuda::ActivationChoice choice{parse(activation), negative_slope};

  const cuda::OnDevice device(kOp, input);
  const MemoryFormat format = suggest_memory_format(input);
  const Tensor x = dense(input, format), g = dense(grad_output, format);
  const Tensor grad_input = input_wanted ? empty_like(x, format) : nothing();
  const Tensor grad_weight = parameter_grad(weight, x, affine_wanted);
  const Tensor grad_bias = parameter_grad(bias, x, affine_wanted);
  const cuda::Shape shape = shape_of(x, format);
  const DenseStatistics statistics(mean, invstd);
  const Tensor coefficients = empty_vector(x, cuda::kBackwardCoefficients * shape.C, compute_dtype(x.scalar_type()));
  const Tensor partial = partial_sums(device, shape, x, cuda::kBackwardSums);
  cuda::for_dtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    cuda::backward<T>(device.stream(), {shape, data<T>(g), data<T>(x), statistics.affine(weight, bias, x), training,
                                        affine_wanted, choice, mutable_data<T>(grad_input), parameter(grad_weight, x),
                                        parameter(grad_bias, x), aligned({&x, &g, &grad_input}),
                                        mutable_data<cuda::Compute<T>>(coefficients), mutable_data<double>(partial)});
  });
  return {grad_input, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> double_backward(
    const MaybeTensor& cotangent_input, const MaybeTensor& cotangent_weight, const MaybeTensor& cotangent_bias,
    const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& invstd, const MaybeTensor& weight,
    const MaybeTensor& bias, bool training, const std::string& activation, double negative_slope,
    bool grad_output_wanted, bool input_wanted) {
  check::cuda(kOp, "input", input);
  check_input(input);
  check_like_input("grad_output", grad_output, input);
  if (cotangent_input) check_like_input("cotangent_input", *cotangent_input, input);
  check_statistics(mean, invstd, input);
  check_parameter("weight", weight, input);
  check_parameter("bias", bias, input);
  check_parameter("cotangent_weight", cotangent_weight, input);
  check_parameter("cotangent_bias", cotangent_bias, input);
  const cuda::ActivationChoice choice{parse(activation), negative_slope};

  const cuda::OnDevice device(kOp, input);
  const MemoryFormat format = suggest_memory_format(input);
  const Tensor x = dense(input, format), g = dense(grad_output, format);
  const Tensor a = cotangent_input ? dense(*cotangent_input, format) : nothing();
  const Tensor grad_grad = grad_output_wanted ? empty_like(x, format) : nothing();
  const Tensor grad_input = input_wanted ? empty_like(x, format) : nothing();
  const Tensor grad_weight = parameter_grad(weight, x, true), grad_bias = parameter_grad(bias, x, true);
  const cuda::Shape shape = shape_of(x, format);
  const DenseStatistics statistics(mean, invstd);
  const Tensor coefficients = empty_vector(x, cuda::kDoubleCoefficients * shape.C, compute_dtype(x.scalar_type()));
  const Tensor means = empty_vector(x, cuda::kDoubleSums * shape.C, ScalarType::Double);
  const Tensor partial = partial_sums(device, shape, x, cuda::kDoubleSums);
  cuda::for_dtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    cuda::double_backward<T>(
        device.stream(),
        {shape, data<T>(a), data<T>(g), data<T>(x), statistics.affine(weight, bias, x), parameter(cotangent_weight, x),
         parameter(cotangent_bias, x), training, choice, mutable_data<T>(grad_grad), mutable_data<T>(grad_input),
         parameter(grad_weight, x), parameter(grad_bias, x), aligned({&x, &g, &a, &grad_grad, &grad_input}),
         mutable_data<cuda::Compute<T>>(coefficients), mutable_data<double>(means), mutable_data<double>(partial)});
  });
  return {grad_grad, grad_input, grad_weight, grad_bias};
}

}  // namespace
}  // namespace gan_fast

STABLE_TORCH_LIBRARY_IMPL(gan_fast, CUDA, m) {
  m.impl("batch_norm_act_forward", TORCH_BOX(&gan_fast::forward));
  m.impl("batch_norm_act_normalize", TORCH_BOX(&gan_fast::normalize));
  m.impl("batch_norm_act_backward", TORCH_BOX(&gan_fast::backward));
  m.impl("batch_norm_act_double_backward", TORCH_BOX(&gan_fast::double_backward));
}
