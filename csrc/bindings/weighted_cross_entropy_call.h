// From tensors to the shape, pointers and outputs of weighted_cross_entropy, for the kernels of every device.
#pragma once

#include "bindings/torch_common.h"
#include "common/cross_entropy_types.h"

namespace uf::bindings {

inline FloatType float_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return FloatType::kFloat64;
    case ScalarType::Float: return FloatType::kFloat32;
    case ScalarType::Half: return FloatType::kFloat16;
    case ScalarType::BFloat16: return FloatType::kBFloat16;
    default: STD_TORCH_CHECK(false, "weighted_cross_entropy: logits must be float64, float32, float16 or bfloat16");
  }
}

inline ClassType class_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Long: return ClassType::kInt64;
    case ScalarType::Int: return ClassType::kInt32;
    case ScalarType::Byte: return ClassType::kUInt8;
    default: STD_TORCH_CHECK(false, "weighted_cross_entropy: target must be int64, int32 or uint8");
  }
}

// The step from pixel to pixel when it is the same all over the image, else 0.
inline int64_t even_step(const Tensor& tensor) {
  int64_t step = 0, next = 0;
  for (int64_t d = tensor.dim() - 1; d >= 2; --d) {
    if (tensor.size(d) == 1) continue;
    if (step == 0)
      step = tensor.stride(d);
    else if (tensor.stride(d) != next)
      return 0;
    next = tensor.stride(d) * tensor.size(d);
  }
  return step == 0 ? 1 : step;
}

inline MemoryFormat format_of(const Tensor& tensor) {
  return is_channels_last(tensor) ? channels_last_format(tensor.dim()) : MemoryFormat::Contiguous;
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
  CrossEntropyCall call;
  const bool even = logits_in.numel() == 0 || even_step(logits_in) != 0;
  const MemoryFormat format = format_of(logits_in);
  const Tensor logits = even ? logits_in : torch::stable::contiguous(logits_in, format);
  const Tensor target = torch::stable::contiguous(target_in);

  WeightedCrossEntropyShape& shape = call.shape;
  const auto size = sizes(logits);
  shape.batch = size[0];
  shape.classes = size[1];
  shape.pixels = 1;
  for (size_t d = 2; d < size.size(); ++d) shape.pixels *= size[d];
  shape.batch_stride = logits.stride(0);
  shape.class_stride = logits.stride(1);
  shape.pixel_stride = even_step(logits);
  shape.grad_class_stride = format == MemoryFormat::Contiguous ? shape.pixels : 1;
  shape.grad_pixel_stride = format == MemoryFormat::Contiguous ? 1 : shape.classes;

  const ScalarType type = logits.scalar_type();
  const ScalarType wide = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  if (weight_in.has_value()) {
    STD_TORCH_CHECK(weight_in->scalar_type() == wide, "weighted_cross_entropy: weight must be float32 (float64 for "
                                                      "float64 logits)");
    call.weight = torch::stable::contiguous(*weight_in);
    STD_TORCH_CHECK(call.weight->numel() == target.numel(),
                    "weighted_cross_entropy: weight must have the shape of target");
  }
  STD_TORCH_CHECK(target.numel() == shape.batch * shape.pixels,
                  "weighted_cross_entropy: target must have the shape of logits without the classes");

  const auto kind = static_cast<Reduction>(reduction);
  call.loss = new_tensor(logits, kind == Reduction::kNone ? sizes(target) : std::vector<int64_t>{}, wide);
  call.grad = want_grad ? new_tensor(logits, size, type == ScalarType::Half ? wide : type, format)
                        : new_tensor(logits, {0});
  call.arguments = {float_type(logits),
                    class_type(target),
                    logits.const_data_ptr(),
                    target.const_data_ptr(),
                    call.weight ? call.weight->const_data_ptr() : nullptr,
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
  FloatType type;
};

inline CrossEntropyBackwardCall cross_entropy_backward_call(const Tensor& grad_output_in, const Tensor& grad_in) {
  CrossEntropyBackwardCall call;
  const MemoryFormat format = format_of(grad_in);
  call.grad = torch::stable::contiguous(grad_in, format);
  call.grad_output = torch::stable::contiguous(grad_output_in);
  call.out = new_tensor(call.grad, sizes(call.grad), std::nullopt, format);
  call.batch = call.grad.size(0);
  call.classes = call.grad.size(1);
  call.pixels = call.batch * call.classes == 0 ? 0 : call.grad.numel() / (call.batch * call.classes);
  call.channels_last = format != MemoryFormat::Contiguous;
  call.each_pixel = call.grad_output.dim() > 0;
  call.type = float_type(call.grad);
  return call;
}

}  // namespace uf::bindings
