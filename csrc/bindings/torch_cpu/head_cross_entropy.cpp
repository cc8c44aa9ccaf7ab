#include "cpu/head_cross_entropy.h"

#include "bindings/junction_call.h"
#include "bindings/weighted_cross_entropy_call.h"

namespace uf::bindings {
namespace {

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// A wide, dense tensor of `count` numbers.
std::optional<Tensor> wide_dense(const std::optional<Tensor>& tensor, const Tensor& features, int64_t count,
                                 const char* name) {
  if (!tensor.has_value()) return std::nullopt;
  STD_TORCH_CHECK(tensor->scalar_type() == wide_type(features) && tensor->numel() == count, "head_cross_entropy: ", name,
                  " must hold ", count, " float32 numbers (float64 for float64 features)");
  return torch::stable::contiguous(*tensor);
}

Tensor from_doubles(const Tensor& like, const std::vector<int64_t>& shape, const double* values) {
  const Tensor out = new_tensor(like, shape, wide_type(like));
  for (int64_t i = 0; i < out.numel(); ++i) {
    if (out.scalar_type() == ScalarType::Double)
      static_cast<double*>(out.mutable_data_ptr())[i] = values[i];
    else
      static_cast<float*>(out.mutable_data_ptr())[i] = static_cast<float>(values[i]);
  }
  return out;
}

Result head_cross_entropy_cpu(const Tensor& features_in, std::optional<Tensor> feature_bias_in, bool relu,
                              const Tensor& weight_in, std::optional<Tensor> bias_in, const Tensor& target_in,
                              std::optional<Tensor> pixel_weight_in, int64_t ignore_index, int64_t reduction,
                              bool want_grad) {
  const MemoryFormat format = format_of(features_in);
  // pixels that step evenly (channels last) or are dense (planar)
  const int64_t step = features_in.numel() == 0 ? 1 : even_step(features_in);
  const bool fits = format == MemoryFormat::Contiguous ? step == 1 : step != 0;
  const Tensor features = fits ? features_in : torch::stable::contiguous(features_in, format);
  const auto size = sizes(features);
  HeadCrossEntropyShape shape;
  shape.batch = size[0];
  shape.channels = size[1];
  shape.classes = weight_in.size(0);
  shape.pixels = 1;
  for (size_t d = 2; d < size.size(); ++d) shape.pixels *= size[d];
  shape.batch_stride = features.stride(0);
  shape.channel_stride = features.stride(1);
  shape.pixel_stride = even_step(features);
  shape.channels_last = format != MemoryFormat::Contiguous;

  const int64_t k = shape.classes, c = shape.channels;
  const Tensor weight = *wide_dense(weight_in, features, k * c, "weight");
  const auto feature_bias = wide_dense(feature_bias_in, features, c, "feature_bias");
  const auto bias = wide_dense(bias_in, features, k, "bias");
  const auto pixel_weight = wide_dense(pixel_weight_in, features, shape.batch * shape.pixels, "pixel_weight");
  const Tensor target = torch::stable::contiguous(target_in);
  STD_TORCH_CHECK(target.numel() == shape.batch * shape.pixels,
                  "head_cross_entropy: target must have the shape of features without the channels");

  const ScalarType wide = wide_type(features);
  const Tensor loss = new_tensor(features, {}, wide);
  const Tensor grad_features =
      want_grad ? new_tensor(features, size, features.scalar_type() == ScalarType::Half ? wide : features.scalar_type(),
                             format)
                : new_tensor(features, {0});
  std::vector<double> gradients(static_cast<size_t>(want_grad ? k * c + k + c : 0));
  double* sums = gradients.data();
  // gradients of no elements have no memory, yet the weights' are wanted: any address says so
  void* grad_data = want_grad ? (grad_features.numel() ? grad_features.mutable_data_ptr() : sums) : nullptr;
  const HeadCrossEntropyArguments arguments = {element_type(features, "head_cross_entropy"),
                                               class_type(target),
                                               features.const_data_ptr(),
                                               data_or_null(feature_bias),
                                               relu,
                                               weight.const_data_ptr(),
                                               data_or_null(bias),
                                               target.const_data_ptr(),
                                               data_or_null(pixel_weight),
                                               ignore_index,
                                               static_cast<Reduction>(reduction),
                                               loss.mutable_data_ptr(),
                                               grad_data,
                                               sums,
                                               sums + k * c,
                                               sums + k * c + k};
  const BadTarget bad = head_cross_entropy(shape, arguments, torch_parallel());
  STD_TORCH_CHECK(!bad.found, "target contains ", bad.value, ", expected classes 0 to ", k - 1, " or ignore_index (",
                  ignore_index, "); check the labels, or give the network more classes");
  if (!want_grad) {
    const auto none = [&] { return new_tensor(features, {0}, wide); };
    return {loss, grad_features, none(), none(), none()};
  }
  return {loss, grad_features, from_doubles(features, {c}, sums + k * c + k), from_doubles(features, {k, c}, sums),
          from_doubles(features, {k}, sums + k * c)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unet_fast, CPU, m) { m.impl("head_cross_entropy", TORCH_BOX(&head_cross_entropy_cpu)); }

}  // namespace uf::bindings
