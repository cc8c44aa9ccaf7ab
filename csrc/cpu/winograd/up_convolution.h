// The up-convolution: a product (pixels, in) (in, 4 out), whose rows are four pixels of the image.
#pragma once

#include "cpu/winograd/vectors.h"

namespace uf::winograd::UF_WINOGRAD_NAMESPACE {

// Input channels [begin, end) of the weights to panels [tap][two vectors of output channels][input channel][lane].
UF_KERNEL inline void up_weights(const UpConvolution& work, int64_t begin, int64_t end, float* panels) {
  const int64_t channels = work.target.channels, depth = work.source.channels;
  const float* from = work.weights + 4 * begin * channels;
  for (int64_t k = begin; k < end; ++k) {
    float* to = panels + k * kPanel;
    for (int tap = 0; tap < 4; ++tap, from += channels)
      for (int64_t c = 0; c < channels; c += kPanel, to += depth * kPanel)
        for (int64_t n = 0; n < kPanel; n += kLanes) {
          const int64_t lanes = std::clamp<int64_t>(channels - c - n, 0, kLanes);
          store(to + n, lanes ? load_lanes(from + c + n, static_cast<int>(lanes)) : zero());
        }
  }
}

// Pixels of a row of the source and of the target.
struct UpPixels : PanelPixels {
  const float* x;
  int64_t depth, x_step;

  template <int kRows>
  static void run(const UpPixels& p);
};

template <int kRows>
UF_KERNEL void UpPixels::run(const UpPixels& p) {
  Vector sum[kRows][2];
  begin_with<kRows>(p.bias, sum);
  const float *x = p.x, *weights = p.weights;
  const int64_t step = p.x_step;
  for (int64_t k = 0; k < p.depth; ++k, weights += kPanel) {
    const Vector w0 = load(weights), w1 = load(weights + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      sum[r][0] += w0 * x[r * step + k];
      sum[r][1] += w1 * x[r * step + k];
    }
  }
  float* to = p.to;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r, to += p.to_step) {
    store_lanes(to, sum[r][0], p.lanes0);
    if (p.lanes1) store_lanes(to + kLanes, sum[r][1], p.lanes1);
  }
}

// One panel after the other for as many rows of the source as the second-level cache holds.
UF_KERNEL inline void up_convolve(const UpConvolution& work, const float* panels, int64_t first_row, int64_t end_row) {
  constexpr int64_t kBlock = 1 << 18;  // floats
  const Source& source = work.source;
  const Target& target = work.target;
  const int64_t rows = std::max<int64_t>(1, kBlock / (work.width * source.channels + 1));
  const int64_t groups = (work.width + kMaxRows - 1) / kMaxRows;
  alignas(64) float bias[kPanel] = {};
  for (int64_t begin = first_row; begin < end_row; begin += rows) {
    const float* weights = panels;
    for (int64_t tap = 0; tap < 4; ++tap) {
      for (int64_t c = 0; c < target.channels; c += kPanel, weights += source.channels * kPanel) {
        UpPixels pixels = {{weights, bias, nullptr, 2 * target.columns, 0, 0}, nullptr, source.channels, source.columns};
        pixels.fill(target.channels - c);
        if (work.bias)
          std::memcpy(bias, work.bias + c, static_cast<size_t>(pixels.lanes0 + pixels.lanes1) * sizeof(float));
        for (int64_t row = begin; row < std::min(end_row, begin + rows); ++row) {
          const int64_t n = row / work.height, y = row % work.height;
          const float* x = source.data + n * source.batch + y * source.rows;
          float* to = target.data + n * target.batch + (2 * y + tap / 2) * target.rows + tap % 2 * target.columns + c;
          for (int64_t group = 0; group < groups; ++group) {  // of about the same size
            const int64_t at = group * work.width / groups, count = (group + 1) * work.width / groups - at;
            pixels.x = x + at * pixels.x_step;
            pixels.to = to + at * pixels.to_step;
            by_rows<UpPixels>(count)(pixels);
          }
        }
      }
    }
  }
}

}  // namespace uf::winograd::UF_WINOGRAD_NAMESPACE
