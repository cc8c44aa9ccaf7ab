#include "cpu/weighted_cross_entropy.h"

#include "bindings/torch_common.h"

namespace uf::bindings {
namespace {

FloatType float_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return FloatType::kFloat64;
    case ScalarType::Float: return FloatType::kFloat32;
    case ScalarType::Half: return FloatType::kFloat16;
    case ScalarType::BFloat16: return FloatType::kBFloat16;
    default: STD_TORCH_CHECK(false, "weighted_cross_entropy: logits must be float64, float32, float16 or bfloat16");
  }
}

ClassType class_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Long: return ClassType::kInt64;
    case ScalarType::Int: return ClassType::kInt32;
    case ScalarType::Byte: return ClassType::kUInt8;
    default: STD_TORCH_CHECK(false, "weighted_cross_entropy: target must be int64, int32 or uint8");
  }
}

// The step from pixel to pixel when it is the same all over the image, else 0.
int64_t even_step(const Tensor& tensor) {
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

MemoryFormat format_of(const Tensor& tensor) {
  return is_channels_last(tensor) ? channels_last_format(tensor.dim()) : MemoryFormat::Contiguous;
}

std::tuple<Tensor, Tensor> weighted_cross_entropy_cpu(const Tensor& logits_in, const Tensor& target_in,
                                                      std::optional<Tensor> weight_in, int64_t ignore_index,
                                                      int64_t reduction, bool want_grad) {
  const bool even = logits_in.numel() == 0 || even_step(logits_in) != 0;
  const MemoryFormat format = format_of(logits_in);
  const Tensor logits = even ? logits_in : torch::stable::contiguous(logits_in, format);
  const Tensor target = torch::stable::contiguous(target_in);

  WeightedCrossEntropyShape shape;
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
  std::optional<Tensor> weight;
  if (weight_in.has_value()) {
    STD_TORCH_CHECK(weight_in->scalar_type() == wide, "weighted_cross_entropy: weight must be float32 (float64 for "
                                                      "float64 logits)");
    weight = torch::stable::contiguous(*weight_in);
    STD_TORCH_CHECK(weight->numel() == target.numel(), "weighted_cross_entropy: weight must have the shape of target");
  }
  STD_TORCH_CHECK(target.numel() == shape.batch * shape.pixels,
                  "weighted_cross_entropy: target must have the shape of logits without the classes");

  const auto kind = static_cast<Reduction>(reduction);
  Tensor loss = new_tensor(logits, kind == Reduction::kNone ? sizes(target) : std::vector<int64_t>{}, wide);
  Tensor grad = want_grad ? new_tensor(logits, size, type == ScalarType::Half ? wide : type, format)
                          : new_tensor(logits, {0});
  const BadTarget bad = weighted_cross_entropy(
      shape,
      {float_type(logits), class_type(target), logits.const_data_ptr(), target.const_data_ptr(),
       weight ? weight->const_data_ptr() : nullptr, ignore_index, kind, loss.mutable_data_ptr(),
       want_grad ? grad.mutable_data_ptr() : nullptr},
      torch_parallel());
  STD_TORCH_CHECK(!bad.found, "target contains ", bad.value, ", expected classes 0 to ", shape.classes - 1,
                  " or ignore_index (", ignore_index, "); check the labels, or give the network more classes");
  return {loss, grad};
}

Tensor weighted_cross_entropy_backward_cpu(const Tensor& grad_output_in, const Tensor& grad_in) {
  const MemoryFormat format = format_of(grad_in);
  const Tensor grad = torch::stable::contiguous(grad_in, format);
  const Tensor grad_output = torch::stable::contiguous(grad_output_in);
  Tensor out = new_tensor(grad, sizes(grad), std::nullopt, format);
  const int64_t batch = grad.size(0), classes = grad.size(1);
  const int64_t pixels = batch * classes == 0 ? 0 : grad.numel() / (batch * classes);
  weighted_cross_entropy_backward(batch, classes, pixels, format != MemoryFormat::Contiguous, float_type(grad),
                                  grad.const_data_ptr(), grad_output.const_data_ptr(), grad_output.dim() > 0,
                                  out.mutable_data_ptr(), torch_parallel());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unet_fast, CPU, m) {
  m.impl("weighted_cross_entropy", TORCH_BOX(&weighted_cross_entropy_cpu));
  m.impl("weighted_cross_entropy_backward", TORCH_BOX(&weighted_cross_entropy_backward_cpu));
}

}  // namespace uf::bindings
