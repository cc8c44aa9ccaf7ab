#include "cpu/elastic_warp.h"

#include "bindings/torch_common.h"

namespace uf::bindings {
namespace {

PixelType type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return PixelType::kHalf;
    case ScalarType::BFloat16: return PixelType::kBFloat16;
    case ScalarType::Float: return PixelType::kFloat;
    case ScalarType::Double: return PixelType::kDouble;
    default: return PixelType::kInteger;
  }
}

Reals reals(const Tensor& tensor) { return {tensor.const_data_ptr(), tensor.scalar_type() == ScalarType::Double}; }

// The tensors must outlive the frame. Both are contiguous.
WarpFrame make_frame(int64_t height, int64_t width, const Tensor& displacement, const std::optional<Tensor>& matrix,
                     int64_t field, int64_t padding, bool wide) {
  WarpFrame frame{};
  frame.batch = displacement.size(0);
  frame.height = height;
  frame.width = width;
  frame.displacement = reals(displacement);
  frame.grid_height = displacement.size(2);
  frame.grid_width = displacement.size(3);
  frame.matrix = matrix ? reals(*matrix) : Reals{nullptr, false};
  frame.field = static_cast<Field>(field);
  frame.padding = static_cast<Padding>(padding);
  frame.wide = wide;
  return frame;
}

std::vector<Tensor> elastic_warp_cpu(std::vector<Tensor> inputs, const Tensor& displacement_in,
                                     std::optional<Tensor> matrix, std::vector<int64_t> output_size,
                                     std::vector<int64_t> interpolation, std::vector<double> fill, int64_t field,
                                     int64_t padding) {
  const Tensor displacement = torch::stable::contiguous(displacement_in);
  if (matrix) matrix = torch::stable::contiguous(*matrix);
  bool wide = false;
  std::vector<Tensor> outputs;
  std::vector<WarpImage> images;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor& input = inputs[i];
    const std::vector<int64_t> stride = strides(input);
    WarpImage image{};
    image.out_height = output_size[2 * i];
    image.out_width = output_size[2 * i + 1];
    outputs.push_back(new_tensor(input, {input.size(0), input.size(1), image.out_height, image.out_width}));
    image.input = input.const_data_ptr();
    image.channels = input.size(1);
    std::copy(stride.begin(), stride.end(), image.stride);
    image.output = outputs.back().mutable_data_ptr();
    image.type = type_of(input);
    image.element_size = static_cast<int64_t>(input.element_size());
    image.interpolation = static_cast<Interpolation>(interpolation[i]);
    image.fill = fill[i];
    wide = wide || image.type == PixelType::kDouble;
    images.push_back(image);
  }
  const WarpFrame frame =
      make_frame(inputs[0].size(2), inputs[0].size(3), displacement, matrix, field, padding, wide);
  elastic_warp(frame, images.data(), static_cast<int>(images.size()), torch_parallel());
  return outputs;
}

std::vector<Tensor> elastic_warp_backward_cpu(std::vector<Tensor> grads, const Tensor& displacement_in,
                                              std::optional<Tensor> matrix, std::vector<int64_t> input_size,
                                              std::vector<int64_t> interpolation, int64_t field, int64_t padding) {
  const Tensor displacement = torch::stable::contiguous(displacement_in);
  if (matrix) matrix = torch::stable::contiguous(*matrix);
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
  const WarpFrame frame = make_frame(height, width, displacement, matrix, field, padding, wide);
  elastic_warp_backward(frame, gradients.data(), static_cast<int>(gradients.size()), torch_parallel());
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unet_fast, CPU, m) {
  m.impl("elastic_warp", TORCH_BOX(&elastic_warp_cpu));
  m.impl("elastic_warp_backward", TORCH_BOX(&elastic_warp_backward_cpu));
}

}  // namespace uf::bindings
