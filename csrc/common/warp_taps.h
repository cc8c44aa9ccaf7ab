// From a coordinate to the pixels that are read along one axis of n, for one pixel and any coordinate at all.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/border.h"
#include "common/interp_weights.h"
#include "common/macros.h"

namespace uf::warp {

constexpr float kNear = 1 << 22;              // relative coordinates below this have fractions in float32
constexpr double kFar = int64_t{1} << 52;     // coordinates beyond this are integers anyway
constexpr int32_t kBeside = 8;                // farther outside than this is as good as this far, unless mirrored

// Pixel floor(q) and the rest of q. Pixels whole - 1 to whole + 2, the most that an interpolation reads, may go through
// tap_index: with Padding::kMirror one reflection is enough for them.
template <class A>
struct AxisPoint {
  int32_t whole;
  A rest;
};

// As below in 64 bits.
template <class A>
UF_HD_INLINE AxisPoint<A> far_point(Padding padding, int64_t origin, A relative, int32_t n) {
  const double wished = static_cast<double>(origin) + static_cast<double>(relative);
  if (!(wished == wished)) return {padding == Padding::kZeros ? -kBeside : 0, A(0)};
  const double q = wished < -kFar ? -kFar : (wished > kFar ? kFar : wished), whole = std::floor(q);
  int64_t i = static_cast<int64_t>(whole);
  if (padding == Padding::kMirror) {
    const int64_t period = n > 1 ? 2 * (int64_t{n} - 1) : 1;
    i %= period;
    if (i < 0) i += period;
  } else {
    i = i < -kBeside ? -kBeside : (i > int64_t{n} + kBeside ? int64_t{n} + kBeside : i);
  }
  return {static_cast<int32_t>(i), static_cast<A>(q - whole)};
}

// The source coordinate q = origin + relative, |origin| <= kFarthest. A NaN is pixel 0, or outside with kZeros.
template <class A>
UF_HD_INLINE AxisPoint<A> axis_point(Padding padding, int64_t origin, A relative, int32_t n) {
  if (relative >= A(-kNear) && relative <= A(kNear)) {
    const A whole = std::floor(relative);
    const int32_t i = static_cast<int32_t>(origin) + static_cast<int32_t>(whole);
    if (padding != Padding::kMirror || (i >= 2 - n && i <= 2 * (n - 2))) return {i, relative - whole};
  }
  return far_point(padding, origin, relative, n);
}

// The first pixel that is read.
template <Interpolation Kind, class A>
UF_HD_INLINE int32_t first_index(const AxisPoint<A>& point) {
  if constexpr (Kind == Interpolation::kNearest) return point.whole + (point.rest >= A(0.5) ? 1 : 0);
  return point.whole + first_tap(Kind);
}

template <Interpolation Kind, class A>
UF_HD_INLINE void tap_weights(A rest, A weight[tap_count(Kind)]) {
  if constexpr (Kind == Interpolation::kNearest) {
    weight[0] = A(1);
  } else if constexpr (Kind == Interpolation::kBilinear) {
    linear_weights(rest, weight);
  } else {
    keys_weights(rest, weight);
  }
}

// The pixel inside the axis that stands in for pixel i of an AxisPoint.
UF_HD_INLINE int32_t tap_index(Padding padding, int32_t i, int32_t n) {
  if (padding == Padding::kMirror) {
    const int32_t positive = i < 0 ? -i : i, behind = positive - 2 * (n - 1);
    const int32_t reflected = positive < n ? positive : (behind < 0 ? -behind : behind);
    return reflected < n ? reflected : n - 1;  // only where n = 1
  }
  return i < 0 ? 0 : (i < n ? i : n - 1);
}

}  // namespace uf::warp
