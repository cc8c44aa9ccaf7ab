// From tensors to the shape, pointers and outputs of weighted_cross_entropy, for the kernels of every device.
#pragma once

#include "bindings/shape_checks.h"
#include "bindings/tensor.h"
#include "common/cross_entropy_types.h"

namespace uf::bindings {

inline DType class_type(const Tensor& target, const char* what) {
  return checked_dtype(target, {DType::kInt64, DType::kInt32, DType::kUInt8}, what, "int64, int32 or uint8");
}

// The tensors that the pointers of `arguments` point into, the outputs among them.
struct CrossEntropyCall {
  Tensor logits, target, loss, grad;
  std::optional<Tensor> weight;
  WeightedCrossEntropyShape shape;
  WeightedCrossEntropyArguments arguments;
};

inline CrossEntropyCall cross_entropy_call(const Tensor& logits_in, const Tensor& target_in,
                                           const std::optional<Tensor>& weight_in, int64_t ignore_index,
                                           int64_t reduction, bool want_grad) {
  checks::cross_entropy(logits_in, reduction, "weighted_cross_entropy");
  CrossEntropyCall call;
  const bool even = logits_in.numel() == 0 || even_step(logits_in) != 0;
  const MemoryFormat format = dense_format(logits_in);
  const Tensor logits = even ? logits_in : torch::stable::contiguous(logits_in, format);
  const Tensor target = torch::stable::contiguous(target_in);

  WeightedCrossEntropyShape& shape = call.shape;
  const auto size = sizes(logits);
  shape.batch = size[0];
  shape.classes = size[1];
  shape.pixels = pixels_of(logits);
  shape.batch_stride = logits.stride(0);
  shape.class_stride = logits.stride(1);
  shape.pixel_stride = even_step(logits);
  shape.grad_class_stride = format == MemoryFormat::Contiguous ? shape.pixels : 1;
  shape.grad_pixel_stride = format == MemoryFormat::Contiguous ? 1 : shape.classes;

  const ScalarType type = logits.scalar_type();
  const ScalarType wide = wide_type(logits);
  call.weight = dense_wide(weight_in, logits, target.numel(), "weighted_cross_entropy: weight");
  STD_TORCH_CHECK(target.numel() == shape.batch * shape.pixels,
                  "weighted_cross_entropy: target must have the shape of logits without the classes");

  const auto kind = static_cast<Reduction>(reduction);
  call.loss = new_tensor(logits, kind == Reduction::kNone ? sizes(target) : std::vector<int64_t>{}, wide);
  call.grad = want_grad ? new_tensor(logits, size, type == ScalarType::Half ? wide : type, format)
                        : new_tensor(logits, {0});
  call.arguments = {floating_dtype(logits, "weighted_cross_entropy: logits"),
                    class_type(target, "weighted_cross_entropy: target"),
                    logits.const_data_ptr(),
                    target.const_data_ptr(),
                    data_or_null(call.weight),
                    ignore_index,
                    kind,
                    call.loss.mutable_data_ptr(),
                    want_grad ? call.grad.mutable_data_ptr() : nullptr};
  call.logits = logits;
  call.target = target;
  return call;
}

// out = grad * grad_output in the layout of grad
struct CrossEntropyBackwardCall {
  Tensor grad, grad_output, out;
  int64_t batch, classes, pixels;
  bool channels_last, each_pixel;
  DType type;
};

inline CrossEntropyBackwardCall cross_entropy_backward_call(const Tensor& grad_output_in, const Tensor& grad_in) {
  checks::cross_entropy(grad_in, 0, "weighted_cross_entropy_backward");
  checks::loss_gradient(grad_output_in, grad_in);
  CrossEntropyBackwardCall call;
  const MemoryFormat format = dense_format(grad_in);
  call.grad = torch::stable::contiguous(grad_in, format);
  call.grad_output = torch::stable::contiguous(grad_output_in);
  call.out = new_tensor(call.grad, sizes(call.grad), std::nullopt, format);
  call.batch = call.grad.size(0);
  call.classes = call.grad.size(1);
  call.pixels = call.batch * call.classes == 0 ? 0 : call.grad.numel() / (call.batch * call.classes);
  call.channels_last = format != MemoryFormat::Contiguous;
  call.each_pixel = call.grad_output.dim() > 0;
  call.type = floating_dtype(call.grad, "weighted_cross_entropy_backward: grad");
  return call;
}

}  // namespace uf::bindings
