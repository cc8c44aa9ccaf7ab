// What the passes along lines share: the axes, and the buffers of one thread (costs in, squared distances out, envelopes
// between).
#pragma once

#include <cstdint>
#include <memory>

#include "common/distance_grid.h"
#include "common/parabola.h"

namespace uf {

// The axes of a grid in the order of the passes, the first of which is the scan.
template <class Cost>
struct GridAxes {
  Axis<Cost> scan, middle, last;
  int64_t middle_length, last_length;
  double scale;

  explicit GridAxes(const DistanceGrid& grid)
      : scan(grid.scan_weight()),
        middle(grid.middle_weight()),
        last(grid.last_weight()),
        middle_length(grid.middle),
        last_length(grid.last),
        scale(grid.scale()) {}
};

template <class Cost>
struct LineScratch {
  Cost *cost1, *cost2, *d1, *d2;
  Segment<Cost>*first, *second;
  int32_t *label1, *label2, *near1, *near2;
};

// Scratch for `pieces` threads and lines of up to n positions, in one allocation; `labels` adds the label buffers.
template <class Cost>
class LineScratches {
 public:
  LineScratches(int64_t pieces, int64_t n, bool labels)
      : n_(n),
        costs_(std::make_unique_for_overwrite<Cost[]>(static_cast<size_t>(pieces * 4 * n))),
        segments_(std::make_unique_for_overwrite<Segment<Cost>[]>(static_cast<size_t>(pieces * 2 * n))),
        labels_(labels ? std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(pieces * 4 * n)) : nullptr) {}

  LineScratch<Cost> operator[](int64_t piece) const {
    Cost* c = costs_.get() + piece * 4 * n_;
    Segment<Cost>* s = segments_.get() + piece * 2 * n_;
    int32_t* l = labels_ ? labels_.get() + piece * 4 * n_ : nullptr;
    if (!l) return {c, c + n_, c + 2 * n_, c + 3 * n_, s, s + n_, nullptr, nullptr, nullptr, nullptr};
    return {c, c + n_, c + 2 * n_, c + 3 * n_, s, s + n_, l, l + n_, l + 2 * n_, l + 3 * n_};
  }

 private:
  int64_t n_;
  std::unique_ptr<Cost[]> costs_;
  std::unique_ptr<Segment<Cost>[]> segments_;
  std::unique_ptr<int32_t[]> labels_;
};

// Steps of the scan as costs: squared and weighted, `far` where there was nothing on the line.
template <class Cost>
UF_INLINE void steps_to_costs(const Axis<Cost>& axis, const int32_t* __restrict steps, int64_t stride, int32_t limit,
                              int32_t n, Cost* __restrict cost) {
  for (int32_t i = 0; i < n; ++i) {
    const int32_t s = steps[i * stride];
    cost[i] = s >= limit ? Axis<Cost>::far : axis.square(s >= limit ? 0 : s);
  }
}

// Squared distances in units of the coarsest spacing to distances. In double, so that the root of an exact square is
// the float32 nearest to the true distance.
template <class Cost>
UF_INLINE void write_distances(const Cost* __restrict squared, int32_t n, double scale, float* __restrict out) {
  for (int32_t i = 0; i < n; ++i) {
    const double d = std::sqrt(static_cast<double>(squared[i])) * scale;
    out[i] = squared[i] == Axis<Cost>::far ? std::numeric_limits<float>::infinity() : static_cast<float>(d);
  }
}

}  // namespace uf
