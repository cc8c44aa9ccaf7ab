// Shapes of the fused junctions of a U-Net, for the kernels of every device. Sizes and strides count elements.
#pragma once

#include <cstdint>

#include "common/crop.h"
#include "common/dtype.h"

namespace uf {

// All images of one call have the same dense layout, (N, C, H, W) or, with channels_last, (N, H, W, C); strided ones
// step by one element along its innermost dimension.
struct ImageStride {
  int64_t batch, channel, y, x;
};

// x (N, C, H, W) -> pooled (N, C, H / 2, W / 2); buffer (N, buffer_channels, skip_height, skip_width), whose first C
// channels receive the centre of relu(x + bias); code (N, C, ceil(H / 2), ceil(W / 2)) bytes, see PoolWindow.
struct ReluPoolSkipShape {
  int64_t batch, channels, height, width;
  int64_t skip_height, skip_width, buffer_channels;
  bool channels_last;

  UF_HD_INLINE int64_t pooled_height() const { return height / 2; }
  UF_HD_INLINE int64_t pooled_width() const { return width / 2; }
  UF_HD_INLINE int64_t code_height() const { return (height + 1) / 2; }
  UF_HD_INLINE int64_t code_width() const { return (width + 1) / 2; }
  UF_HD_INLINE int64_t skip_top() const { return crop_start(height, skip_height); }
  UF_HD_INLINE int64_t skip_left() const { return crop_start(width, skip_width); }
};

// y = relu(x + bias[c]) of a dense image or volume; `pixels` counts those of one channel plane.
struct BiasReluShape {
  int64_t batch, channels, pixels;
  bool channels_last;
};

// Element (n, c, y, x) of a dense image.
UF_HD_INLINE ImageStride dense_stride(int64_t channels, int64_t height, int64_t width, bool channels_last) {
  if (channels_last) return {height * width * channels, 1, width * channels, channels};
  return {channels * height * width, height * width, width, 1};
}

}  // namespace uf
