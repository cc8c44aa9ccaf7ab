// Weights of interpolation kernels at a position t in [0, 1) behind a grid point: taps at -1, 0, 1, 2 (cubic) or 0, 1.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace uf {

enum class Interpolation : int64_t { kNearest = 0, kBilinear = 1, kBicubic = 2 };

constexpr int kMaxTaps = 4;

// Taps an axis, and where the first one lies relative to the grid point.
UF_HD_INLINE constexpr int tap_count(Interpolation kind) {
  return kind == Interpolation::kNearest ? 1 : (kind == Interpolation::kBilinear ? 2 : 4);
}
UF_HD_INLINE constexpr int first_tap(Interpolation kind) { return kind == Interpolation::kBicubic ? -1 : 0; }

template <class A>
UF_HD_INLINE void linear_weights(A t, A w[2]) {
  w[0] = A(1) - t;
  w[1] = t;
}

// Cubic convolution: R. Keys, IEEE Trans. ASSP 29 (1981) 1153, with a = -0.75 as torch and OpenCV use it.
template <class A>
UF_HD_INLINE void keys_weights(A t, A w[4]) {
  constexpr A a = A(-0.75);
  const A s = A(1) - t, t1 = t + A(1), s1 = s + A(1);
  w[0] = ((a * t1 - A(5) * a) * t1 + A(8) * a) * t1 - A(4) * a;
  w[1] = ((a + A(2)) * t - (a + A(3))) * t * t + A(1);
  w[2] = ((a + A(2)) * s - (a + A(3))) * s * s + A(1);
  w[3] = ((a * s1 - A(5) * a) * s1 + A(8) * a) * s1 - A(4) * a;
}

// Uniform cubic B-spline basis.
template <class A>
UF_HD_INLINE void bspline_weights(A t, A w[4]) {
  constexpr A sixth = A(1) / A(6);
  const A s = A(1) - t;
  w[0] = s * s * s * sixth;
  w[1] = (A(4) + t * t * (A(3) * t - A(6))) * sixth;
  w[2] = (A(4) + s * s * (A(3) * s - A(6))) * sixth;
  w[3] = t * t * t * sixth;
}

}  // namespace uf
