#include "cpu/head_cross_entropy.h"

#include "bindings/head_cross_entropy_call.h"

namespace uf::bindings {
namespace {

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

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

Result head_cross_entropy_cpu(const Tensor& features, std::optional<Tensor> feature_bias, bool relu, const Tensor& weight,
                              std::optional<Tensor> bias, const Tensor& target, std::optional<Tensor> pixel_weight,
                              int64_t ignore_index, int64_t reduction, bool want_grad) {
  HeadCrossEntropyCall call = head_cross_entropy_call(features, feature_bias, relu, weight, bias, target, pixel_weight,
                                                      ignore_index, reduction, want_grad);
  const int64_t k = call.shape.classes, c = call.shape.channels;
  std::vector<double> gradients(static_cast<size_t>(want_grad ? k * c + k + c : 0));
  double* sums = gradients.data();
  call.arguments.grad_weight = sums;
  call.arguments.grad_bias = sums + k * c;
  call.arguments.grad_feature_bias = sums + k * c + k;
  const BadTarget bad = head_cross_entropy(call.shape, call.arguments, torch_parallel());
  UF_CHECK_INPUT(!bad.found, "target contains ", bad.value, ", expected classes 0 to ", k - 1, " or ignore_index (",
                  ignore_index, "); check the labels, or give the network more classes");
  if (!want_grad) {
    const auto none = [&] { return new_tensor(features, {0}, wide_type(features)); };
    return {call.loss, call.grad_features, none(), none(), none()};
  }
  return {call.loss, call.grad_features, from_doubles(features, {c}, sums + k * c + k),
          from_doubles(features, {k, c}, sums), from_doubles(features, {k}, sums + k * c)};
}

}  // namespace

UF_OPERATOR_ON(CPU, head_cross_entropy, head_cross_entropy_cpu)

}  // namespace uf::bindings
