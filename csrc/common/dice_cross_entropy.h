// The sums over pixels that a soft Dice loss and a cross-entropy are made of, and their gradient: shape and kernels.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/kernel.h"
#include "common/macros.h"

namespace uf {

// Logits (N, K, P) with any even strides. The target is a class map (N, P) of integers without gaps (0 and 1 where K = 1), or, with
// `soft`, probabilities (N, K, P) with strides of their own, in the wide dtype.
struct DiceCrossEntropyShape {
  int64_t batch, classes, pixels;
  int64_t logits_stride[3], target_stride[3];  // of N, K, P
  int64_t grad_class_stride, grad_pixel_stride;  // the gradient has no gaps
  int64_t ignore_index;
  double smoothing;      // of the labels
  bool sigmoid, soft;    // else softmax, class map
  bool cross_entropy;    // whether anyone wants it
  DType type, target_type;
};

// Wide: weight (N, P), class_weight (K), both null for 1.
struct DiceCrossEntropyInputs {
  const void* logits;
  const void* target;
  const void* weight;
  const void* class_weight;
};

// All double. With p the probability of a class, t its truth, w the weight: both = sum w p t, predicted = sum w p, truth = sum w t,
// (N, K); cross_entropy = sum w times that of a pixel, counted = pixels that are not ignored (softmax, class map: the sum of the
// weights of their classes), (N).
struct DiceCrossEntropySums {
  double* both;
  double* predicted;
  double* truth;
  double* cross_entropy;
  double* counted;
};

// A target outside its range, if one was found.
struct BadClass {
  bool found;
  double value;
};

// How the sums become a loss.
struct DiceCrossEntropyOptions {
  double lambda_dice, lambda_ce, smooth_nr, smooth_dr;
  int64_t first;     // class with a Dice loss
  bool batch, mean;  // sums over the batch; losses are divided by their number
};

// The loss, and its slopes (N, 2 K + 1) by both, predicted and cross_entropy. class_weight (K) may be null.
template <class A>
UF_HD double dice_cross_entropy_of_sums(const DiceCrossEntropyShape& s, const DiceCrossEntropyOptions& o,
                                        const DiceCrossEntropySums& sums, const A* class_weight, double* slopes) {
  const int64_t k = s.classes, width = 2 * k + 1, regions = o.batch && s.batch > 0 ? 1 : s.batch;
  double loss = 0, total = 0, number = 0;
  for (int64_t i = 0; i < s.batch * width; ++i) slopes[i] = 0;
  for (int64_t n = 0; n < s.batch; ++n) {
    total += sums.cross_entropy[n];
    number += sums.counted[n] * static_cast<double>(s.sigmoid ? k : 1);
  }
  const double each = o.lambda_ce / (o.mean && number != 0 ? number : 1);
  if (s.cross_entropy) loss += each * total;
  for (int64_t n = 0; s.cross_entropy && n < s.batch; ++n) slopes[n * width + 2 * k] = each;
  if (o.lambda_dice == 0) return loss;
  const double share = o.lambda_dice / static_cast<double>(o.mean && regions > 0 ? regions * (k - o.first) : 1);
  for (int64_t n = 0; n < regions; ++n) {
    const int64_t end = o.batch ? s.batch : n + 1;
    for (int64_t c = o.first; c < k; ++c) {
      double both = 0, below = o.smooth_dr;
      for (int64_t i = n; i < end; ++i) {
        both += sums.both[i * k + c];
        below += sums.predicted[i * k + c] + sums.truth[i * k + c];
      }
      if (below <= 0) continue;  // neither there nor predicted: no loss. A NaN is one
      const double of_class = share * (class_weight != nullptr && k - o.first > 1 ? static_cast<double>(class_weight[c]) : 1);
      const double above = 2 * both + o.smooth_nr;
      loss += of_class * (1 - above / below);
      for (int64_t i = n; i < end; ++i) {
        slopes[i * width + c] = -2 * of_class / below;
        slopes[i * width + k + c] = of_class * above / (below * below);
      }
    }
  }
  return loss;
}

}  // namespace uf

// On a GPU, where nobody waits for `bad`, the sums of such an image are NaN.
UF_KERNEL(region_sums, const uf::DiceCrossEntropyShape& shape, const uf::DiceCrossEntropyInputs& inputs,
          const uf::DiceCrossEntropySums& sums, uf::BadClass& bad)

// The same, then the loss (wide) and its slopes (double).
UF_KERNEL(dice_cross_entropy, const uf::DiceCrossEntropyShape& shape, const uf::DiceCrossEntropyInputs& inputs,
          const uf::DiceCrossEntropyOptions& options, const uf::DiceCrossEntropySums& sums, void* loss, double* slopes,
          uf::BadClass& bad)

// slopes (N, 2 K + 1): of a loss, by both, predicted and cross_entropy.
UF_KERNEL(dice_cross_entropy_backward, const uf::DiceCrossEntropyShape& shape, const uf::DiceCrossEntropyInputs& inputs,
          const double* slopes, void* grad_logits)
