// The shape of a 2x2, stride-2 transposed convolution, for the kernels of every device.
#pragma once

#include <cstdint>

namespace uf {

// `channels` are those of the result; height and width are those of the input.
struct UpConvShape {
  int64_t batch, channels, height, width;
  bool channels_last;
};

}  // namespace uf
