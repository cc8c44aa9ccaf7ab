#include "cpu/weighted_cross_entropy.h"

#include "bindings/weighted_cross_entropy_call.h"

namespace uf::bindings {
namespace {

std::tuple<Tensor, Tensor> weighted_cross_entropy_cpu(const Tensor& logits, const Tensor& target,
                                                      std::optional<Tensor> weight, int64_t ignore_index,
                                                      int64_t reduction, bool want_grad) {
  const CrossEntropyCall call = cross_entropy_call(logits, target, weight, ignore_index, reduction, want_grad);
  const BadTarget bad = weighted_cross_entropy(call.shape, call.arguments, torch_parallel());
  UF_CHECK_INPUT(!bad.found, "target contains ", bad.value, ", expected classes 0 to ", call.shape.classes - 1,
                  " or ignore_index (", ignore_index, "); check the labels, or give the network more classes");
  return {call.loss, call.grad};
}

Tensor weighted_cross_entropy_backward_cpu(const Tensor& grad_output, const Tensor& grad) {
  const CrossEntropyBackwardCall call = cross_entropy_backward_call(grad_output, grad);
  weighted_cross_entropy_backward(call.batch, call.classes, call.pixels, call.channels_last, call.type,
                                  call.grad.const_data_ptr(), call.grad_output.const_data_ptr(), call.each_pixel,
                                  call.out.mutable_data_ptr(), torch_parallel());
  return call.out;
}

}  // namespace

UF_OPERATOR_ON(CPU, weighted_cross_entropy, weighted_cross_entropy_cpu)
UF_OPERATOR_ON(CPU, weighted_cross_entropy_backward, weighted_cross_entropy_backward_cpu)

}  // namespace uf::bindings
