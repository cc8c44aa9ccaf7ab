#include "common/norm_activation.h"

#include "bindings/device.h"
#include "bindings/shape_checks.h"

namespace uf::bindings {
namespace {

// Of a dense map; the numbers of the channels stay alive with it.
struct NormActivationCall {
  NormActivationShape shape;
  std::optional<Tensor> weight, bias, slope;

  NormActivationChannels channels() const { return {data_or_null(weight), data_or_null(bias), data_or_null(slope)}; }
};

NormActivationCall call_of(const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                           const std::optional<Tensor>& slope, int64_t groups, double eps, int64_t activation,
                           double negative, bool fixed) {
  checks::rank(x, 2, 5, "norm_activation: x");
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(groups >= 0 && (groups == 0 || channels % groups == 0) && !(fixed && groups != 0),
                  "norm_activation: ", groups, " groups do not divide ", channels, " channels");
  STD_TORCH_CHECK(activation >= 0 && activation <= 3, "norm_activation: there is no activation ", activation);
  NormActivationCall call;
  call.shape = {x.size(0), channels, pixels_of(x), groups, is_channels_last(x), fixed, static_cast<Activation>(activation),
                eps, negative};
  call.weight = dense_wide(weight, x, channels, "norm_activation: weight");
  call.bias = dense_wide(bias, x, channels, "norm_activation: bias");
  call.slope = dense_wide(slope, x, channels, "norm_activation: slope");
  return call;
}

Tensor workspace_of(const Tensor& like, int64_t doubles) { return new_tensor(like, {doubles}, ScalarType::Double); }

std::tuple<Tensor, Tensor, Tensor> norm_activation(const Tensor& x_in, std::optional<Tensor> weight,
                                                   std::optional<Tensor> bias, std::optional<Tensor> slope,
                                                   std::optional<Tensor> mean_in, std::optional<Tensor> var_in,
                                                   int64_t groups, double eps, int64_t activation, double negative) {
  const Device device(x_in);
  const bool fixed = mean_in.has_value();
  STD_TORCH_CHECK(fixed == var_in.has_value(), "norm_activation: mean and var come together");
  const Tensor x = torch::stable::contiguous(x_in, dense_format(x_in));
  const NormActivationCall call = call_of(x, weight, bias, slope, groups, eps, activation, negative, fixed);
  const Tensor y = new_tensor(x, sizes(x), std::nullopt, dense_format(x_in));
  const Tensor mean = new_tensor(x, {fixed ? 0 : call.shape.sets()}, wide_type(x)), var = new_tensor(x, sizes(mean), wide_type(x));
  const std::optional<Tensor> given_mean = dense_wide(mean_in, x, call.shape.channels, "norm_activation: mean");
  const std::optional<Tensor> given_var = dense_wide(var_in, x, call.shape.channels, "norm_activation: var");
  void* means = fixed ? const_cast<void*>(given_mean->const_data_ptr()) : mean.mutable_data_ptr();
  void* vars = fixed ? const_cast<void*>(given_var->const_data_ptr()) : var.mutable_data_ptr();
  const DType type = floating_dtype(x, "norm_activation: x");
  const Tensor workspace = workspace_of(x, kernels::norm_activation_workspace(call.shape, type, x.const_data_ptr(), y.const_data_ptr(),
                                                                              nullptr, false));
  run(device, kernels::norm_activation, call.shape, type, x.const_data_ptr(), call.channels(), means, vars, y.mutable_data_ptr(),
      static_cast<double*>(workspace.mutable_data_ptr()));
  return {y, mean, var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_activation_backward(
    const Tensor& grad_in, const Tensor& x_in, std::optional<Tensor> weight, std::optional<Tensor> bias,
    std::optional<Tensor> slope, const Tensor& mean_in, const Tensor& var_in, int64_t groups, double eps, int64_t activation,
    double negative, bool fixed) {
  const Device device(x_in);
  checks::same_shape(grad_in, x_in, "norm_activation_backward");
  checks::same_dtype(grad_in, x_in, "norm_activation_backward");
  const MemoryFormat format = dense_format(x_in);
  const Tensor x = torch::stable::contiguous(x_in, format), grad = torch::stable::contiguous(grad_in, format);
  const NormActivationCall call = call_of(x, weight, bias, slope, groups, eps, activation, negative, fixed);
  const Tensor mean = *dense_wide(mean_in, x, call.shape.sets(), "norm_activation_backward: mean");
  const Tensor var = *dense_wide(var_in, x, call.shape.sets(), "norm_activation_backward: var");
  const Tensor grad_x = new_tensor(x, sizes(x), std::nullopt, format);
  const auto of_channels = [&](bool want) { return new_tensor(x, {want ? call.shape.channels : 0}, wide_type(x)); };
  const Tensor grad_weight = of_channels(weight.has_value()), grad_bias = of_channels(bias.has_value());
  const Tensor grad_slope = of_channels(slope.has_value());
  const auto pointer = [](const Tensor& tensor, bool want) { return want ? tensor.mutable_data_ptr() : nullptr; };
  const DType type = floating_dtype(x, "norm_activation_backward: x");
  const Tensor workspace = workspace_of(x, kernels::norm_activation_workspace(call.shape, type, grad.const_data_ptr(), x.const_data_ptr(),
                                                                              grad_x.const_data_ptr(), true));
  run(device, kernels::norm_activation_backward, call.shape, type, grad.const_data_ptr(), x.const_data_ptr(), call.channels(),
      mean.const_data_ptr(), var.const_data_ptr(), grad_x.mutable_data_ptr(), pointer(grad_weight, weight.has_value()),
      pointer(grad_bias, bias.has_value()), pointer(grad_slope, slope.has_value()),
      static_cast<double*>(workspace.mutable_data_ptr()));
  return {grad_x, grad_weight, grad_bias, grad_slope};
}

}  // namespace

UF_OPERATOR(norm_activation, norm_activation)
UF_OPERATOR(norm_activation_backward, norm_activation_backward)

}  // namespace uf::bindings
