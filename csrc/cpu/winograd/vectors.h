// Vectors of kLanes floats, and the transforms of a row of them to and from the points of `Points`.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "common/macros.h"
#include "cpu/winograd_kernels.h"

#define UF_KERNEL UF_TARGET
#define UF_PART UF_TARGET UF_INLINE

namespace uf::winograd::UF_WINOGRAD_NAMESPACE {

constexpr int kPanel = 2 * kLanes;

UF_PART Vector load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

UF_PART Vector zero() { return Vector{}; }

UF_PART void store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

constexpr float kA = Points::a, kB = Points::b, kA2 = Points::a2, kB2 = Points::b2, kA3 = Points::a2 * Points::a,
                kB3 = Points::b2 * Points::b, kAB = Points::a2 * Points::b2, kSum = Points::a2 + Points::b2;

// B^T d: six numbers of an input row to the six points.
UF_PART void input_points(const Vector d[6], Vector o[6]) {
  o[0] = d[0] * kAB + (d[4] - d[2] * kSum);
  const Vector p = d[4] - d[2] * kB2, q = d[3] - d[1] * kB2;
  o[1] = p + q * kA;
  o[2] = p - q * kA;
  const Vector r = d[4] - d[2] * kA2, s = d[3] - d[1] * kA2;
  o[3] = r + s * kB;
  o[4] = r - s * kB;
  o[5] = d[1] * kAB + (d[5] - d[3] * kSum);
}

// B m, the transpose of input_points: products at the six points to the six numbers of a row.
UF_PART void output_row(const Vector m[6], Vector (&y)[6]) {
  const Vector s1 = m[1] + m[2], d1 = (m[1] - m[2]) * kA, s2 = m[3] + m[4], d2 = (m[3] - m[4]) * kB;
  y[0] = m[0] * kAB;
  y[1] = m[5] * kAB - (d1 * kB2 + d2 * kA2);
  y[2] = -(m[0] * kSum + (s1 * kB2 + s2 * kA2));
  y[3] = (d1 + d2) - m[5] * kSum;
  y[4] = m[0] + (s1 + s2);
  y[5] = m[5];
}

// A^T m: products at the six points to the four numbers of an output row.
UF_PART void output_row(const Vector m[6], Vector (&y)[4]) {
  const Vector s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
  y[0] = (m[0] + s1) + s2;
  y[1] = d1 * kA + d2 * kB;
  y[2] = s1 * kA2 + s2 * kB2;
  y[3] = (d1 * kA3 + m[5]) + d2 * kB3;
}

// A y, the transpose of output_row: a row of the output's gradient to the six points.
UF_PART void gradient_points(const Vector y[4], Vector o[6]) {
  const Vector e = y[0] + y[2] * kA2, f = y[1] * kA + y[3] * kA3;
  const Vector g = y[0] + y[2] * kB2, h = y[1] * kB + y[3] * kB3;
  o[0] = y[0];
  o[1] = e + f;
  o[2] = e - f;
  o[3] = g + h;
  o[4] = g - h;
  o[5] = y[3];
}

constexpr float kG0 = Points::at_zero, kGa = Points::at_a, kGb = Points::at_b;
constexpr float kGa1 = Points::at_a * Points::a, kGb1 = Points::at_b * Points::b, kGa2 = Points::at_a * Points::a2,
                kGb2 = Points::at_b * Points::b2;

// G g: three taps to the six points.
UF_PART void tap_points(Vector g0, Vector g1, Vector g2, Vector o[6]) {
  const Vector s = g0 * kGa + g2 * kGa2, d = g1 * kGa1, t = g0 * kGb + g2 * kGb2, e = g1 * kGb1;
  o[0] = g0 * kG0;
  o[1] = s + d;
  o[2] = s - d;
  o[3] = t + e;
  o[4] = t - e;
  o[5] = g2;
}

// G^T d, its transpose.
UF_PART void taps_of(const Vector d[6], Vector g[3]) {
  const Vector s = d[1] + d[2], t = d[3] + d[4];
  g[0] = (d[0] * kG0 + s * kGa) + t * kGb;
  g[1] = (d[1] - d[2]) * kGa1 + (d[3] - d[4]) * kGb1;
  g[2] = (s * kGa2 + d[5]) + t * kGb2;
}

UF_PART void store_lanes(float* p, Vector v, int lanes) {
  if (lanes == kLanes)
    store(p, v);
  else
    store_some(p, v, lanes);
}

UF_PART Vector load_lanes(const float* p, int lanes) { return lanes == kLanes ? load(p) : load_some(p, lanes); }

// ---- the transpose of a square of kLanes x kLanes numbers

// Lanes whose number has the bit kBit from the other vector, kBit lanes further down (kUpper: a, from b further up).
template <int kBit, bool kUpper, int... kLane>
UF_PART Vector exchanged(Vector a, Vector b, std::integer_sequence<int, kLane...>) {
  if constexpr (kUpper)
    return __builtin_shufflevector(a, b, ((kLane & kBit) ? kLanes + kLane : kLane + kBit)...);
  else
    return __builtin_shufflevector(a, b, ((kLane & kBit) ? kLanes + kLane - kBit : kLane)...);
}

template <int kBit = 1>
UF_PART void transpose(Vector v[kLanes]) {
  if constexpr (kBit < kLanes) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if (!(i & kBit)) {
        const Vector a = v[i], b = v[i + kBit];
        v[i] = exchanged<kBit, false>(a, b, lanes);
        v[i + kBit] = exchanged<kBit, true>(a, b, lanes);
      }
    transpose<2 * kBit>(v);
  }
}

// ---- products of a few rows of pixels with a panel, two vectors of output channels

struct PanelPixels {
  const float *weights, *bias;
  float* to;
  int64_t to_step;
  int lanes0, lanes1;  // of the two vectors that are channels of the output

  // The channels from the panel's first one on.
  void fill(int64_t channels) {
    lanes0 = static_cast<int>(std::min<int64_t>(kLanes, channels));
    lanes1 = static_cast<int>(std::clamp<int64_t>(channels - kLanes, 0, kLanes));
  }
};

template <int kRows>
UF_PART void begin_with(const float* bias, Vector sum[kRows][2]) {
  const Vector bias0 = load(bias), bias1 = load(bias + kLanes);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = bias0;
    sum[r][1] = bias1;
  }
}

// Kernel::run<rows>, for 1 to kRows rows.
template <class Kernel, int kRows = kMaxRows>
constexpr auto by_rows(int64_t rows) {
  if constexpr (kRows == 1) {
    return &Kernel::template run<1>;
  } else {
    return rows == kRows ? &Kernel::template run<kRows> : by_rows<Kernel, kRows - 1>(rows);
  }
}

}  // namespace uf::winograd::UF_WINOGRAD_NAMESPACE
