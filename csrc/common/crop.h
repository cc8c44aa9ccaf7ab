// The shapes of a centre crop followed by a concatenation, and where such a crop starts.
#pragma once

#include <cstdint>

#include "common/macros.h"

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

// An odd difference leaves the extra pixel behind the crop, for every dimension alike.
UF_HD_INLINE int64_t crop_start(int64_t full, int64_t crop) { return (full - crop) / 2; }

}  // namespace uf
