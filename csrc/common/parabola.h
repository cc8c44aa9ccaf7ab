// Exact squared Euclidean distances along one axis: the lower envelope of parabolas
//     d(x) = min over sites j of  cost[j] + weight * (x - j)^2,
// where cost[j] is the squared distance already found along the other axes. All parabolas have the same opening, so two
// of them cross once, and the sites of the envelope are in the order of their positions: one scan with a stack finds
// it in O(n), whatever the costs are (Meijster, Roerdink and Hesselink 2000; Felzenszwalb and Huttenlocher 2012).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/macros.h"

namespace uf {

// The arithmetic of one axis. `far` is the cost of a position without a site.
template <class Cost>
struct Axis;

// Unit spacing: integers, so the result is exact. Needs the squared diagonal of the image to stay below 2^31 - 1.
template <>
struct Axis<int32_t> {
  static constexpr int32_t far = std::numeric_limits<int32_t>::max();

  explicit Axis(double /*weight*/ = 1.0) {}

  // The cost of `steps` steps along this axis alone.
  UF_HD_INLINE int32_t square(int32_t steps) const { return steps * steps; }
  UF_HD_INLINE int32_t at(int32_t x, int32_t site, int32_t cost) const { return cost + (x - site) * (x - site); }
  // A cost with more added; far stays far.
  UF_HD_INLINE int32_t further(int32_t cost, int32_t more) const {
    const uint32_t sum = static_cast<uint32_t>(cost) + static_cast<uint32_t>(more);
    return sum < static_cast<uint32_t>(far) ? static_cast<int32_t>(sum) : far;
  }

  // Where the parabola of `right` gets below that of `left` (left < right). The quotient of two integers below 2^32 is
  // at least 2^-17 away from the next integer when it is not one itself, so rounding in double never moves its floor.
  UF_HD_INLINE double crossing(int32_t left, int32_t left_cost, int32_t right, int32_t right_cost) const {
    const int64_t numerator = int64_t{right - left} * (right + left) + (int64_t{right_cost} - left_cost);
    return static_cast<double>(numerator) / (2 * (right - left));
  }
};

// Any spacing, in double: exact for unit spacing too (integers below 2^53), so it also serves images too large for int32.
template <>
struct Axis<double> {
  static constexpr double far = std::numeric_limits<double>::infinity();
  double weight;  // spacing squared

  explicit Axis(double weight = 1.0) : weight(weight) {}

  UF_HD_INLINE double square(int32_t steps) const { return weight * (static_cast<double>(steps) * steps); }
  UF_HD_INLINE double at(int32_t x, int32_t site, double cost) const { return cost + square(x - site); }
  UF_HD_INLINE double further(double cost, double more) const { return cost + more; }

  UF_HD_INLINE double crossing(int32_t left, double left_cost, int32_t right, double right_cost) const {
    const double width = static_cast<double>(right) - left;
    return 0.5 * (static_cast<double>(right) + left + (right_cost - left_cost) / (weight * width));
  }
};

// One piece of an envelope: `site` is the nearest one from position `start` up to the start of the next segment.
template <class Cost>
struct Segment {
  int32_t site;
  int32_t start;
  Cost cost;
};

// The lower envelope over positions lo <= x < hi of the candidates first <= j <= last; candidates(j) is the cost of j.
// Writes at most last - first + 1 segments, with increasing sites and strictly increasing starts, and returns their
// number, 0 when all candidates are far. Where two sites are equally near, the left one is kept.
template <class Cost, class Candidates>
UF_HD_INLINE int32_t lower_envelope(const Axis<Cost>& axis, const Candidates& candidates, int32_t first, int32_t last,
                                    int32_t lo, int32_t hi, Segment<Cost>* segments) {
  int32_t top = -1;
  for (int32_t j = first; j <= last; ++j) {
    const Cost cost = candidates(j);
    if (!(cost < Axis<Cost>::far)) continue;
    while (top >= 0) {
      const Segment<Cost>& s = segments[top];
      if (!(axis.at(s.start, s.site, s.cost) > axis.at(s.start, j, cost))) break;
      --top;
    }
    int32_t start = lo;
    if (top >= 0) {
      const Segment<Cost>& s = segments[top];
      const double crossing = axis.crossing(s.site, s.cost, j, cost);
      if (!(crossing < hi - 1)) continue;
      // The crossing is at or beyond s.start; in double, near a tie, rounding may say otherwise.
      start = static_cast<int32_t>(crossing) + 1;
      if (start <= s.start) start = s.start + 1;
      if (start >= hi) continue;
    }
    segments[++top] = Segment<Cost>{j, start, cost};
  }
  return top + 1;
}

// Evaluates an envelope at lo <= x < hi.
template <class Cost>
UF_HD_INLINE void evaluate_envelope(const Axis<Cost>& axis, const Segment<Cost>* segments, int32_t count, int32_t lo,
                                    int32_t hi, Cost* out) {
  if (count == 0) {
    for (int32_t x = lo; x < hi; ++x) out[x] = Axis<Cost>::far;
    return;
  }
  for (int32_t k = 0; k < count; ++k) {
    const Segment<Cost> s = segments[k];
    const int32_t end = k + 1 < count ? segments[k + 1].start : hi;
    for (int32_t x = s.start; x < end; ++x) out[x] = axis.at(x, s.site, s.cost);
  }
}

// Candidates straight from an array of costs.
template <class Cost>
struct CostArray {
  const Cost* cost;
  UF_HD_INLINE Cost operator()(int32_t j) const { return cost[j]; }
};

}  // namespace uf
