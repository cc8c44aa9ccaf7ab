#include "cpu/elastic_warp.h"

#include "bindings/elastic_warp_call.h"

namespace uf::bindings {
namespace {

std::vector<Tensor> elastic_warp_cpu(std::vector<Tensor> inputs, const Tensor& displacement,
                                     std::optional<Tensor> matrix, std::vector<int64_t> output_size,
                                     std::vector<int64_t> interpolation, std::vector<double> fill, int64_t field,
                                     int64_t padding) {
  const WarpImagesCall call(inputs, output_size, interpolation, fill);
  checks::warp_frame(inputs[0].size(0), inputs[0].size(2), inputs[0].size(3), displacement, matrix, field, padding);
  const WarpFrameCall frame(inputs[0].size(2), inputs[0].size(3), displacement, matrix, field, padding, call.wide);
  elastic_warp(frame.frame, call.images.data(), static_cast<int>(call.images.size()), torch_parallel());
  return call.outputs;
}

std::vector<Tensor> elastic_warp_backward_cpu(std::vector<Tensor> grads, const Tensor& displacement,
                                              std::optional<Tensor> matrix, std::vector<int64_t> input_size,
                                              std::vector<int64_t> interpolation, int64_t field, int64_t padding,
                                              bool /* deterministic: it always is */) {
  checks::warp_images(grads, interpolation, false);
  checks::sides(input_size, 1, checks::kLargestSide, checks::kLargestSide, "elastic_warp_backward: input_size");
  checks::warp_frame(grads[0].size(0), input_size[0], input_size[1], displacement, matrix, field, padding);
  const int64_t height = input_size[0], width = input_size[1];
  std::vector<Tensor> results;
  std::vector<WarpGradient> gradients;
  for (size_t i = 0; i < grads.size(); ++i) {
    grads[i] = torch::stable::contiguous(grads[i]);
    const Tensor& grad = grads[i];
    results.push_back(new_tensor(grad, {grad.size(0), grad.size(1), height, width}));
    gradients.push_back({grad.const_data_ptr(), grad.size(1), grad.size(2), grad.size(3),
                         results.back().mutable_data_ptr(), static_cast<Interpolation>(interpolation[i])});
  }
  const bool wide = grads[0].scalar_type() == ScalarType::Double;
  const WarpFrameCall frame(height, width, displacement, matrix, field, padding, wide);
  elastic_warp_backward(frame.frame, gradients.data(), static_cast<int>(gradients.size()), torch_parallel());
  return results;
}

}  // namespace

UF_OPERATOR_ON(CPU, elastic_warp, elastic_warp_cpu)
UF_OPERATOR_ON(CPU, elastic_warp_backward, elastic_warp_backward_cpu)

}  // namespace uf::bindings
