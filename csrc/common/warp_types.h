// The arguments of the warp, shared by its CPU and CUDA kernels: output pixel p of the frame reads the input at
//   q = c + A (p - c + u(p)) + t,   c = ((H - 1) / 2, (W - 1) / 2),   matrix = [A | t],   u = the field,
// that is, the image is first transformed by the matrix, then deformed. Order y, x; pixels. All images of one call share
// the frame (N, H, W) and so the coordinates, which are computed once and never stored.
#pragma once

#include <bit>
#include <cstdint>

#include "common/border.h"
#include "common/dtype.h"
#include "common/half.h"
#include "common/interp_weights.h"
#include "common/macros.h"
#include "common/warp_field.h"

namespace uf {

// Numbers that are given as float32 or float64.
struct Reals {
  const void* data;  // null: absent
  bool wide;         // float64

  UF_HD double operator[](int64_t i) const {
    return wide ? static_cast<const double*>(data)[i] : static_cast<double>(static_cast<const float*>(data)[i]);
  }
};

struct WarpFrame {
  int64_t batch, height, width;     // of the inputs
  Reals displacement;               // (N, 2, grid_height, grid_width), contiguous
  int64_t grid_height, grid_width;  // control points
  Reals matrix;                     // (N, 2, 3), contiguous, or absent for the identity
  Field field;
  Padding padding;
  bool wide;  // coordinates and sums in float64 instead of float32
};

struct WarpImage {
  const void* input;  // (N, C, H, W), any strides (in elements)
  int64_t channels, stride[4];
  void* output;  // (N, C, out_height, out_width), contiguous; its first pixel is frame pixel (H - out_height) // 2, ...
  int64_t out_height, out_width;
  DType type;  // can_interpolate (warp_pixel.h) unless Interpolation::kNearest, kFloat64 then only with WarpFrame::wide
  int64_t element_size;
  Interpolation interpolation;
  double fill;  // what lies outside the input with Padding::kZeros
};

namespace warp {

// The fill value as bytes of the image's element, and as a number.
struct Fill {
  uint64_t bits;
  double value;
};

inline Fill make_fill(DType type, double value) {
  switch (type) {
    case DType::kFloat16: return {to_half(static_cast<float>(value)).bits, value};
    case DType::kBFloat16: return {to_bfloat16(static_cast<float>(value)).bits, value};
    case DType::kFloat32: return {std::bit_cast<uint32_t>(static_cast<float>(value)), value};
    case DType::kFloat64: return {std::bit_cast<uint64_t>(value), value};
    default: return {static_cast<uint64_t>(static_cast<int64_t>(value)), value};  // the low bytes are the element
  }
}

}  // namespace warp
}  // namespace uf
