#include "cuda/bias_relu.h"

#include "bindings/junction_call.h"
#include "bindings/torch_cuda/bias_relu.h"

namespace uf::bindings {
namespace {

void apply(const Tensor& x, const std::optional<Tensor>& bias_in, const Tensor& out, cudaStream_t stream) {
  const std::optional<Tensor> bias = dense_wide(bias_in, x, x.size(1), "bias_relu: bias");
  STD_CUDA_CHECK(cuda::bias_relu(bias_relu_shape(x), floating_dtype(x, "bias_relu"), x.const_data_ptr(),
                                 data_or_null(bias), out.mutable_data_ptr(), stream));
}

Tensor bias_relu_cuda(const Tensor& x_in, std::optional<Tensor> bias) {
  const OnDevice device(x_in);
  const MemoryFormat format = dense_format(x_in);
  const Tensor x = torch::stable::contiguous(x_in, format), out = new_tensor(x, sizes(x), std::nullopt, format);
  apply(x, bias, out, device.stream());
  return out;
}

void bias_relu_in_place(Tensor x, std::optional<Tensor> bias) { bias_relu_in_place_cuda(x, bias); }

}  // namespace

void bias_relu_in_place_cuda(const Tensor& x, const std::optional<Tensor>& bias) {
  const OnDevice device(x);
  const Tensor dense = torch::stable::contiguous(x, dense_format(x));
  apply(dense, bias, dense, device.stream());
  if (dense.const_data_ptr() == x.const_data_ptr()) return;
  Tensor target = x;
  torch::stable::copy_(target, dense);
}

std::tuple<Tensor, Tensor> bias_relu_gradients_cuda(const Tensor& grad_in, const Tensor& out_in, bool want_bias) {
  const OnDevice device(out_in);
  const MemoryFormat format = dense_format(out_in);
  const Tensor grad = torch::stable::contiguous(grad_in, format), out = torch::stable::contiguous(out_in, format);
  const Tensor grad_x = new_tensor(grad, sizes(grad), std::nullopt, format);
  const BiasReluShape shape = bias_relu_shape(out);
  const DType type = floating_dtype(out, "bias_relu");
  const Tensor grad_bias = new_tensor(grad, {want_bias ? shape.channels : 0}, wide_type(grad));
  const int64_t doubles =
      want_bias ? cuda::bias_relu_workspace(shape, type, grad.const_data_ptr(), out.const_data_ptr(),
                                            grad_x.const_data_ptr())
                : 0;
  const Tensor workspace = new_tensor(grad, {doubles}, ScalarType::Double);
  STD_CUDA_CHECK(cuda::bias_relu_backward(
      shape, type, grad.const_data_ptr(), out.const_data_ptr(), grad_x.mutable_data_ptr(),
      want_bias ? grad_bias.mutable_data_ptr() : nullptr, static_cast<double*>(workspace.mutable_data_ptr()),
      device.stream()));
  return {grad_x, grad_bias};
}

UF_OPERATOR_ON(CUDA, bias_relu, bias_relu_cuda)
UF_OPERATOR_ON(CUDA, bias_relu_, bias_relu_in_place)
UF_OPERATOR_ON(CUDA, bias_relu_backward, bias_relu_gradients_cuda)

}  // namespace uf::bindings
