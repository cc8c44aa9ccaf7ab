#include "cuda/head_cross_entropy.h"

#include "bindings/head_cross_entropy_call.h"
#include "bindings/tensor_cuda.h"

namespace uf::bindings {
namespace {

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Result head_cross_entropy_cuda(const Tensor& features, std::optional<Tensor> feature_bias, bool relu,
                               const Tensor& weight, std::optional<Tensor> bias, const Tensor& target,
                               std::optional<Tensor> pixel_weight, int64_t ignore_index, int64_t reduction,
                               bool want_grad) {
  const OnDevice device(features);
  const HeadCrossEntropyCall call = head_cross_entropy_call(features, feature_bias, relu, weight, bias, target,
                                                            pixel_weight, ignore_index, reduction, want_grad);
  const int64_t k = call.shape.classes, c = call.shape.channels;
  STD_TORCH_CHECK(cuda::head_cross_entropy_fits(call.shape, call.arguments.float_type), "head_cross_entropy: ", k,
                  " classes of ", c, " channels do not fit the registers of a GPU; use a convolution and "
                  "weighted_cross_entropy");
  const auto gradient = [&](const std::vector<int64_t>& shape) {
    return new_tensor(features, want_grad ? shape : std::vector<int64_t>{0}, wide_type(features));
  };
  const Tensor grad_feature_bias = gradient({c}), grad_weight = gradient({k, c}), grad_bias = gradient({k});
  const Tensor workspace =
      new_tensor(features, {cuda::head_cross_entropy_workspace(call.shape, call.arguments)}, ScalarType::Double);
  STD_CUDA_CHECK(cuda::head_cross_entropy(
      call.shape, call.arguments,
      {grad_weight.mutable_data_ptr(), grad_bias.mutable_data_ptr(), grad_feature_bias.mutable_data_ptr()},
      static_cast<double*>(workspace.mutable_data_ptr()), device.stream()));
  return {call.loss, call.grad_features, grad_feature_bias, grad_weight, grad_bias};
}

}  // namespace

UF_OPERATOR_ON(CUDA, head_cross_entropy, head_cross_entropy_cuda)

}  // namespace uf::bindings
