// The way of most blocks on processors with AVX-512: from the field to the pixels below and the rest of each coordinate,
// once for all images, then to the output in registers.
#pragma once

#include <cstdint>

#include "cpu/elastic_field.h"
#include "cpu/elastic_sample.h"

namespace uf::warp {

constexpr int kGroup = 16;  // pixels that are computed together
constexpr int kStripBlocks = 8;
constexpr int kStrip = kStripBlocks * kBlock;  // pixels of a row whose places are kept in the first cache

// Where the pixels of a strip read: floor(coordinate) and the rest. In an interior group the pixels `whole` to `whole + 1`
// are inside the image, and do not touch its last row; in the others one reflection brings them there.
struct Places {
  alignas(64) int32_t whole_y[kStrip];
  alignas(64) int32_t whole_x[kStrip];
  alignas(64) float rest_y[kStrip];
  alignas(64) float rest_x[kStrip];
  bool interior[kStrip / kGroup];
};

// Sets the places of up to kStripBlocks blocks. Bit b of the answer: block b was placed; the others, where a coordinate is
// not finite or too far from the image, are left to the taps.
using Locator = uint32_t (*)(const WarpFrame& frame, const StripRow<float>& row, Places& out);

// Null where the processor lacks AVX-512.
Locator avx512_locator();

struct StripArgs {
  const Places* places;
  Padding padding;
  int32_t height, width;            // pixels of a plane
  const void* plane;                // of channel 0
  int64_t stride_y, stride_x;       // elements
  int64_t extent;                   // offset of the last pixel of a plane
  int64_t channels;                 // all of which are read
  int64_t in_channel, out_channel;  // bytes from one channel to the next
  Fill fill;
  void* out;       // of pixel `begin`
  int begin, end;  // pixels of the strip
};

using StripSampler = void (*)(const StripArgs& args);

// Null where such an image is left to the taps, or the processor lacks AVX-512.
StripSampler avx512_sampler(const WarpFrame& frame, const WarpImage& image, int64_t extent);

}  // namespace uf::warp
