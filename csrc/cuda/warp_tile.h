// The coordinates of a tile of 64 x 16 output pixels, for the warp and its gradient.
//
// The field is separable and never stored. A tile first writes down, in shared memory, the control weights of its 64 columns,
// those of its 16 rows, and, per row, the control points (displacements, times the matrix) that reach into the tile, summed
// over y: 16 x 3 pairs of numbers for a 3 x 3 grid. A pixel then adds four of these pairs. Divisions and float64, which the weights need, are thus paid once a
// row or column of the tile. Where control points lie denser than every fifth pixel or so the pairs do not fit and a pixel
// sums its 4 x 4 control points itself.
//
// A warp covers 8 x 4 pixels at a time and walks down the 16 rows in four such steps. Augmentation rotates by any angle:
// 32 pixels of a row then lie on up to 32 lines of the cache, 8 x 4 pixels on nine at most. 8 floats are also one sector of
// 32 bytes, the least that memory moves. Columns are those of the blocks of common/warp_coordinates.h.
#pragma once

#include "common/warp_coordinates.h"
#include "common/warp_taps.h"
#include "common/warp_types.h"
#include "cuda/launch.h"

namespace uf::cuda {

constexpr int kTileRows = 16, kWarpColumns = 8, kWarpRows = kWarp / kWarpColumns;
constexpr int kRowsPerThread = kTileRows / kWarpRows;
constexpr int kWarpThreads = warp::kBlock / kWarpColumns * kWarp;
constexpr int kPairs = 20;  // control points per row of a tile that are summed over y in advance

// Turns the displacement of the frame into `coefficients` where its field wants them (elastic_warp.cu).
cudaError_t prefilter_control_points(WarpFrame& frame, void* coefficients, cudaStream_t stream);

// The frame as the kernels need it, and the tiles that cover a range of it.
struct WarpGrid {
  WarpFrame frame;  // the displacement is that of B-spline coefficients for Field::kBSpline
  int64_t first_row, first_block;
  uint32_t tiles_y, tiles_x;

  WarpGrid(const WarpFrame& frame, warp::Range rows, warp::Range columns)
      : frame(frame),
        first_row(rows.begin),
        first_block(columns.blocks().begin),
        tiles_y(static_cast<uint32_t>(ceil_div(rows.end - rows.begin, kTileRows))),
        tiles_x(static_cast<uint32_t>(columns.blocks().end - columns.blocks().begin)) {}

  int64_t tiles() const { return frame.batch * tiles_y * tiles_x; }
};

// Where an output pixel reads: the pixel at or before its coordinates, and the rest.
template <class A>
struct WarpPoint {
  warp::AxisPoint<A> y, x;
};

template <class A>
struct WarpTables {
  int32_t index_x[4][warp::kBlock];
  A weight_x[4][warp::kBlock];
  int32_t index_y[kTileRows][4];
  double weight_y[kTileRows][4];
  Vector<A, 2> pair[kTileRows][kPairs];  // along y, along x
  int32_t origin_y[kTileRows], origin_x[kTileRows];
  A offset_y[kTileRows], offset_x[kTileRows];
  ControlRange range;  // of the columns
};

// One thread's share of a tile: column `x` of the frame and the rows `y` + kWarpRows * i.
template <class A>
class WarpTile {
 public:
  int64_t n, y, x;

  __device__ WarpTile(const WarpGrid& grid, WarpTables<A>& tables) : grid_(grid), tables_(tables) {
    const uint32_t block = blockIdx.x, tile_y = block / grid.tiles_x;
    n = tile_y / grid.tiles_y;
    first_row_ = grid.first_row + static_cast<int64_t>(tile_y % grid.tiles_y) * kTileRows;
    first_column_ = (grid.first_block + block % grid.tiles_x) * warp::kBlock;
    const int lane = threadIdx.x % kWarp;
    column_ = threadIdx.x / kWarp * kWarpColumns + lane % kWarpColumns;
    row_ = lane / kWarpColumns;
    y = first_row_ + row_;
    x = first_column_ + column_;
    double m[6];
    load_matrix(m);
    weigh_axes(m);
    __syncthreads();
    paired_ = tables.range.count <= kPairs;  // the same for the whole block
    first_pair_ = paired_ ? static_cast<int32_t>(tables.range.first) : 0;
    if (paired_) {
      add_pairs(m);
      __syncthreads();
    }
    step_y_ = static_cast<A>(m[1]);
    step_x_ = static_cast<A>(m[4]);
  }

