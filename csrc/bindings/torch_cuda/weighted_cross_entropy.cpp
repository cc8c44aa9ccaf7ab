#include "cuda/weighted_cross_entropy.h"

#include "bindings/tensor_cuda.h"
#include "bindings/weighted_cross_entropy_call.h"

namespace uf::bindings {
namespace {

std::tuple<Tensor, Tensor> weighted_cross_entropy_cuda(const Tensor& logits, const Tensor& target,
                                                       std::optional<Tensor> weight, int64_t ignore_index,
                                                       int64_t reduction, bool want_grad) {
  const OnDevice device(logits);
  const CrossEntropyCall call = cross_entropy_call(logits, target, weight, ignore_index, reduction, want_grad);
  const Tensor workspace = new_tensor(
      logits, {cuda::weighted_cross_entropy_workspace(call.shape, call.arguments)}, ScalarType::Double);
  STD_CUDA_CHECK(cuda::weighted_cross_entropy(call.shape, call.arguments,
                                              static_cast<double*>(workspace.mutable_data_ptr()), device.stream()));
  return {call.loss, call.grad};
}

Tensor weighted_cross_entropy_backward_cuda(const Tensor& grad_output, const Tensor& grad) {
  const OnDevice device(grad);
  const CrossEntropyBackwardCall call = cross_entropy_backward_call(grad_output, grad);
  STD_CUDA_CHECK(cuda::weighted_cross_entropy_backward(
      call.batch, call.classes, call.pixels, call.channels_last, call.type, call.grad.const_data_ptr(),
      call.grad_output.const_data_ptr(), call.each_pixel, call.out.mutable_data_ptr(), device.stream()));
  return call.out;
}

void weighted_cross_entropy_backward_in_place(std::vector<Tensor> grads, const Tensor& grad_output) {
  const OnDevice device(grad_output);
  for (Tensor& grad : grads) {
    const Tensor dense = torch::stable::contiguous(grad, dense_format(grad));
    STD_CUDA_CHECK(cuda::scale_in_place(dense.numel(), floating_dtype(dense, "weighted_cross_entropy_backward_: grads"), dense.mutable_data_ptr(),
                                        grad_output.const_data_ptr(), device.stream()));
    if (dense.const_data_ptr() != grad.const_data_ptr()) torch::stable::copy_(grad, dense);
  }
}

}  // namespace

UF_OPERATOR_ON(CUDA, weighted_cross_entropy, weighted_cross_entropy_cuda)
UF_OPERATOR_ON(CUDA, weighted_cross_entropy_backward, weighted_cross_entropy_backward_cuda)
UF_OPERATOR_ON(CUDA, weighted_cross_entropy_backward_, weighted_cross_entropy_backward_in_place)

}  // namespace uf::bindings
