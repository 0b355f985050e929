// The schemas of all ops, and the Python module gan_fast._C. Kernels register themselves in csrc/<device>/<op>.cpp.
// If a flag `..._wanted` is false, the result is an undefined tensor, which is None in Python.

#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/version.h>

#include <string>

#include "cpu/isa.h"

STABLE_TORCH_LIBRARY(gan_fast, m) {
  m.def(
      "batch_norm_act_forward(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? weight,"
      " Tensor? bias, bool training, float momentum, float eps, str activation, float negative_slope)"
      " -> (Tensor output, Tensor mean, Tensor invstd)");
  m.def(
      "batch_norm_act_normalize(Tensor input, Tensor mean, Tensor invstd, Tensor? weight, Tensor? bias, str activation,"
      " float negative_slope) -> Tensor output");
  m.def(
      "batch_norm_act_backward(Tensor grad_output, Tensor input, Tensor mean, Tensor invstd, Tensor? weight,"
      " Tensor? bias, bool training, str activation, float negative_slope, bool input_wanted, bool affine_wanted)"
      " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "batch_norm_act_double_backward(Tensor? cotangent_input, Tensor? cotangent_weight, Tensor? cotangent_bias,"
      " Tensor grad_output, Tensor input, Tensor mean, Tensor invstd, Tensor? weight, Tensor? bias, bool training,"
      " str activation, float negative_slope, bool grad_output_wanted, bool input_wanted)"
      " -> (Tensor grad_grad_output, Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");

  m.def(
      "adversarial_loss_forward(Tensor logits, float target, Tensor? other_logits, float other_target, float scale,"
      " str kind, str relativistic, bool means_wanted, bool grad_wanted, bool other_grad_wanted)"
      " -> (Tensor loss, Tensor means, Tensor grad_logits, Tensor grad_other_logits)");
  m.def(
      "adversarial_loss_backward(Tensor grad_loss, Tensor logits, float target, Tensor? other_logits,"
      " float other_target, float scale, str kind, str relativistic) -> (Tensor grad_logits, Tensor "
      "grad_other_logits)");

  m.def(
      "sample_norm_penalty_forward(Tensor input, Tensor? coefficients, float center, float scale)"
      " -> (Tensor penalty, Tensor norms)");
  m.def(
      "sample_norm_penalty_backward(Tensor grad_penalty, Tensor input, Tensor norms, Tensor? coefficients,"
      " float center, float scale) -> Tensor grad_input");

  m.def("minibatch_discrimination_forward(Tensor projected) -> Tensor output");
  m.def("minibatch_discrimination_backward(Tensor grad_output, Tensor projected) -> Tensor grad_projected");
  m.def(
      "minibatch_discrimination_double_backward(Tensor cotangent, Tensor grad_output, Tensor projected)"
      " -> (Tensor grad_grad_output, Tensor grad_projected)");

  m.def(
      "spectral_norm_forward(Tensor weight, Tensor(a!) u, Tensor(b!) v, int n_power_iterations, float eps, int dim)"
      " -> (Tensor output, Tensor sigma)");
  m.def(
      "spectral_norm_backward(Tensor grad_output, Tensor weight, Tensor u, Tensor v, Tensor sigma, int dim)"
      " -> Tensor grad_weight");

  m.def("leaky_relu_over(Tensor(a!) input, float negative_slope) -> Tensor signs");
  m.def(
      "leaky_relu_backward(Tensor grad_output, Tensor signs, int[] stride, float negative_slope)"
      " -> Tensor grad_input");

  m.def(
      "im2col(Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int[] positions)"
      " -> Tensor columns");
  m.def(
      "col2im(Tensor columns, Tensor(a!) output, Tensor? bias, int[] kernel_size, int[] stride, int[] padding,"
      " int[] dilation, int[] positions) -> ()");
  m.def("sub_pixel_conv(Tensor input, Tensor weight, Tensor(a!) output, Tensor? bias, int[] padding) -> ()");
}

namespace {

#define GAN_FAST_STRING_(...) #__VA_ARGS__
#define GAN_FAST_STRING(...) GAN_FAST_STRING_(__VA_ARGS__)

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "gcc " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

// setup.py defines the architectures if it compiles csrc/cuda.
#if defined(GAN_FAST_CUDA_ARCHITECTURES)
constexpr const char* kCudaArchitectures = GAN_FAST_STRING(GAN_FAST_CUDA_ARCHITECTURES);
#else
constexpr const char* kCudaArchitectures = "";
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of gan_fast; importing it registers torch.ops.gan_fast.";
  m.def(
      "build_info",
      [] {
        namespace isa = gan_fast::isa;
        pybind11::dict info;
        info["compiler"] = kCompiler;
        info["torch"] = TORCH_VERSION;
        info["instruction_set"] = isa::name(isa::level());
        info["best_instruction_set"] = isa::name(isa::best());
        info["cuda_architectures"] = kCudaArchitectures;
        return info;
      },
      "Return the compiler, torch and CUDA architectures of the build, and the CPU instruction sets used and "
      "available.");
}
