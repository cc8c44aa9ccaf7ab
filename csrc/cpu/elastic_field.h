// Source coordinates of the output pixels, for blocks of pixels of one row.
//
// The field is separable. Per row, the control points are first summed over y: two short rows of grid_width numbers. Per
// pixel they are then summed over x with weights that a table holds for each block, only over the control points that
// reach into the block: three products for a 3x3 grid, whatever its kernel, and no look-up.
//
// Blocks lie on fixed positions of the frame and are always computed whole, so that a pixel's coordinates do not depend on
// which part of the frame is asked for. They are relative to an integer origin near the block: float32 is then exact
// enough in an image of any size.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/macros.h"
#include "cpu/elastic_warp.h"

namespace uf::warp {

constexpr int kBlock = 64;  // pixels

inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

// floor of a number that fits; std::floor is a call into the C library where SSE4.1 cannot be taken for granted.
template <class A>
int64_t floor_of(A value) {
  const int64_t whole = static_cast<int64_t>(value);
  return whole - (value < static_cast<A>(whole) ? 1 : 0);
}

// Where an axis of `full` pixels is cropped to `part`; negative where the output reaches beyond the frame.
inline int64_t centre_start(int64_t full, int64_t part) { return floor_div(full - part, 2); }

// Frame pixels begin <= p < end.
struct Range {
  int64_t begin, end;

  static Range centred(int64_t full, int64_t part) {
    const int64_t start = centre_start(full, part);
    return {start, start + part};
  }
  Range join(Range other) const { return {std::min(begin, other.begin), std::max(end, other.end)}; }
  bool contains(int64_t i) const { return begin <= i && i < end; }
  // The blocks that the range touches.
  Range blocks() const { return {floor_div(begin, kBlock), floor_div(end - 1, kBlock) + 1}; }
};

// source = origin + (y, x); A is float or double.
template <class A>
struct Coordinates {
  int64_t origin_y, origin_x;
  alignas(64) A y[kBlock];
  alignas(64) A x[kBlock];
};

// What the inner loop over a block reads.
template <class A>
struct BlockRow {
  const A* control_y;  // the row of control points, summed over y, from the first one that reaches into the block
  const A* control_x;
  const A* weights;  // count x kBlock
  int64_t count;
  A offset_y, offset_x;                   // of the block's first pixel from the origin, without the field
  A step_y, step_x;                       // per pixel
  A matrix_yy, matrix_yx, matrix_xy, matrix_xx;  // applied to the displacement
};

void block_coordinates(const BlockRow<float>& row, Coordinates<float>& out);
void block_coordinates(const BlockRow<double>& row, Coordinates<double>& out);

template <class A>
class ElasticField {
 public:
  // Tables for the frame pixels rows x columns. Workspace: the control points, 64 bytes a row, 4 or 8 bytes per
  // column and control point that reaches into its block.
  ElasticField(const WarpFrame& frame, Range rows, Range columns);

  Range blocks() const { return blocks_; }
  // Numbers that a row needs: give as many to row().
  int64_t row_size() const { return 2 * grid_width_; }
  // The control points of sample n summed over y, for frame row y.
  void row(int64_t n, int64_t y, A* out) const;
  // Coordinates of frame pixels (y, kBlock * block + 0 ... kBlock - 1) of sample n.
  void coordinates(int64_t n, int64_t y, int64_t block, const A* row, Coordinates<A>& out) const;

 private:
  struct RowTaps {
    int32_t index[4];
    double weight[4];
  };
  struct Block {
    int64_t first, count, weights;
  };
  struct Affine {
    double m[6];
  };

  Range rows_, blocks_;
  int64_t grid_height_, grid_width_;
  double centre_y_, centre_x_;
  std::vector<Affine> affine_;   // one a sample
  std::vector<double> control_;  // (N, 2, gh, gw); B-spline coefficients for Field::kBSpline
  std::vector<RowTaps> row_taps_;
  std::vector<Block> block_;
  std::vector<A> weights_;
};

extern template class ElasticField<float>;
extern template class ElasticField<double>;

}  // namespace uf::warp
