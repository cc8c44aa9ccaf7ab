// elastic_warp from tensors to the kernels' arguments, for the CPU and the GPU.
#pragma once

#include <algorithm>

#include "bindings/shape_checks.h"
#include "bindings/tensor.h"
#include "common/warp_pixel.h"
#include "common/warp_types.h"

namespace uf::bindings {

// Holds what the frame points to.
struct WarpFrameCall {
  Tensor displacement;
  std::optional<Tensor> matrix;
  WarpFrame frame;

  WarpFrameCall(int64_t height, int64_t width, const Tensor& displacement_in, const std::optional<Tensor>& matrix_in,
                int64_t field, int64_t padding, bool wide)
      : displacement(torch::stable::contiguous(displacement_in)), frame{} {
    if (matrix_in) matrix = torch::stable::contiguous(*matrix_in);
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
  }

 private:
  static Reals reals(const Tensor& tensor) {
    return {tensor.const_data_ptr(), tensor.scalar_type() == ScalarType::Double};
  }
};

// Allocates the outputs.
struct WarpImagesCall {
  std::vector<Tensor> outputs;
  std::vector<WarpImage> images;
  bool wide = false;

  WarpImagesCall(const std::vector<Tensor>& inputs, const std::vector<int64_t>& output_size,
                 const std::vector<int64_t>& interpolation, const std::vector<double>& fill) {
    checks::warp_images(inputs, interpolation, true);
    checks::warp_outputs(inputs.size(), output_size, fill);
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
      image.type = dtype_of(input);
      image.element_size = static_cast<int64_t>(input.element_size());
      image.interpolation = static_cast<Interpolation>(interpolation[i]);
      STD_TORCH_CHECK(warp::can_interpolate(image.type) || interpolation[i] == 0,
                      "elastic_warp: integers of more than 16 bits are not interpolated");
      image.fill = fill[i];
      wide = wide || image.type == DType::kFloat64;
      images.push_back(image);
    }
  }
};

}  // namespace uf::bindings
