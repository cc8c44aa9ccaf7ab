// A convolution of few input channels, as of an image, and the gradient of its taps. Directly: Winograd's transforms would work
// on vectors that are nearly empty.
#pragma once

#include <algorithm>

#include "cpu/winograd/thin_pixels.h"

namespace uf::winograd::UF_WINOGRAD_NAMESPACE {

// Rows of the output, of all images. weights: [panel][tap][channel of the input][lane]; bias: of whole panels.
UF_KERNEL inline void thin(const Convolution& work, int64_t channels, const float* weights, const float* bias,
                           int64_t first_row, int64_t end_row, bool streams, float* lines) {
  const Target& target = work.targets[0];
  const int64_t height = work.out_height(), width = work.out_width(), columns = work.width + 2 * work.padding;
  ThinPixels p = {};
  p.line = columns * channels;
  p.channels = channels;
  p.to_step = target.columns;
  p.activation = work.activation;
  p.slope = work.slope;
  for (int64_t row = first_row; row < end_row; ++row) {
    const int64_t image = row / height, y = row % height;
    thin_lines(work.sources.data(), work.sources.size(), channels, {image, y - work.padding, -work.padding, 3, columns},
               work.height, work.width, lines);
    for (int64_t c = 0; c < target.channels; c += kPanel) {
      p.weights = weights + 9 * channels * c;
      p.bias = bias + c;
      p.fill(target.channels - c);
      float* to = target.data + image * target.batch + y * target.rows + c;
      p.streams = streams && p.lanes1 == kLanes &&
                  (reinterpret_cast<uintptr_t>(to) / sizeof(float) | static_cast<uintptr_t>(target.columns)) % kLanes == 0;
      p.lines = lines;
      p.to = to;
      thin_row(p, width);
    }
  }
}

// ---- the gradient of the taps

constexpr int kThinVectors = kLanes == 16 ? 2 : 1;  // of output channels whose sums fit in registers

// A row of the output's gradient behind its mask: (pixel, kThinVectors * kLanes) from channel c on.
UF_PART void thin_gradient(const Source& gradient, int64_t image, int64_t y, int64_t width, int64_t c, float slope, float* to) {
  const int64_t offset = image * gradient.batch + y * gradient.rows;
  for (int64_t x = 0; x < width; ++x)
    for (int n = 0; n < kThinVectors; ++n, to += kLanes) {
      const int lanes = static_cast<int>(std::clamp<int64_t>(gradient.channels - c - n * kLanes, 0, kLanes));
      const int64_t at = offset + x * gradient.columns + c + n * kLanes;
      Vector v = lanes ? load_lanes(gradient.data + at, lanes) : zero();
      if (gradient.mask && lanes) v = masked(v, load_lanes(gradient.mask + at, lanes), slope);
      store(to, v);
    }
}

// sums (taps, kThinVectors * kLanes) += products of a row of the gradient with the pixels that the taps read
template <int kLines, int kTaps>
UF_PART void thin_products(const float* lines, int64_t line, int64_t channels, const float* gradient, int64_t width,
                           float* sums) {
  Vector sum[kLines * kTaps][kThinVectors] = {};
  for (int64_t x = 0; x < width; ++x, lines += channels, gradient += kThinVectors * kLanes) {
    Vector g[kThinVectors];
#pragma GCC unroll 2
    for (int n = 0; n < kThinVectors; ++n) g[n] = load(gradient + n * kLanes);
#pragma GCC unroll 16
    for (int k = 0; k < kLines * kTaps; ++k)
#pragma GCC unroll 2
      for (int n = 0; n < kThinVectors; ++n) sum[k][n] += g[n] * lines[k / kTaps * line + k % kTaps];
  }
#pragma GCC unroll 16
  for (int k = 0; k < kLines * kTaps; ++k)
#pragma GCC unroll 2
    for (int n = 0; n < kThinVectors; ++n) {
      float* p = sums + (k * kThinVectors + n) * kLanes;
      store(p, load(p) + sum[k][n]);
    }
}

// Sums over chunks of kThinRows rows of the output, of all images: [chunk][group of channels][tap and channel of the input, and
// at the end the bias][lane].
UF_KERNEL inline void thin_taps(const TapGradient& work, int64_t channels, int64_t first_chunk, int64_t end_chunk, float* sums,
                                float* scratch) {
  constexpr int64_t kGroup = kThinVectors * kLanes;
  const int64_t height = work.height + 2 * work.padding - 2, width = work.width + 2 * work.padding - 2;
  const int64_t columns = work.width + 2 * work.padding, line = columns * channels;
  const int64_t groups = (work.gradient.channels + kGroup - 1) / kGroup;
  float* gradient = scratch;
  float* lines = scratch + width * kGroup;
  for (int64_t row = first_chunk * kThinRows; row < std::min(work.batch * height, end_chunk * kThinRows); ++row) {
    const int64_t image = row / height, y = row % height;
    thin_lines(work.sources.data(), work.sources.size(), channels, {image, y - work.padding, -work.padding, 3, columns},
               work.height, work.width, lines);
    for (int64_t group = 0; group < groups; ++group) {
      float* to = sums + (row / kThinRows * groups + group) * (9 * channels + 1) * kGroup;
      if (row % kThinRows == 0) std::fill_n(to, (9 * channels + 1) * kGroup, 0.0f);
      thin_gradient(work.gradient, image, y, width, group * kGroup, work.mask_slope, gradient);
      if (channels == 1) thin_products<3, 3>(lines, line, 1, gradient, width, to);
      for (int i = 0; channels > 1 && i < 3; ++i) {
        float* part = to + 3 * i * channels * kGroup;
        if (channels == 2) thin_products<1, 6>(lines + i * line, line, 2, gradient, width, part);
        if (channels == 3) thin_products<1, 9>(lines + i * line, line, 3, gradient, width, part);
        if (channels == 4) thin_products<1, 12>(lines + i * line, line, 4, gradient, width, part);
      }
      float* bias = to + 9 * channels * kGroup;
      for (int n = 0; n < kThinVectors; ++n) {
        Vector sum = zero();
        for (int64_t x = 0; x < width; ++x) sum += load(gradient + x * kGroup + n * kLanes);
        store(bias + n * kLanes, load(bias + n * kLanes) + sum);
      }
    }
  }
}

}  // namespace uf::winograd::UF_WINOGRAD_NAMESPACE
