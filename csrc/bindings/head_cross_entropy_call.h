// From tensors to the shape, pointers and outputs of head_cross_entropy, for the kernels of every device.
#pragma once

#include "bindings/tensor.h"
#include "bindings/weighted_cross_entropy_call.h"
#include "common/head_cross_entropy_types.h"

namespace uf::bindings {

// The tensors that the pointers of `arguments` point into. The gradients of the parameters are the caller's.
struct HeadCrossEntropyCall {
  Tensor features, weight, target, loss, grad_features;
  std::optional<Tensor> feature_bias, bias, pixel_weight;
  HeadCrossEntropyShape shape;
  HeadCrossEntropyArguments arguments;
};

inline HeadCrossEntropyCall head_cross_entropy_call(const Tensor& features_in,
                                                    const std::optional<Tensor>& feature_bias, bool relu,
                                                    const Tensor& weight, const std::optional<Tensor>& bias,
                                                    const Tensor& target, const std::optional<Tensor>& pixel_weight,
                                                    int64_t ignore_index, int64_t reduction, bool want_grad) {
  checks::cross_entropy(features_in, reduction, "head_cross_entropy");
  STD_TORCH_CHECK(reduction != static_cast<int64_t>(Reduction::kNone) && weight.dim() >= 2 && weight.size(1) == features_in.size(1),
                  "head_cross_entropy: weight must have the shape (K, C, ...), and the reduction give one number");
  HeadCrossEntropyCall call;
  const MemoryFormat format = dense_format(features_in);
  // pixels that step evenly (channels last) or are dense (planar)
  const int64_t step = features_in.numel() == 0 ? 1 : even_step(features_in);
  const bool fits = format == MemoryFormat::Contiguous ? step == 1 : step != 0;
  const Tensor features = fits ? features_in : torch::stable::contiguous(features_in, format);
  const auto size = sizes(features);
  HeadCrossEntropyShape& shape = call.shape;
  shape.batch = size[0];
  shape.channels = size[1];
  shape.classes = weight.size(0);
  shape.pixels = pixels_of(features);
  shape.batch_stride = features.stride(0);
  shape.channel_stride = features.stride(1);
  shape.pixel_stride = even_step(features);
  shape.channels_last = format != MemoryFormat::Contiguous;

  call.features = features;
  call.weight = *dense_wide(weight, features, shape.classes * shape.channels, "head_cross_entropy: weight");
  call.feature_bias = dense_wide(feature_bias, features, shape.channels, "head_cross_entropy: feature_bias");
  call.bias = dense_wide(bias, features, shape.classes, "head_cross_entropy: bias");
  call.pixel_weight = dense_wide(pixel_weight, features, shape.batch * shape.pixels, "head_cross_entropy: pixel_weight");
  call.target = torch::stable::contiguous(target);
  STD_TORCH_CHECK(call.target.numel() == shape.batch * shape.pixels,
                  "head_cross_entropy: target must have the shape of features without the channels");

  const ScalarType wide = wide_type(features), type = features.scalar_type();
  call.loss = new_tensor(features, {}, wide);
  call.grad_features = want_grad ? new_tensor(features, size, type == ScalarType::Half ? wide : type, format)
                                 : new_tensor(features, {0});
  // gradients of no elements have no memory, yet the weights' are wanted: any address says so
  void* grad = call.grad_features.numel() ? call.grad_features.mutable_data_ptr() : call.loss.mutable_data_ptr();
  call.arguments = {floating_dtype(features, "head_cross_entropy: features"),
                    class_type(call.target, "head_cross_entropy: target"),
                    features.const_data_ptr(),
                    data_or_null(call.feature_bias),
                    relu,
                    call.weight.const_data_ptr(),
                    data_or_null(call.bias),
                    call.target.const_data_ptr(),
                    data_or_null(call.pixel_weight),
                    ignore_index,
                    static_cast<Reduction>(reduction),
                    call.loss.mutable_data_ptr(),
                    want_grad ? grad : nullptr,
                    nullptr,
                    nullptr,
                    nullptr};
  return call;
}

}  // namespace uf::bindings
