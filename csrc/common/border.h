// What lies outside an image: the index of the pixel that stands in for pixel i of an axis of n pixels.
//   mirror   d c b | a b c d | c b a, repeated as often as needed (SciPy "mirror", NumPy "reflect")
//   zeros    nothing: the caller uses its fill value
//   nearest  a a a | a b c d | d d d
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace uf {

enum class Padding : int64_t { kMirror = 0, kZeros = 1, kNearest = 2 };

UF_HD_INLINE int64_t clamp_index(int64_t i, int64_t n) { return i < 0 ? 0 : (i < n ? i : n - 1); }

UF_HD_INLINE int64_t mirror_index(int64_t i, int64_t n) {
  if (n == 1) return 0;
  const int64_t period = 2 * (n - 1);
  i %= period;
  if (i < 0) i += period;
  return i < n ? i : period - i;
}

// The same for -(n - 1) <= i <= 2 (n - 1), where one reflection is enough: two absolute values, no division, no branch.
UF_HD_INLINE int32_t mirror_once(int32_t i, int32_t n) {
  const int32_t last = n - 1;
  const int32_t positive = i < 0 ? -i : i;
  const int32_t behind = last - positive;
  return last - (behind < 0 ? -behind : behind);
}

// For kZeros the index is the nearest pixel: safe to read, to be replaced by the caller's fill value.
UF_HD_INLINE int64_t border_index(Padding padding, int64_t i, int64_t n) {
  return padding == Padding::kMirror ? mirror_index(i, n) : clamp_index(i, n);
}

}  // namespace uf
