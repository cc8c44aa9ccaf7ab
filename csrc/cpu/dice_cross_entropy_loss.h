// From the sums of a Dice loss with a cross-entropy over all pixels to its value and its slopes by them.
#pragma once

#include <cstdint>

#include "common/dice_cross_entropy.h"

namespace uf {

// The loss, and its slopes (N, 2 K + 1) by both, predicted and cross_entropy. class_weight (K) may be null.
template <class A>
double loss_of_sums(const DiceCrossEntropyShape& s, const DiceCrossEntropyOptions& o, const DiceCrossEntropySums& sums,
                    const A* class_weight, double* slopes) {
  const int64_t k = s.classes, width = 2 * k + 1;
  double total = 0, counted = 0, loss = 0;
  for (int64_t n = 0; n < s.batch; ++n) {
    total += sums.cross_entropy[n];
    counted += sums.counted[n];
  }
  const double each = of_cross_entropy(s, o, counted);
  for (int64_t n = 0; n < dice_regions(s, o); ++n) {
    const int64_t end = o.batch ? s.batch : n + 1;
    for (int64_t c = 0; c < k; ++c) {
      double both = 0, sum = 0;
      for (int64_t i = n; i < end; ++i) {
        both += sums.both[i * k + c];
        sum += sums.predicted[i * k + c] + sums.truth[i * k + c];
      }
      const double weight = class_weight ? static_cast<double>(class_weight[c]) : 1.0;
      const DiceOfRegion region = dice_of_region(s, o, c, weight, both, sum);
      loss += region.loss;
      for (int64_t i = n; i < end; ++i) {
        slopes[i * width + c] = region.by_both;
        slopes[i * width + k + c] = region.by_predicted;
      }
    }
  }
  for (int64_t n = 0; n < s.batch; ++n) slopes[n * width + 2 * k] = each;
  return loss + (s.cross_entropy ? each * total : 0);
}

}  // namespace uf
