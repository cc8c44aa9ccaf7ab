// Source coordinates of the output pixels, for blocks of pixels of one row.
//
// The field is separable. Per row, the control points (displacements, times the matrix) are first summed over y: two short
// rows of grid_width numbers. Per pixel they are then summed over x with weights that a table holds for each block, only
// over the control points that reach into the block: three products for a 3x3 grid, whatever its kernel, and no look-up.
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
  const A* control_y;  // the row of control points from the first one that reaches into the block
  const A* control_x;
  const A* weights;  // count x kBlock
  int64_t count;
  int64_t origin_y, origin_x;
  A offset_y, offset_x;  // of the block's first pixel from the origin, without the field
  A step_y, step_x;      // from one pixel to the next, without the field
};

void block_coordinates(const BlockRow<float>& row, Coordinates<float>& out);
void block_coordinates(const BlockRow<double>& row, Coordinates<double>& out);

// The control points that reach into a block, and the place of their weights in the table.
struct BlockTable {
  int64_t first, count, weights;
};

// What locating several blocks of a row reads.
template <class A>
struct StripRow {
  const A* control;  // of the row: along y, then along x
  int64_t grid_width;
  const BlockTable* table;  // of the first block
  const A* weights;
  const double* matrix;  // of the sample
  const double* centre;
  int64_t y, first, count;  // blocks first ... first + count - 1
};

template <class A>
class ElasticField {
 public:
  // Tables for the frame pixels rows x columns. Workspace: the control points, 64 bytes a row, 4 or 8 bytes per
  // column and control point that reaches into its block.
  ElasticField(const WarpFrame& frame, Range rows, Range columns);

  Range blocks() const { return blocks_; }
  // Numbers that a row needs: give as many to row().
  int64_t row_size() const { return 2 * grid_width_; }
  // The control points of sample n, times the matrix, summed over y for frame row y.
  void row(int64_t n, int64_t y, A* out) const;
  // Frame pixels (y, kBlock * block + 0 ... kBlock - 1) of sample n.
  BlockRow<A> block_row(int64_t n, int64_t y, int64_t block, const A* row) const {
    const BlockTable& b = block_[static_cast<size_t>(block - blocks_.begin)];
    const double* m = affine_[static_cast<size_t>(n)].m;
    const double pixel_y = static_cast<double>(y), pixel_x = static_cast<double>(block * kBlock);
    const BlockStart start_y = block_start(m, pixel_y, pixel_x, centre_, 0);
    const BlockStart start_x = block_start(m + 3, pixel_y, pixel_x, centre_, 1);
    return {row + b.first,
            row + grid_width_ + b.first,
            weights_.data() + b.weights,
            b.count,
            start_y.origin,
            start_x.origin,
            static_cast<A>(start_y.offset),
            static_cast<A>(start_x.offset),
            static_cast<A>(m[1]),
            static_cast<A>(m[4])};
  }
  // The blocks `blocks` of that row.
  StripRow<A> strip_row(int64_t n, int64_t y, Range blocks, const A* row) const {
    return {row,
            grid_width_,
            block_.data() + (blocks.begin - blocks_.begin),
            weights_.data(),
            affine_[static_cast<size_t>(n)].m,
            centre_,
            y,
            blocks.begin,
            blocks.end - blocks.begin};
  }

 private:
  struct RowTaps {
    int32_t index[4];
    double weight[4];
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
  std::vector<BlockTable> block_;
  std::vector<A> weights_;
};

extern template class ElasticField<float>;
extern template class ElasticField<double>;

}  // namespace uf::warp
