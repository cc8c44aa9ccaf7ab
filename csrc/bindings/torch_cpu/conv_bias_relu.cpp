// torch's own convolution with its bias, through the C interface of its CPU kernels, then the ReLU in place. Not oneDNN's
// convolution with a ReLU in its epilogue: that one makes 0 of a NaN, so that a network whose weights or activations have
// overflowed would go on with finite numbers, where torch's layers show it. What it could gain is that pass, 7 % of a
// 32-channel convolution in channels-last.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <array>

#include "bindings/junction_call.h"
#include "bindings/torch_cpu/bias_relu.h"

namespace uf::bindings {
namespace {

constexpr std::array<int64_t, 2> kOnes = {1, 1}, kZeros = {0, 0};

Tensor conv_bias_relu_cpu(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, int64_t padding) {
  const std::array<int64_t, 2> pads = {padding, padding};
  const std::optional<Tensor> narrow =
      bias.has_value() ? std::optional(torch::stable::to(*bias, x.scalar_type())) : std::nullopt;
  AtenTensorHandle handle = narrow.has_value() ? narrow->get() : nullptr, out = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution(x.get(), weight.get(), narrow.has_value() ? &handle : nullptr,
                                                    kOnes.data(), 2, pads.data(), 2, kOnes.data(), 2, 0, kZeros.data(),
                                                    2, 1, &out));
  const Tensor result(out);
  bias_relu_in_place(result, std::nullopt);
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

UF_OPERATOR_ON(CPU, conv_bias_relu, conv_bias_relu_cpu)
UF_OPERATOR_ON(CPU, conv_bias_relu_backward, conv_bias_relu_backward_cpu)

}  // namespace uf::bindings
