// The transform of the weights.
#pragma once

#include "cpu/winograd/tiles.h"

namespace uf::winograd::UF_WINOGRAD_NAMESPACE {

// A panel of `vectors` vectors of output channels, from `out` on, of a group of count_out, for all inputs of a source of
// count_in channels, those that fill its last vector included (0). Several inputs at a time are made in the first-level
// cache: the 36 points lie so far apart that single lines written to them would drive each other out of it.
UF_KERNEL inline void weights(const Taps& taps, int64_t count_in, int64_t out, int64_t count_out, int vectors, float* to,
                              int64_t point_step, bool streams) {
  constexpr int kInputs = 4;
  alignas(64) float gathered[9 * kLanes] = {}, made[kPoints][kInputs * kPanel];
  const int64_t width = vectors * kLanes;
  for (int64_t first = 0; first < filled(count_in); first += kInputs) {
    for (int n = 0; n < vectors; ++n) {
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, count_out - out - n * kLanes));
      std::memset(gathered, 0, sizeof gathered);
      for (int i = 0; i < kInputs; ++i) {
        Vector g[9], t[6][3];
        if (first + i < count_in) {
          const float* p = taps.data + (out + n * kLanes) * taps.out_step + (first + i) * taps.in_step;
          for (int lane = 0; lane < lanes; ++lane, p += taps.out_step)
#pragma GCC unroll 9
            for (int k = 0; k < 9; ++k) gathered[k * kLanes + lane] = p[k / 3 * taps.y_step + k % 3 * taps.x_step];
        } else {
          std::memset(gathered, 0, sizeof gathered);
        }
#pragma GCC unroll 9
        for (int k = 0; k < 9; ++k) g[k] = load(gathered + k * kLanes);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          Vector o[6];
          tap_points(g[j], g[3 + j], g[6 + j], o);
#pragma GCC unroll 6
          for (int k = 0; k < 6; ++k) t[k][j] = o[k];
        }
#pragma GCC unroll 6
        for (int k = 0; k < 6; ++k) {
          Vector o[6];
          tap_points(t[k][0], t[k][1], t[k][2], o);
#pragma GCC unroll 6
          for (int j = 0; j < 6; ++j) store(made[6 * k + j] + i * width + n * kLanes, o[j]);
        }
      }
    }
    for (int point = 0; point < kPoints; ++point) {
      float* p = to + point * point_step + first * width;
      const bool past = streams && reinterpret_cast<uintptr_t>(p) % sizeof(Vector) == 0;
      for (int64_t at = 0; at < kInputs * width; at += kLanes) {
        if (past)
          stream(p + at, load(made[point] + at));
        else
          store(p + at, load(made[point] + at));
      }
    }
  }
}

}  // namespace uf::winograd::UF_WINOGRAD_NAMESPACE
