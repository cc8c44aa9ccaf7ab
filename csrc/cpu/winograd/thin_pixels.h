// A convolution of few input channels, directly, for some pixels of a row; and the activations, which all epilogues share.
#pragma once

#include <algorithm>

#include "cpu/winograd/vectors.h"

namespace uf::winograd::UF_WINOGRAD_NAMESPACE {

template <Activation kActivation>
UF_PART Vector activated(Vector v, float slope) {
  if constexpr (kActivation == Activation::kRelu) return rectified(v);
  if constexpr (kActivation == Activation::kLeaky) return v < 0 ? v * slope : v;
  return v;
}

// A rectangle of an image.
struct Window {
  int64_t image, y, x, rows, columns;
};

// The pixels of a window of sources of height x width pixels, 0 beside them: (row, column, channel of all sources).
UF_PART void thin_lines(const Source* sources, size_t count, int64_t channels, const Window& window, int64_t height,
                        int64_t width, float* lines) {
  const int64_t line = window.columns * channels;
  const int64_t begin = std::clamp<int64_t>(0, window.x, window.x + window.columns);
  const int64_t end = std::clamp(width, begin, window.x + window.columns);
  for (int64_t row = window.y; row < window.y + window.rows; ++row, lines += line) {
    if (row < 0 || row >= height) {
      std::fill_n(lines, line, 0.0f);
      continue;
    }
    float* to = lines + (begin - window.x) * channels;
    std::fill(lines, to, 0.0f);
    std::fill(to + (end - begin) * channels, lines + line, 0.0f);
    for (size_t i = 0; i < count; to += sources[i++].channels) {
      const Source& source = sources[i];
      const float* from = source.data + window.image * source.batch + row * source.rows + begin * source.columns;
      if (source.channels == channels && source.columns == channels) {
        std::memcpy(to, from, static_cast<size_t>((end - begin) * channels) * sizeof(float));
      } else {
        for (int64_t x = 0; x < end - begin; ++x)
          for (int64_t c = 0; c < source.channels; ++c) to[x * channels + c] = from[x * source.columns + c];
      }
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

// Output pixels next to each other, of one row and one panel; `p` says where they begin.
UF_PART void thin_row(ThinPixels p, int64_t count) {
  const float* lines = p.lines;
  float* to = p.to;
  const int64_t groups = (count + kMaxRows - 1) / kMaxRows;
  for (int64_t group = 0; group < groups; ++group) {  // of about the same size
    const int64_t at = group * count / groups, end = (group + 1) * count / groups;
    p.lines = lines + at * p.channels;
    p.to = to + at * p.to_step;
    by_rows<ThinPixels>(end - at)(p);
  }
}

}  // namespace uf::winograd::UF_WINOGRAD_NAMESPACE
