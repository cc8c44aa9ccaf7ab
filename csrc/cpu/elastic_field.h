// Source coordinates of the output pixels, for blocks of pixels of one row.
//
// The field is separable. Per row, the control points are first summed over y: two short rows of grid_width numbers. Per
// pixel they are then summed over x with weights that a table holds for each block, only over the control points that
// reach into the block: three products for a 3x3 grid, whatever its kernel, and no look-up.
//
// Blocks (common/warp_coordinates.h) are always computed whole.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/macros.h"
#include "common/warp_coordinates.h"
#include "cpu/elastic_warp.h"

namespace uf::warp {

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
  double centre_[2];
  std::vector<Affine> affine_;   // one a sample
  std::vector<double> control_;  // (N, 2, gh, gw); B-spline coefficients for Field::kBSpline
  std::vector<RowTaps> row_taps_;
  std::vector<Block> block_;
  std::vector<A> weights_;
};

extern template class ElasticField<float>;
extern template class ElasticField<double>;

}  // namespace uf::warp
