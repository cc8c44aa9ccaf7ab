// The transform of the weights.
#pragma once

#include "cpu/winograd/tiles.h"

namespace uf::winograd::UF_WINOGRAD_NAMESPACE {

// Whether the nine taps of a pair of channels lie one after the other, and those of the next channel behind them.
UF_PART bool are_contiguous(const Taps& taps) {
  return taps.y_step == 3 * taps.x_step && taps.x_step * taps.x_step == 1 && (taps.in_step == 9 || taps.out_step == 9);
}

// Of contiguous taps and kLanes input and output channels: a row of each of the channels that do not follow each other, turned
// into columns, and, unless these are the output channels, the square of each tap turned over once more.
UF_PART void gather_contiguous(const Taps& taps, const float* first, float* to) {
  const bool rows_of_outputs = taps.in_step == 9;
  const float* low = taps.x_step < 0 ? first - 8 : first;
  for (int block = 0; block < 9; ++block) {
    Vector v[kLanes];
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r)
      v[r] = load(low + r * (rows_of_outputs ? taps.out_step : taps.in_step) + block * kLanes);
    transpose(v);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      const int channel = (block * kLanes + j) / 9, at = (block * kLanes + j) % 9, tap = taps.x_step < 0 ? 8 - at : at;
      store(to + (tap * kLanes + channel) * kLanes, v[j]);
    }
  }
  for (int tap = 0; tap < 9 && !rows_of_outputs; ++tap) {
    float* square = to + tap * kLanes * kLanes;
    Vector v[kLanes];
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r) v[r] = load(square + r * kLanes);
    transpose(v);
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r) store(square + r * kLanes, v[r]);
  }
}

// The nine taps of up to kLanes input channels to as many output channels, kLanes of them in a vector; what there is no channel
// for is 0. to: [tap][input][lane].
UF_PART void gather_taps(const Taps& taps, const float* first, int ins, int outs, float* to) {
  if (taps.out_step == 1) {
    for (int i = 0; i < ins; ++i)
#pragma GCC unroll 9
      for (int k = 0; k < 9; ++k)
        store(to + (k * kLanes + i) * kLanes,
              load_lanes(first + i * taps.in_step + k / 3 * taps.y_step + k % 3 * taps.x_step, outs));
  } else if (taps.in_step == 1) {
    for (int k = 0; k < 9; ++k) {
      const float* p = first + k / 3 * taps.y_step + k % 3 * taps.x_step;
      Vector v[kLanes];
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane) v[lane] = lane < outs ? load_lanes(p + lane * taps.out_step, ins) : zero();
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + (k * kLanes + i) * kLanes, v[i]);
    }
  } else if (ins == kLanes && outs == kLanes && are_contiguous(taps)) {
    gather_contiguous(taps, first, to);
  } else {
    for (int lane = 0; lane < outs; ++lane)
      for (int i = 0; i < ins; ++i) {
        const float* p = first + lane * taps.out_step + i * taps.in_step;
#pragma GCC unroll 9
        for (int k = 0; k < 9; ++k) to[(k * kLanes + i) * kLanes + lane] = p[k / 3 * taps.y_step + k % 3 * taps.x_step];
      }
  }
}

// G g G^T of one input channel; the points lie `step` apart.
UF_PART void transform_taps(const float* taps, float* to, int64_t step) {
  Vector t[6][3];
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
    Vector o[6];
    tap_points(load(taps + j * kLanes * kLanes), load(taps + (3 + j) * kLanes * kLanes),
               load(taps + (6 + j) * kLanes * kLanes), o);
#pragma GCC unroll 6
    for (int k = 0; k < 6; ++k) t[k][j] = o[k];
  }
  int64_t at = 0;
#pragma GCC unroll 6
  for (int k = 0; k < 6; ++k, at += 6 * step) {
    hide(at);
    Vector o[6];
    tap_points(t[k][0], t[k][1], t[k][2], o);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) store(to + j * step + at, o[j]);
  }
}

// A panel's weights for the input channels [begin, end), counted as the sources' are filled up to whole vectors.
UF_KERNEL inline void weights(const Taps& taps, const std::vector<int64_t>& in_channels, int64_t begin, int64_t end,
                              const PanelChannels& out, float* to) {
  alignas(64) float gathered[9 * kLanes * kLanes] = {};
  const int64_t width = out.vectors * kLanes, step = weight_step(end - begin, width);
  int64_t first = 0, channel = 0;  // of the source, as they are filled up and as they are
  for (const int64_t count : in_channels) {
    for (int64_t c = std::max(begin, first); c < std::min(end, first + filled(count)); c += kLanes) {
      const int ins = static_cast<int>(std::min<int64_t>(kLanes, count - (c - first)));
      for (int n = 0; n < out.vectors; ++n) {
        const int outs = static_cast<int>(std::min<int64_t>(kLanes, out.count - n * kLanes));
        if (ins < kLanes || outs < kLanes) std::memset(gathered, 0, sizeof gathered);
        gather_taps(taps, taps.data + (out.first + n * kLanes) * taps.out_step + (channel + c - first) * taps.in_step, ins,
                    outs, gathered);
        for (int i = 0; i < kLanes; ++i) transform_taps(gathered + i * kLanes, to + (c - begin + i) * width + n * kLanes, step);
      }
    }
    first += filled(count);
    channel += count;
  }
}

// Asks for a 36th of the taps that the panel's weights from input channel `begin` on will be made of, before they are needed: they
// lie in short pieces, far apart.
UF_PART void ask_for_taps(const Taps& taps, const std::vector<int64_t>& in_channels, int64_t begin, const PanelChannels& out,
                          int point) {
  int64_t channel = begin, first = 0;  // of the source, as they are filled up
  for (const int64_t count : in_channels) {
    first += filled(count);
    if (begin >= first) channel -= filled(count) - count;
  }
  const bool by_outputs = taps.in_step == 1;
  const int64_t rows = by_outputs ? std::min<int64_t>(kPanel, out.count) : kSlice, length = by_outputs ? kSlice : kPanel;
  const int64_t step = by_outputs ? taps.out_step : taps.in_step;
  const float* base = taps.data + out.first * taps.out_step + channel * taps.in_step;
  for (int64_t i = 9 * rows * point / kPoints; i < 9 * rows * (point + 1) / kPoints; ++i) {
    const int64_t tap = i / rows;
    const float* p = base + i % rows * step + tap / 3 * taps.y_step + tap % 3 * taps.x_step;
    for (int64_t c = 0; c < length; c += 16) __builtin_prefetch(p + c);
  }
}

}  // namespace uf::winograd::UF_WINOGRAD_NAMESPACE
