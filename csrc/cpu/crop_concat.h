// Centre-crop of the skip, concatenated with the up-sampled tensor along the channels.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"

namespace uf {

enum Dim { kBatch, kChannel, kDepth, kHeight, kWidth, kDims };

// Shapes of one call; 2-D tensors have depth 1. Strides count elements. The layout of the result is dense, either
// (N, C, D, H, W) or, with channels_last, (N, D, H, W, C); inputs may have gaps but step by one element along the
// innermost dimension of that layout.
struct CropConcatShape {
  int64_t skip_size[kDims];
  int64_t up_size[kDims];  // batch and the spatial sizes of the result; up_size[kChannel] + skip_size[kChannel] its channels
  int64_t element;         // bytes
  bool channels_last;
};

// out (N, C1 + C2, *s) <- skip (N, C1, *S), up (N, C2, *s)
void crop_concat(const CropConcatShape& shape, const void* skip, const int64_t skip_stride[kDims], const void* up,
                 const int64_t up_stride[kDims], void* out, const Parallel& parallel);

// grad_skip (N, C1, *S) <- grad (N, C1 + C2, *s): the first C1 channels in the centre, zero around them
void crop_concat_backward(const CropConcatShape& shape, const void* grad, const int64_t grad_stride[kDims],
                          void* grad_skip, const Parallel& parallel);

}  // namespace uf
