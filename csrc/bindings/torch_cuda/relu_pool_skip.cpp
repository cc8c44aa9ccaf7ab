#include "cuda/relu_pool_skip.h"

#include "bindings/junction_call.h"
#include "bindings/tensor_cuda.h"

namespace uf::bindings {
namespace {

std::tuple<Tensor, Tensor, Tensor> relu_pool_skip_cuda(const Tensor& x, std::optional<Tensor> bias,
                                                       std::vector<int64_t> skip_size, int64_t up_channels,
                                                       bool want_code) {
  const OnDevice device(x);
  const ReluPoolSkipCall call = relu_pool_skip_call(x, bias, skip_size, up_channels, want_code);
  STD_CUDA_CHECK(cuda::relu_pool_skip(
      call.shape, call.type, call.x.const_data_ptr(), image_stride(call.x), data_or_null(call.bias),
      call.pooled.mutable_data_ptr(), call.buffer.mutable_data_ptr(),
      want_code ? static_cast<uint8_t*>(call.code.mutable_data_ptr()) : nullptr, device.stream()));
  return {call.pooled, call.buffer, call.code};
}

std::tuple<Tensor, Tensor> relu_pool_skip_backward_cuda(const Tensor& code, std::optional<Tensor> grad_pooled,
                                                        std::optional<Tensor> grad_buffer,
                                                        std::vector<int64_t> size, bool want_bias) {
  const OnDevice device(code);
  const ReluPoolSkipBackwardCall call = relu_pool_skip_backward_call(code, grad_pooled, grad_buffer, size);
  const Tensor grad_bias = new_tensor(call.grad_x, {want_bias ? call.shape.channels : 0}, wide_type(call.grad_x));
  const cuda::ReluPoolSkipGradients grad = {data_or_null(call.grad_pooled),
                                            call.pooled_stride,
                                            data_or_null(call.grad_buffer),
                                            call.buffer_stride,
                                            static_cast<const uint8_t*>(call.code.const_data_ptr()),
                                            call.grad_x.mutable_data_ptr(),
                                            want_bias ? grad_bias.mutable_data_ptr() : nullptr};
  const int64_t doubles = want_bias ? cuda::relu_pool_skip_workspace(call.shape, call.type, grad) : 0;
  const Tensor workspace = new_tensor(call.grad_x, {doubles}, ScalarType::Double);
  STD_CUDA_CHECK(cuda::relu_pool_skip_backward(call.shape, call.type, grad,
                                               static_cast<double*>(workspace.mutable_data_ptr()), device.stream()));
  return {call.grad_x, grad_bias};
}

}  // namespace

UF_OPERATOR_ON(CUDA, relu_pool_skip, relu_pool_skip_cuda)
UF_OPERATOR_ON(CUDA, relu_pool_skip_backward, relu_pool_skip_backward_cuda)

}  // namespace uf::bindings
