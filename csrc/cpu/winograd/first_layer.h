// The first layer of a network, computed where the second one reads it: see FirstLayer.
#pragma once

#include <algorithm>

#include "cpu/winograd/thin_pixels.h"
#include "cpu/winograd/tiles.h"

namespace uf::winograd::UF_WINOGRAD_NAMESPACE {

// The pixels that `count` tiles from this one on read, as the source of their convolution. Rows that two rows of tiles share
// are computed for both, which takes half as long again as each once, and less than to write and to read them. `scratch` holds
// first_image_floats and first_floats.
UF_PART Source first_layer(const Run& run, const Tile& tile, int64_t count, float* scratch) {
  const Convolution& work = *run.work;
  const FirstLayer& first = *work.first;
  const int64_t channels = first.image.channels, pixel = up_to(work.sources[0].channels, kPanel);
  const int64_t y = std::max<int64_t>(0, tile.y - work.padding), x = std::max<int64_t>(0, tile.x - work.padding);
  const int64_t rows = std::min(work.height, tile.y - work.padding + kIn) - y;
  const int64_t columns = std::min(work.width, tile.x - work.padding + kOut * count + kIn - kOut) - x;
  float *lines = scratch, *map = scratch + run.first_image_floats();
  thin_lines(&first.image, 1, channels, {tile.image, y - first.padding, x - first.padding, rows + 2, columns + 2},
             first.height, first.width, lines);
  ThinPixels p = {};
  p.line = (columns + 2) * channels;
  p.channels = channels;
  p.to_step = pixel;
  p.activation = Activation::kRelu;
  p.fill(kPanel);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t c = 0; c < pixel; c += kPanel) {
      p.weights = run.first_weights + 9 * channels * c;
      p.bias = run.first_bias + c;
      p.lines = lines + row * p.line;
      p.to = map + row * columns * pixel + c;
      thin_row(p, columns);
    }
  return {map - (y * columns + x) * pixel, nullptr, work.sources[0].channels, 0, columns * pixel, pixel};
}

}  // namespace uf::winograd::UF_WINOGRAD_NAMESPACE
