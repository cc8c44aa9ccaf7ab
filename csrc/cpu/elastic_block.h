// From the coordinates of a block straight to its output pixels, for processors that can do it in registers.
#pragma once

#include <cstdint>

#include "cpu/elastic_field.h"
#include "cpu/elastic_sample.h"

namespace uf::warp {

struct BlockArgs {
  const Coordinates<float>* at;
  const void* plane;             // of channel 0
  int64_t stride_y, stride_x;    // elements
  int64_t extent;                // offset of the last pixel of a plane
  int32_t height, width;         // pixels of a plane
  int64_t channels;              // all of which are read
  int64_t in_channel, out_channel;  // bytes from one channel to the next
  Padding padding;
  Fill fill;
  void* out;  // of lane first_lane
  int first_lane, lanes;
};

// False where some coordinate of the block is not finite or too far from the image; the block then has to be sampled by
// way of its taps. That does not depend on the lanes.
using BlockSampler = bool (*)(const BlockArgs& args);

// For planes like this one; null where there is none, or the processor lacks AVX-512.
BlockSampler avx512_block_sampler(Interpolation kind, PixelType type, int64_t element_size, int64_t stride_x,
                                  int64_t width, int64_t extent);

template <class A>
BlockSampler choose_block_sampler(Interpolation kind, PixelType type, int64_t element_size, int64_t stride_x,
                                  int64_t width, int64_t extent) {
  if (sizeof(A) != sizeof(float) || extent * element_size > kLargestOffset) return nullptr;
  return avx512_block_sampler(kind, type, element_size, stride_x, width, extent);
}

}  // namespace uf::warp
