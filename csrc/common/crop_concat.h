// Centre-crop of the skip, concatenated with the up-sampled tensor along the channels: the shapes and the kernels.
#pragma once

#include <cstdint>

#include "common/crop.h"
#include "common/kernel.h"

namespace uf {

enum Dim { kBatch, kChannel, kDepth, kHeight, kWidth, kDims };

// Shapes of one call; 2-D tensors have depth 1. Strides count elements. The layout of the result is dense, either
// (N, C, D, H, W) or, with channels_last, (N, D, H, W, C); inputs may have gaps.
struct CropConcatShape {
  int64_t skip_size[kDims];
  int64_t up_size[kDims];  // batch and the spatial sizes of the result; up_size[kChannel] + skip_size[kChannel] its channels
  int64_t element;         // bytes
  bool channels_last;
};

}  // namespace uf

// On the CPU inputs step by one element along the innermost dimension of the layout; on a GPU that is fastest. No workspace.
//
// out (N, C1 + C2, *s) <- skip (N, C1, *S), up (N, C2, *s). On a GPU a null `up` (and its strides) leaves its channels as
// they are.
UF_KERNEL(crop_concat, const uf::CropConcatShape& shape, const void* skip, const int64_t skip_stride[uf::kDims],
          const void* up, const int64_t up_stride[uf::kDims], void* out)

// grad_skip (N, C1, *S) <- grad (N, C1 + C2, *s): the first C1 channels in the centre, zero around them
UF_KERNEL(crop_concat_backward, const uf::CropConcatShape& shape, const void* grad,
          const int64_t grad_stride[uf::kDims], void* grad_skip)
