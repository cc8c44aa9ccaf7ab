#include "cpu/relu_pool_skip.h"

#include "bindings/junction_call.h"
#include "bindings/torch_cpu/channel_gradient.h"

namespace uf::bindings {
namespace {

std::tuple<Tensor, Tensor, Tensor> relu_pool_skip_cpu(const Tensor& x, std::optional<Tensor> bias,
                                                      std::vector<int64_t> skip_size, int64_t up_channels,
                                                      bool want_code) {
  const ReluPoolSkipCall call = relu_pool_skip_call(x, bias, skip_size, up_channels, want_code);
  relu_pool_skip(call.shape, call.type, call.x.const_data_ptr(), image_stride(call.x), data_or_null(call.bias),
                 call.pooled.mutable_data_ptr(), call.buffer.mutable_data_ptr(),
                 want_code ? static_cast<uint8_t*>(call.code.mutable_data_ptr()) : nullptr, torch_parallel());
  return {call.pooled, call.buffer, call.code};
}

std::tuple<Tensor, Tensor> relu_pool_skip_backward_cpu(const Tensor& code, std::optional<Tensor> grad_pooled,
                                                       std::optional<Tensor> grad_buffer,
                                                       std::vector<int64_t> size, bool want_bias) {
  const ReluPoolSkipBackwardCall call = relu_pool_skip_backward_call(code, grad_pooled, grad_buffer, size);
  ChannelGradient bias(want_bias, relu_pool_skip_parts(call.shape), call.shape.channels);
  relu_pool_skip_backward(call.shape, call.type, data_or_null(call.grad_pooled), call.pooled_stride,
                          data_or_null(call.grad_buffer), call.buffer_stride,
                          static_cast<const uint8_t*>(call.code.const_data_ptr()), call.grad_x.mutable_data_ptr(),
                          bias.sums(), bias.workspace(), torch_parallel());
  return {call.grad_x, bias.tensor(call.grad_x)};
}

}  // namespace

UF_OPERATOR_ON(CPU, relu_pool_skip, relu_pool_skip_cpu)
UF_OPERATOR_ON(CPU, relu_pool_skip_backward, relu_pool_skip_backward_cpu)

}  // namespace uf::bindings
