// The convolution is torch's own, through the C interface of its CPU kernels; oneDNN, where it is there and can, adds the
// bias and applies the ReLU while it writes the result.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <array>

#include "bindings/junction_call.h"
#include "bindings/torch_cpu/bias_relu.h"

namespace uf::bindings {
namespace {

using Pointwise = AOTITorchError (*)(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle*, const int64_t*, int64_t,
                                     const int64_t*, int64_t, const int64_t*, int64_t, int64_t, const char*,
                                     const double**, int64_t, const char**, AtenTensorHandle*);

// torch's oneDNN convolution with an operation behind it; null in a torch that was built without oneDNN.
Pointwise pointwise() {
  static const Pointwise function =
      reinterpret_cast<Pointwise>(dlsym(RTLD_DEFAULT, "aoti_torch_cpu_mkldnn__convolution_pointwise"));
  return function;
}

bool computes_bfloat16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

bool fuses(const Tensor& x, const Tensor& weight) {
  const ScalarType type = x.scalar_type();
  return pointwise() && x.numel() > 0 && weight.numel() > 0 &&
         (type == ScalarType::Float || (type == ScalarType::BFloat16 && computes_bfloat16()));
}

constexpr std::array<int64_t, 2> kOnes = {1, 1}, kZeros = {0, 0};

Tensor conv_bias_relu_cpu(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, int64_t padding) {
  const std::array<int64_t, 2> pads = {padding, padding};
  AtenTensorHandle out = nullptr;
  if (fuses(x, weight)) {
    const std::optional<Tensor> narrow =
        bias.has_value() ? std::optional(torch::stable::to(*bias, x.scalar_type())) : std::nullopt;
    AtenTensorHandle handle = narrow.has_value() ? narrow->get() : nullptr;
    const char* algorithm = "";
    TORCH_ERROR_CODE_CHECK(pointwise()(x.get(), weight.get(), narrow.has_value() ? &handle : nullptr, pads.data(), 2,
                                       kOnes.data(), 2, kOnes.data(), 2, 1, "relu", nullptr, 0, &algorithm, &out));
    return Tensor(out);
  }
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution(x.get(), weight.get(), nullptr, kOnes.data(), 2, pads.data(), 2,
                                                    kOnes.data(), 2, 0, kZeros.data(), 2, 1, &out));
  const Tensor result(out);
  bias_relu_in_place(result, bias);
  return result;
}

std::tuple<Tensor, Tensor, Tensor> conv_bias_relu_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                               const Tensor& out, int64_t padding, bool want_x,
                                                               bool want_weight, bool want_bias) {
  const auto [masked, grad_bias] = bias_relu_gradients(grad, out, want_bias);
  const auto none = [&] { return new_tensor(x, {0}); };  // results must not share memory
  if (!want_x && !want_weight) return {none(), none(), grad_bias};
  const std::array<int64_t, 2> pads = {padding, padding};
  const int32_t mask[3] = {want_x, want_weight, 0};
  AtenTensorHandle grad_x = nullptr, grad_weight = nullptr, unused = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution_backward(
      masked.get(), x.get(), weight.get(), nullptr, 0, kOnes.data(), 2, pads.data(), 2, kOnes.data(), 2, 0,
      kZeros.data(), 2, 1, mask, 3, &grad_x, &grad_weight, &unused));
  const Tensor all[3] = {Tensor(grad_x), Tensor(grad_weight), Tensor(unused)};  // frees what nobody wants
  return {want_x ? all[0] : none(), want_weight ? all[1] : none(), grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unet_fast, CPU, m) {
  m.impl("conv_bias_relu", TORCH_BOX(&conv_bias_relu_cpu));
  m.impl("conv_bias_relu_backward", TORCH_BOX(&conv_bias_relu_backward_cpu));
}

}  // namespace uf::bindings
