// The two nearest *distinct* instances, exactly, with work that does not depend on the number of instances.
//
// First axis (columns): every pixel keeps the two nearest distinct labels of its column. Two suffice: whatever label
// is nearest in the end, one of the two differs from it.
//
// Every other axis (rows): the nearest label is the lower envelope E1 of the columns' best candidates. Let a be the
// label of E1 on a maximal run of positions, z the site of E1 just before that run and b the one just after it. There,
// the second nearest is the envelope of all candidates but those of label a (a column whose best is a offers its
// second best). No site left of z can win: at the position before the run z is nearest of all and not of label a, and
// to the right of that position z gains on everything left of it. Likewise for sites right of b. So the sites z..b are
// enough, and as sites of E1 increase along the row, each column is looked at by at most three runs: O(n) for a row.
#pragma once

#include <cstdint>

#include "common/macros.h"
#include "common/parabola.h"

namespace uf {

// Steps to a label that is not there; larger than any side.
inline constexpr int32_t kNoSteps = int32_t{1} << 30;

// What one pixel knows of its column: the nearest label, the nearest other label, and the steps to both.
struct TwoLabels {
  int32_t label1, steps1;
  int32_t label2, steps2;
};

// A scan along a column: the last label met, the last one met that differs from it, and where.
struct LabelScan {
  int32_t label1, position1;
  int32_t label2, position2;

  UF_HD_INLINE void meet(int32_t label, int32_t position) {
    const bool present = label != 0;
    const bool other = present && label != label1;
    label2 = other ? label1 : label2;
    position2 = other ? position1 : position2;
    label1 = present ? label : label1;
    position1 = present ? position : position1;
  }
};

// The two nearest distinct labels out of what the scans from both ends know.
UF_HD_INLINE TwoLabels merge(const TwoLabels& a, const TwoLabels& b) {
  const bool b_first = b.steps1 < a.steps1;
  const bool same = a.label1 == b.label1;
  const int32_t winner2 = b_first ? b.label2 : a.label2;
  const int32_t winner2_steps = b_first ? b.steps2 : a.steps2;
  const int32_t loser1 = b_first ? a.label1 : b.label1;
  const int32_t loser1_steps = b_first ? a.steps1 : b.steps1;
  const int32_t loser2 = b_first ? a.label2 : b.label2;
  const int32_t loser2_steps = b_first ? a.steps2 : b.steps2;
  const int32_t loser = same ? loser2 : loser1;
  const int32_t loser_steps = same ? loser2_steps : loser1_steps;
  const bool loser_second = loser_steps < winner2_steps;
  return TwoLabels{b_first ? b.label1 : a.label1, b_first ? b.steps1 : a.steps1, loser_second ? loser : winner2,
                   loser_second ? loser_steps : winner2_steps};
}

// What a pixel knows of the nearest two: squared distances, and the label of the first.
template <class Cost>
struct NearestTwo {
  Cost d1;
  int32_t label;
  Cost d2;

  // Takes in one column of the row: its nearest label and the squared distances to that and to its nearest other one.
  UF_HD_INLINE void offer(Cost c1, int32_t other_label, Cost c2) {
    const bool same = other_label == label;
    const bool nearer = c1 < d1;
    const Cost loser = nearer ? d1 : c1;
    const Cost winner2 = nearer ? c2 : d2;
    const Cost closest2 = c2 < d2 ? c2 : d2;
    const Cost different2 = loser < winner2 ? loser : winner2;
    d2 = same ? closest2 : different2;
    d1 = nearer ? c1 : d1;
    label = nearer ? other_label : label;
  }
};

// The candidates of a line: per position two costs and the label of the first (and of the second, where wanted).
template <class Cost>
struct TwoCandidates {
  const Cost* cost1;
  const Cost* cost2;
  const int32_t* label1;
  const int32_t* label2;
};

template <class Cost>
struct OtherThan {
  TwoCandidates<Cost> line;
  int32_t label;
  UF_HD_INLINE Cost operator()(int32_t j) const { return line.label1[j] == label ? line.cost2[j] : line.cost1[j]; }
};

// Squared distances d1, d2 along one line of n positions; `first` and `second` have room for n segments each. With
// kLabels also both labels (0 where there is none), as the next axis of a volume needs them.
template <bool kLabels, class Cost>
UF_HD_INLINE void two_nearest_line(const Axis<Cost>& axis, const TwoCandidates<Cost>& line, int32_t n,
                                   Segment<Cost>* first, Segment<Cost>* second, Cost* d1, Cost* d2, int32_t* label1,
                                   int32_t* label2) {
  const int32_t count = lower_envelope(axis, CostArray<Cost>{line.cost1}, 0, n - 1, 0, n, first);
  evaluate_envelope(axis, first, count, 0, n, d1);
  if (count == 0) {
    evaluate_envelope(axis, first, 0, 0, n, d2);
    if (kLabels) {
      for (int32_t x = 0; x < n; ++x) label1[x] = label2[x] = 0;
    }
    return;
  }
  for (int32_t begin = 0, end = 0; begin < count; begin = end) {
    const int32_t label = line.label1[first[begin].site];
    while (end < count && line.label1[first[end].site] == label) ++end;
    const int32_t lo = first[begin].start;
    const int32_t hi = end < count ? first[end].start : n;
    const int32_t from = begin > 0 ? first[begin - 1].site : 0;
    const int32_t to = end < count ? first[end].site : n - 1;
    const int32_t others = lower_envelope(axis, OtherThan<Cost>{line, label}, from, to, lo, hi, second);
    evaluate_envelope(axis, second, others, lo, hi, d2);
    if (kLabels) {
      for (int32_t x = lo; x < hi; ++x) {
        label1[x] = label;
        label2[x] = 0;
      }
      for (int32_t k = 0; k < others; ++k) {
        const int32_t site = second[k].site;
        const int32_t other = line.label1[site] == label ? line.label2[site] : line.label1[site];
        const int32_t stop = k + 1 < others ? second[k + 1].start : hi;
        for (int32_t x = second[k].start; x < stop; ++x) label2[x] = other;
      }
    }
  }
}

}  // namespace uf
