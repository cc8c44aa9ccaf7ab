#include "cpu/elastic_field.h"

namespace uf::warp {
namespace {

template <class A>
UF_INLINE void block_coordinates_impl(const BlockRow<A>& row, Coordinates<A>& out) {
  alignas(64) A uy[kBlock], ux[kBlock];
  for (int k = 0; k < kBlock; ++k) uy[k] = ux[k] = A(0);
  for (int64_t j = 0; j < row.count; ++j) {
    const A* w = row.weights + j * kBlock;
    const A dy = row.control_y[j], dx = row.control_x[j];
    for (int k = 0; k < kBlock; ++k) {
      uy[k] += dy * w[k];
      ux[k] += dx * w[k];
    }
  }
  const BlockRow<A> in = row;  // a copy: the stores below cannot change it
  for (int k = 0; k < kBlock; ++k) {
    const A step = static_cast<A>(k);
    out.y[k] = in.offset_y + (in.step_y * step + (in.matrix_yy * uy[k] + in.matrix_yx * ux[k]));
    out.x[k] = in.offset_x + (in.step_x * step + (in.matrix_xy * uy[k] + in.matrix_xx * ux[k]));
  }
}

}  // namespace

UF_MULTIVERSION void block_coordinates(const BlockRow<float>& row, Coordinates<float>& out) {
  block_coordinates_impl(row, out);
}
void block_coordinates(const BlockRow<double>& row, Coordinates<double>& out) { block_coordinates_impl(row, out); }

template <class A>
ElasticField<A>::ElasticField(const WarpFrame& frame, Range rows, Range columns)
    : rows_(rows),
      blocks_(columns.blocks()),
      grid_height_(frame.grid_height),
      grid_width_(frame.grid_width),
      centre_{0.5 * static_cast<double>(frame.height - 1), 0.5 * static_cast<double>(frame.width - 1)} {
  const int64_t points = grid_height_ * grid_width_, planes = 2 * frame.batch;
  control_.resize(static_cast<size_t>(planes * points));
  for (int64_t i = 0; i < planes * points; ++i) control_[static_cast<size_t>(i)] = frame.displacement[i];
  if (frame.field == Field::kBSpline) {
    for (int64_t plane = 0; plane < planes; ++plane) {
      double* c = control_.data() + plane * points;
      for (int64_t i = 0; i < grid_height_; ++i) bspline_prefilter(c + i * grid_width_, 1, grid_width_);
      for (int64_t j = 0; j < grid_width_; ++j) bspline_prefilter(c + j, grid_width_, grid_height_);
    }
  }

  affine_.resize(static_cast<size_t>(frame.batch), {1, 0, 0, 0, 1, 0});
  for (int64_t i = 0; frame.matrix.data && i < 6 * frame.batch; ++i) {
    affine_[static_cast<size_t>(i / 6)].m[i % 6] = frame.matrix[i];
  }

  row_taps_.reserve(static_cast<size_t>(rows.end - rows.begin));
  for (int64_t y = rows.begin; y < rows.end; ++y) {
    int64_t index[4];
    RowTaps taps;
    control_taps(frame.field, y, frame.height, grid_height_, index, taps.weight);
    for (int k = 0; k < 4; ++k) taps.index[k] = static_cast<int32_t>(index[k]);
    row_taps_.push_back(taps);
  }

  block_.reserve(static_cast<size_t>(blocks_.end - blocks_.begin));
  for (int64_t b = blocks_.begin; b < blocks_.end; ++b) {
    int64_t index[kBlock][4], first = grid_width_, last = 0;
    double weight[kBlock][4];
    for (int k = 0; k < kBlock; ++k) {
      control_taps(frame.field, b * kBlock + k, frame.width, grid_width_, index[k], weight[k]);
      first = std::min(first, *std::min_element(index[k], index[k] + 4));
      last = std::max(last, *std::max_element(index[k], index[k] + 4));
    }
    const Block block{first, last - first + 1, static_cast<int64_t>(weights_.size())};
    weights_.resize(weights_.size() + static_cast<size_t>(block.count * kBlock), A(0));
    A* table = weights_.data() + block.weights;
    for (int k = 0; k < kBlock; ++k) {
      for (int t = 0; t < 4; ++t) table[(index[k][t] - first) * kBlock + k] += static_cast<A>(weight[k][t]);
    }
    block_.push_back(block);
  }
}

template <class A>
void ElasticField<A>::row(int64_t n, int64_t y, A* out) const {
  const RowTaps& taps = row_taps_[static_cast<size_t>(y - rows_.begin)];
  for (int axis = 0; axis < 2; ++axis) {
    const double* plane = control_.data() + (2 * n + axis) * grid_height_ * grid_width_;
    for (int64_t j = 0; j < grid_width_; ++j) {
      double sum = 0;
      for (int k = 0; k < 4; ++k) sum += taps.weight[k] * plane[taps.index[k] * grid_width_ + j];
      out[axis * grid_width_ + j] = static_cast<A>(sum);
    }
  }
}

template <class A>
void ElasticField<A>::coordinates(int64_t n, int64_t y, int64_t block, const A* row, Coordinates<A>& out) const {
  const Block& b = block_[static_cast<size_t>(block - blocks_.begin)];
  const double* m = affine_[static_cast<size_t>(n)].m;
  const double pixel_y = static_cast<double>(y), pixel_x = static_cast<double>(block * kBlock);
  const BlockStart start_y = block_start(m, pixel_y, pixel_x, centre_, 0);
  const BlockStart start_x = block_start(m + 3, pixel_y, pixel_x, centre_, 1);
  out.origin_y = start_y.origin;
  out.origin_x = start_x.origin;
  BlockRow<A> in;
  in.control_y = row + b.first;
  in.control_x = row + grid_width_ + b.first;
  in.weights = weights_.data() + b.weights;
  in.count = b.count;
  in.offset_y = static_cast<A>(start_y.offset);
  in.offset_x = static_cast<A>(start_x.offset);
  in.matrix_yy = static_cast<A>(m[0]);
  in.matrix_yx = in.step_y = static_cast<A>(m[1]);
  in.matrix_xy = static_cast<A>(m[3]);
  in.matrix_xx = in.step_x = static_cast<A>(m[4]);
  block_coordinates(in, out);
}

template class ElasticField<float>;
template class ElasticField<double>;

}  // namespace uf::warp
