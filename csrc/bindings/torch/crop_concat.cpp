#include "common/crop_concat.h"

#include "bindings/device.h"
#include "bindings/shape_checks.h"

namespace uf::bindings {
namespace {

// (N, C, [D,] H, W) as five numbers, with depth 1 for images.
void five(const std::vector<int64_t>& values, int64_t missing, int64_t out[kDims]) {
  out[kBatch] = values[0];
  out[kChannel] = values[1];
  const bool volume = values.size() == 5;
  out[kDepth] = volume ? values[2] : missing;
  out[kHeight] = values[values.size() - 2];
  out[kWidth] = values[values.size() - 1];
}

CropConcatShape shape_of(const std::vector<int64_t>& skip, const Tensor& up, bool channels_last) {
  CropConcatShape shape;
  five(skip, 1, shape.skip_size);
  five(sizes(up), 1, shape.up_size);
  shape.element = static_cast<int64_t>(up.element_size());
  shape.channels_last = channels_last;
  return shape;
}

// What the kernels of this device take: a GPU reads any strides.
Tensor readable(const Tensor& tensor, bool channels_last) { return kOnGpu ? tensor : innermost_dense(tensor, channels_last); }

Tensor crop_concat(const Tensor& skip_in, const Tensor& up_in) {
  checks::crop(skip_in, up_in, "crop_concat");
  const Device device(up_in);
  const bool last = is_channels_last(up_in) && (is_channels_last(skip_in) || skip_in.size(1) == 1);
  const Tensor skip = readable(skip_in, last), up = readable(up_in, last);
  auto size = sizes(up);
  size[1] += skip.size(1);
  const Tensor out = new_tensor(up, size, std::nullopt, dense_format(last, up.dim()));
  int64_t skip_stride[kDims], up_stride[kDims];
  five(strides(skip), 0, skip_stride);
  five(strides(up), 0, up_stride);
  run(device, kernels::crop_concat, shape_of(sizes(skip), up, last), skip.const_data_ptr(), skip_stride,
      up.const_data_ptr(), up_stride, out.mutable_data_ptr());
  return out;
}

Tensor crop_concat_backward(const Tensor& grad_in, int64_t skip_channels, std::vector<int64_t> skip_size) {
  checks::crop_backward(grad_in, skip_channels, skip_size, "crop_concat_backward");
  const Device device(grad_in);
  const bool last = is_channels_last(grad_in);
  const Tensor grad = readable(grad_in, last);
  std::vector<int64_t> full = {grad.size(0), skip_channels};
  full.insert(full.end(), skip_size.begin(), skip_size.end());
  const Tensor grad_skip = new_tensor(grad, full, std::nullopt, dense_format(last, grad.dim()));
  int64_t grad_stride[kDims];
  five(strides(grad), 0, grad_stride);
  run(device, kernels::crop_concat_backward, shape_of(full, grad, last), grad.const_data_ptr(), grad_stride,
      grad_skip.mutable_data_ptr());
  return grad_skip;
}

}  // namespace

UF_OPERATOR(crop_concat, crop_concat)
UF_OPERATOR(crop_concat_backward, crop_concat_backward)

}  // namespace uf::bindings
