// The elastic field: displacements on a coarse grid of control points, interpolated to every pixel of an image. All three
// kernels are separable and linear: field(y, x) = sum_ij Ay[y, i] Ax[x, j] D[i, j] with four non-zero weights an axis.
//   kBicubic        Keys cubic convolution, control points from corner to corner, border points repeated
//                   (torch.nn.functional.interpolate, mode="bicubic", align_corners=True)
//   kBSpline        interpolating cubic B-spline, control points from corner to corner, mirrored; the grid must have gone
//                   through bspline_prefilter (scipy.ndimage.map_coordinates, order=3, mode="mirror")
//   kBSplineSmooth  uniform cubic B-spline, not interpolating; control point 1 on the first pixel, point g - 2 on the last
#pragma once

#include <cstdint>

#include "common/border.h"
#include "common/interp_weights.h"
#include "common/macros.h"

namespace uf {

enum class Field : int64_t { kBicubic = 0, kBSpline = 1, kBSplineSmooth = 2 };

// How far along an axis of g control points, counted from the one on the first pixel, `pixel` of n lies: whole points and
// the rest of a step. Outside the image the field keeps its border value.
struct ControlPosition {
  int64_t whole;
  double rest;
};

UF_HD_INLINE ControlPosition control_position(Field field, int64_t pixel, int64_t n, int64_t g) {
  const int64_t inside = clamp_index(pixel, n);
  // between the control points on the first and on the last pixel
  const int64_t steps = field == Field::kBSplineSmooth ? g - 3 : g - 1;
  // both come from integers: exact on every control point
  const int64_t scaled = n > 1 ? inside * steps : 0, span = n > 1 ? n - 1 : 1;
  if (scaled > UINT32_MAX) return {scaled / span, static_cast<double>(scaled % span) / static_cast<double>(span)};
  const uint32_t narrow = static_cast<uint32_t>(scaled), by = static_cast<uint32_t>(span);  // GPUs divide these faster
  return {narrow / by, static_cast<double>(narrow % by) / static_cast<double>(by)};
}

// The four control points that act on a pixel, and their weights.
UF_HD_INLINE void control_taps(Field field, int64_t pixel, int64_t n, int64_t g, int64_t index[4], double weight[4]) {
  const bool smooth = field == Field::kBSplineSmooth;
  const auto [base, t] = control_position(field, pixel, n, g);
  if (field == Field::kBicubic) {
    keys_weights(t, weight);
  } else {
    bspline_weights(t, weight);
  }
  for (int k = 0; k < 4; ++k) {
    const int64_t i = base + k - (smooth ? 0 : 1);
    index[k] = field == Field::kBSpline ? mirror_index(i, g) : clamp_index(i, g);
  }
}

// Control points among which are all that act on the pixels `begin` to `last`.
struct ControlRange {
  int64_t first, count;
};

UF_HD_INLINE ControlRange control_range(Field field, int64_t begin, int64_t last, int64_t n, int64_t g) {
  // one or two beyond each end; a mirrored one comes back by as many
  int64_t lowest = control_position(field, begin, n, g).whole - 1, highest = control_position(field, last, n, g).whole + 3;
  if (lowest > g - 3) lowest = g - 3;
  if (lowest < 0) lowest = 0;
  if (highest < 2) highest = 2;
  if (highest > g - 1) highest = g - 1;
  return {lowest, highest - lowest + 1};
}

// Turns n samples into the coefficients of the cubic B-spline through them, mirror boundary, in place: one recursive pass
// each way with the pole sqrt(3) - 2. M. Unser, IEEE Signal Processing Magazine 16(6) (1999) 22.
UF_HD_INLINE void bspline_prefilter(double* c, int64_t stride, int64_t n) {
  if (n == 1) return;
  constexpr double z = -0.26794919243112270647;
  double sum = 0, power = 1;  // sum over one period of the mirrored signal, closed by the geometric series
  for (int64_t k = 0; k < 2 * n - 2; ++k, power *= z) sum += power * c[mirror_index(k, n) * stride];
  double previous = c[0] = 6 * sum / (1 - power);
  for (int64_t k = 1; k < n; ++k) previous = c[k * stride] = 6 * c[k * stride] + z * previous;
  previous = z / (z * z - 1) * (z * c[(n - 2) * stride] + c[(n - 1) * stride]);
  c[(n - 1) * stride] = previous;
  for (int64_t k = n - 2; k >= 0; --k) previous = c[k * stride] = z * (previous - c[k * stride]);
}

}  // namespace uf
