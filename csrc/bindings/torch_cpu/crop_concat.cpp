#include "cpu/crop_concat.h"

#include "bindings/torch_common.h"

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

// The tensor itself where it steps by one element along the innermost dimension of the layout, else a copy that does.
Tensor innermost_dense(const Tensor& tensor, bool channels_last) {
  const int64_t dim = channels_last ? 1 : tensor.dim() - 1;
  if (tensor.size(dim) <= 1 || tensor.stride(dim) == 1) return tensor;
  return torch::stable::contiguous(
      tensor, channels_last ? channels_last_format(tensor.dim()) : MemoryFormat::Contiguous);
}

Tensor crop_concat_cpu(const Tensor& skip_in, const Tensor& up_in) {
  CropConcatShape shape;
  shape.channels_last = is_channels_last(up_in) && (is_channels_last(skip_in) || skip_in.size(1) == 1);
  const Tensor skip = innermost_dense(skip_in, shape.channels_last), up = innermost_dense(up_in, shape.channels_last);
  auto size = sizes(up);
  five(sizes(skip), 1, shape.skip_size);
  five(size, 1, shape.up_size);
  shape.element = static_cast<int64_t>(skip.element_size());
  size[1] += shape.skip_size[kChannel];
  Tensor out = new_tensor(up, size, std::nullopt,
                          shape.channels_last ? channels_last_format(up.dim()) : MemoryFormat::Contiguous);
  int64_t skip_stride[kDims], up_stride[kDims];
  five(strides(skip), 0, skip_stride);
  five(strides(up), 0, up_stride);
  crop_concat(shape, skip.const_data_ptr(), skip_stride, up.const_data_ptr(), up_stride, out.mutable_data_ptr(),
              torch_parallel());
  return out;
}

Tensor crop_concat_backward_cpu(const Tensor& grad_in, int64_t skip_channels, std::vector<int64_t> skip_size) {
  CropConcatShape shape;
  shape.channels_last = is_channels_last(grad_in);
  const Tensor grad = innermost_dense(grad_in, shape.channels_last);
  std::vector<int64_t> full = {grad.size(0), skip_channels};
  full.insert(full.end(), skip_size.begin(), skip_size.end());
  five(full, 1, shape.skip_size);
  five(sizes(grad), 1, shape.up_size);
  shape.element = static_cast<int64_t>(grad.element_size());
  Tensor grad_skip = new_tensor(grad, full, std::nullopt,
                                shape.channels_last ? channels_last_format(grad.dim()) : MemoryFormat::Contiguous);
  int64_t grad_stride[kDims];
  five(strides(grad), 0, grad_stride);
  crop_concat_backward(shape, grad.const_data_ptr(), grad_stride, grad_skip.mutable_data_ptr(), torch_parallel());
  return grad_skip;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unet_fast, CPU, m) {
  m.impl("crop_concat", TORCH_BOX(&crop_concat_cpu));
  m.impl("crop_concat_backward", TORCH_BOX(&crop_concat_backward_cpu));
}

}  // namespace uf::bindings
