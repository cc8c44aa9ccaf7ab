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
  out.origin_y = in.origin_y;
  out.origin_x = in.origin_x;
  for (int k = 0; k < kBlock; ++k) {
    out.y[k] = in.offset_y + multiply_add(in.step_y, static_cast<A>(k), uy[k]);
    out.x[k] = in.offset_x + multiply_add(in.step_x, static_cast<A>(k), ux[k]);
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
    const BlockTable block{first, last - first + 1, static_cast<int64_t>(weights_.size())};
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
  const double* m = affine_[static_cast<size_t>(n)].m;
  const int64_t points = grid_height_ * grid_width_;
  const double* plane = control_.data() + 2 * n * points;
  for (int64_t j = 0; j < grid_width_; ++j) {
    double sum_y = 0, sum_x = 0;
    for (int k = 0; k < 4; ++k) {
      const double* point = plane + taps.index[k] * grid_width_ + j;
      sum_y += taps.weight[k] * point[0];
      sum_x += taps.weight[k] * point[points];
    }
    out[j] = static_cast<A>(m[0] * sum_y + m[1] * sum_x);
    out[grid_width_ + j] = static_cast<A>(m[3] * sum_y + m[4] * sum_x);
  }
}

template class ElasticField<float>;
template class ElasticField<double>;

}  // namespace uf::warp
