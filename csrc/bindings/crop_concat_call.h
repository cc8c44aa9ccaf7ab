// From tensors to the shapes, strides and outputs of crop_concat, for the kernels of every device.
#pragma once

#include "bindings/torch_common.h"
#include "common/crop.h"

namespace uf::bindings {

// (N, C, [D,] H, W) as five numbers, with depth 1 for images.
inline void five(const std::vector<int64_t>& values, int64_t missing, int64_t out[kDims]) {
  out[kBatch] = values[0];
  out[kChannel] = values[1];
  const bool volume = values.size() == 5;
  out[kDepth] = volume ? values[2] : missing;
  out[kHeight] = values[values.size() - 2];
  out[kWidth] = values[values.size() - 1];
}

inline MemoryFormat dense_format(bool channels_last, int64_t dims) {
  return channels_last ? channels_last_format(dims) : MemoryFormat::Contiguous;
}

// The rule that the fake kernel in unet_fast/ops/crop_concat.py repeats.
inline bool concat_is_channels_last(const Tensor& skip, const Tensor& up) {
  return is_channels_last(up) && (is_channels_last(skip) || skip.size(1) == 1);
}

struct CropConcatCall {
  CropConcatShape shape;
  int64_t skip_stride[kDims], up_stride[kDims];
  Tensor out;
};

inline CropConcatCall crop_concat_call(const Tensor& skip, const Tensor& up, bool channels_last) {
  CropConcatCall call;
  auto size = sizes(up);
  five(sizes(skip), 1, call.shape.skip_size);
  five(size, 1, call.shape.up_size);
  five(strides(skip), 0, call.skip_stride);
  five(strides(up), 0, call.up_stride);
  call.shape.element = static_cast<int64_t>(skip.element_size());
  call.shape.channels_last = channels_last;
  size[1] += call.shape.skip_size[kChannel];
  call.out = new_tensor(up, size, std::nullopt, dense_format(channels_last, up.dim()));
  return call;
}

struct CropConcatBackwardCall {
  CropConcatShape shape;
  int64_t grad_stride[kDims];
  Tensor grad_skip;
};

inline CropConcatBackwardCall crop_concat_backward_call(const Tensor& grad, int64_t skip_channels,
                                                        const std::vector<int64_t>& skip_size, bool channels_last) {
  CropConcatBackwardCall call;
  std::vector<int64_t> full = {grad.size(0), skip_channels};
  full.insert(full.end(), skip_size.begin(), skip_size.end());
  five(full, 1, call.shape.skip_size);
  five(sizes(grad), 1, call.shape.up_size);
  five(strides(grad), 0, call.grad_stride);
  call.shape.element = static_cast<int64_t>(grad.element_size());
  call.shape.channels_last = channels_last;
  call.grad_skip = new_tensor(grad, full, std::nullopt, dense_format(channels_last, grad.dim()));
  return call;
}

}  // namespace uf::bindings