  // For i from 0 to kRowsPerThread - 1.
  __device__ WarpPoint<A> point(int i) const {
    const WarpFrame& frame = grid_.frame;
    const int row = row_ + i * kWarpRows;
    A uy = 0, ux = 0;
    if (paired_) {
#pragma unroll
      for (int k = 0; k < 4; ++k) add_column(tables_.pair[row][tables_.index_x[k][column_] - first_pair_], k, uy, ux);
    } else {
      double m[6];
      load_matrix(m);
#pragma unroll 1
      for (int k = 0; k < 4; ++k) add_column(control_pair(m, row, tables_.index_x[k][column_]), k, uy, ux);
    }
    const A step = static_cast<A>(column_);
    const A relative_y = tables_.offset_y[row] + warp::multiply_add(step_y_, step, uy);
    const A relative_x = tables_.offset_x[row] + warp::multiply_add(step_x_, step, ux);
    return {warp::axis_point(frame.padding, tables_.origin_y[row], relative_y, static_cast<int32_t>(frame.height)),
            warp::axis_point(frame.padding, tables_.origin_x[row], relative_x, static_cast<int32_t>(frame.width))};
  }

 private:
  __device__ void load_matrix(double m[6]) const {
    const Reals& matrix = grid_.frame.matrix;
#pragma unroll
    for (int i = 0; i < 6; ++i) m[i] = matrix.data ? matrix[6 * n + i] : (i % 4 == 0 ? 1.0 : 0.0);
  }

  // Column `index` of the control points, times the matrix, summed over y for a row of the tile.
  __device__ Vector<A, 2> control_pair(const double m[6], int row, int64_t index) const {
    const WarpFrame& frame = grid_.frame;
    const int64_t points = frame.grid_height * frame.grid_width, first = 2 * n * points + index;
    double along_y = 0, along_x = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t at = first + tables_.index_y[row][k] * frame.grid_width;
      along_y += tables_.weight_y[row][k] * frame.displacement[at];
      along_x += tables_.weight_y[row][k] * frame.displacement[at + points];
    }
    return {{static_cast<A>(m[0] * along_y + m[1] * along_x), static_cast<A>(m[3] * along_y + m[4] * along_x)}};
  }

  __device__ void add_column(const Vector<A, 2>& sums, int k, A& uy, A& ux) const {
    const A weight = tables_.weight_x[k][column_];
    uy = warp::multiply_add(weight, sums.values[0], uy);
    ux = warp::multiply_add(weight, sums.values[1], ux);
  }

  __device__ void weigh_axes(const double m[6]) {
    const WarpFrame& frame = grid_.frame;
    const int thread = threadIdx.x, row = thread - warp::kBlock;
    int64_t index[4];
    double weight[4];
    if (thread < warp::kBlock) {
      control_taps(frame.field, first_column_ + thread, frame.width, frame.grid_width, index, weight);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        tables_.index_x[k][thread] = static_cast<int32_t>(index[k]);
        tables_.weight_x[k][thread] = static_cast<A>(weight[k]);
      }
    } else if (row < kTileRows) {
      control_taps(frame.field, first_row_ + row, frame.height, frame.grid_height, index, weight);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        tables_.index_y[row][k] = static_cast<int32_t>(index[k]);
        tables_.weight_y[row][k] = weight[k];
      }
      const double centre[2] = {0.5 * static_cast<double>(frame.height - 1), 0.5 * static_cast<double>(frame.width - 1)};
      const double pixel_y = static_cast<double>(first_row_ + row), pixel_x = static_cast<double>(first_column_);
      const warp::BlockStart start_y = warp::block_start(m, pixel_y, pixel_x, centre, 0);
      const warp::BlockStart start_x = warp::block_start(m + 3, pixel_y, pixel_x, centre, 1);
      tables_.origin_y[row] = static_cast<int32_t>(start_y.origin);
      tables_.origin_x[row] = static_cast<int32_t>(start_x.origin);
      tables_.offset_y[row] = static_cast<A>(start_y.offset);
      tables_.offset_x[row] = static_cast<A>(start_x.offset);
    } else if (row == kTileRows) {
      const int64_t last = first_column_ + warp::kBlock - 1;
      tables_.range = control_range(frame.field, first_column_, last, frame.width, frame.grid_width);
    }
  }

  __device__ void add_pairs(const double m[6]) {
    const int count = kTileRows * static_cast<int>(tables_.range.count);
    for (int i = threadIdx.x; i < count; i += kWarpThreads) {
      const int row = i % kTileRows, column = i / kTileRows;
      tables_.pair[row][column] = control_pair(m, row, first_pair_ + column);
    }
  }

  const WarpGrid& grid_;
  WarpTables<A>& tables_;
  int64_t first_row_, first_column_;
  int column_, row_, first_pair_;
  bool paired_;
  A step_y_, step_x_;  // from one pixel of a row to the next, without the field
};

}  // namespace uf::cuda
