// Source coordinates of the output pixels, for blocks of pixels of one row.
//
// Blocks lie on fixed positions of the frame, so that a pixel's coordinates do not depend on which part of the frame is
// asked for. They are relative to an integer origin near the block: float32 is then exact enough in an image of any size.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace uf::warp {

constexpr int kBlock = 64;              // pixels
constexpr double kFarthest = 1 << 30;  // beyond this many pixels (or NaN) a block has no integer origin

UF_HD_INLINE int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

// floor of a number that fits; std::floor is a call into the C library where SSE4.1 cannot be taken for granted.
template <class A>
UF_HD_INLINE int64_t floor_of(A value) {
  const int64_t whole = static_cast<int64_t>(value);
  return whole - (value < static_cast<A>(whole) ? 1 : 0);
}

// Where an axis of `full` pixels is cropped to `part`; negative where the output reaches beyond the frame.
UF_HD_INLINE int64_t centre_start(int64_t full, int64_t part) { return floor_div(full - part, 2); }

// Frame pixels begin <= p < end.
struct Range {
  int64_t begin, end;

  static Range centred(int64_t full, int64_t part) {
    const int64_t start = centre_start(full, part);
    return {start, start + part};
  }
  Range join(Range other) const {
    return {begin < other.begin ? begin : other.begin, end > other.end ? end : other.end};
  }
  UF_HD bool contains(int64_t i) const { return begin <= i && i < end; }
  // The blocks that the range touches.
  Range blocks() const { return {floor_div(begin, kBlock), floor_div(end - 1, kBlock) + 1}; }
};

// a b + c: one rounding on a GPU, where the same sum must not depend on how the compiler arranged it; on the CPU whatever
// is fastest.
template <class A>
UF_HD_INLINE A multiply_add(A a, A b, A c) {
#if defined(__CUDA_ARCH__)
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}

// Where the first pixel of a block reads along one axis, without the field.
struct BlockStart {
  int64_t origin;
  double offset;  // from the origin
};

// Row `axis` of the matrix (three numbers), for frame pixel (y, x).
UF_HD_INLINE BlockStart block_start(const double row[3], double y, double x, const double centre[2], int axis) {
  const double base = centre[axis] + (row[0] * (y - centre[0]) + row[1] * (x - centre[1])) + row[2];
  const int64_t origin = std::fabs(base) <= kFarthest ? floor_of(base) : 0;
  return {origin, base - static_cast<double>(origin)};
}

}  // namespace uf::warp
