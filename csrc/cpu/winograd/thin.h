// A convolution of few input channels, as of an image, and the gradient of its taps. Directly: Winograd's transforms would work
// on vectors that are nearly empty.
#pragma once

#include <algorithm>

#include "cpu/winograd/forward.h"

namespace uf::winograd::UF_WINOGRAD_NAMESPACE {

// The three rows of the sources that a row of the output is made of, with their padding: (3, width + 2 padding, channels).
UF_PART void thin_lines(const std::vector<Source>& sources, int64_t channels, int64_t image, int64_t y, int64_t height,
                        int64_t width, int64_t padding, float* lines) {
  const int64_t line = (width + 2 * padding) * channels;
  for (int64_t i = 0; i < 3; ++i, lines += line) {
    const int64_t row = y + i - padding;
    if (row < 0 || row >= height) {
      std::fill_n(lines, line, 0.0f);
      continue;
    }
    std::fill_n(lines, padding * channels, 0.0f);
    std::fill_n(lines + (padding + width) * channels, padding * channels, 0.0f);
    float* to = lines + padding * channels;
    for (const Source& source : sources) {
      const float* from = source.data + image * source.batch + row * source.rows;
      if (source.channels == channels && source.columns == channels) {
        std::memcpy(to, from, static_cast<size_t>(width * channels) * sizeof(float));
      } else {
        for (int64_t x = 0; x < width; ++x)
          for (int64_t c = 0; c < source.channels; ++c) to[x * channels + c] = from[x * source.columns + c];
      }
      to += source.channels;
    }
  }
}

struct ThinPixels : PanelPixels {  // weights: (tap, panel)
  const float* lines;              // the first pixel's
  int64_t line, channels;
  Activation activation;
  float slope;
  bool streams;

  template <int kRows>
  static void run(const ThinPixels& p);
};

UF_PART Vector activated(Vector v, Activation activation, float slope) {
  if (activation == Activation::kNone) return v;
  return activation == Activation::kRelu ? activated<Activation::kRelu>(v, 0) : activated<Activation::kLeaky>(v, slope);
}

template <int kRows>
UF_KERNEL void ThinPixels::run(const ThinPixels& p) {
  Vector sum[kRows][2];
  begin_with<kRows>(p.bias, sum);
  const float *line = p.lines, *weights = p.weights;
  const int64_t channels = p.channels;
  for (int i = 0; i < 3; ++i, line += p.line)
    for (int64_t k = 0; k < 3 * channels; ++k, weights += kPanel) {
      const Vector w0 = load(weights), w1 = load(weights + kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        sum[r][0] += w0 * line[r * channels + k];
        sum[r][1] += w1 * line[r * channels + k];
      }
    }
  float* to = p.to;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r, to += p.to_step) {
    const Vector y0 = activated(sum[r][0], p.activation, p.slope), y1 = activated(sum[r][1], p.activation, p.slope);
    if (p.streams) {
      stream(to, y0);
      stream(to + kLanes, y1);
    } else {
      store_lanes(to, y0, p.lanes0);
      if (p.lanes1) store_lanes(to + kLanes, y1, p.lanes1);
    }
  }
}

// Rows of the output, of all images. weights: [panel][tap][channel of the input][lane]; bias: of whole panels.
UF_KERNEL inline void thin(const Convolution& work, int64_t channels, const float* weights, const float* bias,
                           int64_t first_row, int64_t end_row, bool streams, float* lines) {
  const Target& target = work.targets[0];
  const int64_t height = work.out_height(), width = work.out_width(), groups = (width + kMaxRows - 1) / kMaxRows;
  ThinPixels p = {};
  p.line = (work.width + 2 * work.padding) * channels;
  p.channels = channels;
  p.to_step = target.columns;
  p.activation = work.activation;
  p.slope = work.slope;
  for (int64_t row = first_row; row < end_row; ++row) {
    const int64_t image = row / height, y = row % height;
    thin_lines(work.sources, channels, image, y, work.height, work.width, work.padding, lines);
    for (int64_t c = 0; c < target.channels; c += kPanel) {
      p.weights = weights + 9 * channels * c;
      p.bias = bias + c;
      p.fill(target.channels - c);
      float* to = target.data + image * target.batch + y * target.rows + c;
      p.streams = streams && p.lanes1 == kLanes &&
                  (reinterpret_cast<uintptr_t>(to) / sizeof(float) | static_cast<uintptr_t>(target.columns)) % kLanes == 0;
      for (int64_t group = 0; group < groups; ++group) {  // of about the same size
        const int64_t at = group * width / groups, count = (group + 1) * width / groups - at;
        p.lines = lines + at * channels;
        p.to = to + at * target.columns;
        by_rows<ThinPixels>(count)(p);
      }
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
  const int64_t line = (work.width + 2 * work.padding) * channels, groups = (work.gradient.channels + kGroup - 1) / kGroup;
  float* gradient = scratch;
  float* lines = scratch + width * kGroup;
  for (int64_t row = first_chunk * kThinRows; row < std::min(work.batch * height, end_chunk * kThinRows); ++row) {
    const int64_t image = row / height, y = row % height;
    thin_lines(work.sources, channels, image, y, work.height, work.width, work.padding, lines);
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
