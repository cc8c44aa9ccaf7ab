// From the coordinates of a block to the pixels that each output pixel reads along one axis, and their weights.
#pragma once

#include <cstdint>

#include "cpu/elastic_field.h"

namespace uf::warp {

// Tap t of pixel k reads index[t][k], which is always inside the image.
struct TapIndex {
  bool consecutive;  // tap t reads index[0][k] + t; the other rows of index are unset
  bool outside;      // some tap of the block reads the fill value (Padding::kZeros)
  alignas(64) int32_t index[kMaxTaps][kBlock];
  alignas(64) int32_t inside[kMaxTaps][kBlock];  // 0: the tap reads the fill value; only set when `outside`

  // Sets all rows of index.
  void expand(int taps) {
    if (!consecutive) return;
    for (int t = 1; t < taps; ++t) {
      for (int k = 0; k < kBlock; ++k) index[t][k] = index[0][k] + t;
    }
    consecutive = false;
  }
};

template <class A>
struct AxisTaps : TapIndex {
  alignas(64) A weight[kMaxTaps][kBlock];  // unset for one tap, whose weight is 1
};

// Taps along an axis of n pixels for the source coordinates origin + relative[k].
template <class A>
void make_taps(Interpolation kind, Padding padding, int64_t origin, const A* relative, int64_t n, AxisTaps<A>& out);

extern template void make_taps<float>(Interpolation, Padding, int64_t, const float*, int64_t, AxisTaps<float>&);
extern template void make_taps<double>(Interpolation, Padding, int64_t, const double*, int64_t, AxisTaps<double>&);

}  // namespace uf::warp
