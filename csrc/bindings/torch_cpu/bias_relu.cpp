#include "cpu/bias_relu.h"

#include "bindings/junction_call.h"
#include "bindings/torch_cpu/bias_relu.h"
#include "bindings/torch_cpu/channel_gradient.h"

namespace uf::bindings {
namespace {

void apply(const Tensor& x, const std::optional<Tensor>& bias_in, const Tensor& out) {
  checks::rank(x, 2, 5, "bias_relu: x");
  const std::optional<Tensor> bias = dense_wide(bias_in, x, x.size(1), "bias_relu: bias");
  bias_relu(bias_relu_shape(x), floating_dtype(x, "bias_relu"), x.const_data_ptr(), data_or_null(bias),
            out.mutable_data_ptr(), torch_parallel());
}

Tensor bias_relu_cpu(const Tensor& x_in, std::optional<Tensor> bias) {
  const MemoryFormat format = dense_format(x_in);
  const Tensor x = torch::stable::contiguous(x_in, format), out = new_tensor(x, sizes(x), std::nullopt, format);
  apply(x, bias, out);
  return out;
}

void bias_relu_in_place_cpu(Tensor x, std::optional<Tensor> bias) { bias_relu_in_place(x, bias); }

}  // namespace

void bias_relu_in_place(const Tensor& x, const std::optional<Tensor>& bias) {
  const Tensor dense = torch::stable::contiguous(x, dense_format(x));
  apply(dense, bias, dense);
  if (dense.const_data_ptr() == x.const_data_ptr()) return;
  Tensor target = x;
  torch::stable::copy_(target, dense);
}

std::tuple<Tensor, Tensor> bias_relu_gradients(const Tensor& grad_in, const Tensor& out_in, bool want_bias) {
  checks::rank(out_in, 2, 5, "bias_relu_backward: out");
  checks::same_shape(grad_in, out_in, "bias_relu_backward");
  checks::same_dtype(grad_in, out_in, "bias_relu_backward");
  const MemoryFormat format = dense_format(out_in);
  const Tensor grad = torch::stable::contiguous(grad_in, format), out = torch::stable::contiguous(out_in, format);
  const Tensor grad_x = new_tensor(grad, sizes(grad), std::nullopt, format);
  const BiasReluShape shape = bias_relu_shape(out);
  ChannelGradient bias(want_bias, bias_relu_parts(shape), shape.channels);
  bias_relu_backward(shape, floating_dtype(out, "bias_relu"), grad.const_data_ptr(), out.const_data_ptr(),
                     grad_x.mutable_data_ptr(), bias.sums(), bias.workspace(), torch_parallel());
  return {grad_x, bias.tensor(grad_x)};
}

UF_OPERATOR_ON(CPU, bias_relu, bias_relu_cpu)
UF_OPERATOR_ON(CPU, bias_relu_, bias_relu_in_place_cpu)
UF_OPERATOR_ON(CPU, bias_relu_backward, bias_relu_gradients)

}  // namespace uf::bindings
