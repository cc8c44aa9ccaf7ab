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

// Whose Dice losses are taken: of each image, or of the batch.
UF_HD_INLINE int64_t dice_regions(const DiceCrossEntropyShape& s, const DiceCrossEntropyOptions& o) {
  return o.batch && s.batch > 0 ? 1 : s.batch;
}

// The slope of the loss by each sum of cross-entropy, for that many counted pixels in all.
UF_HD_INLINE double of_cross_entropy(const DiceCrossEntropyShape& s, const DiceCrossEntropyOptions& o, double counted) {
  const double number = counted * static_cast<double>(s.sigmoid ? s.classes : 1);
  return s.cross_entropy ? o.lambda_ce / (o.mean && number != 0 ? number : 1) : 0;
}

// What one class of one region adds to the loss, and its slopes by both and predicted. `total`: predicted + truth.
struct DiceOfRegion {
  double loss, by_both, by_predicted;
};

UF_HD_INLINE DiceOfRegion dice_of_region(const DiceCrossEntropyShape& s, const DiceCrossEntropyOptions& o, int64_t c,
                                         double class_weight, double both, double total) {
  const double below = total + o.smooth_dr, above = 2 * both + o.smooth_nr;
  // a class that is neither there nor predicted has no loss. A NaN is one
  if (o.lambda_dice == 0 || c < o.first || below <= 0) return {0, 0, 0};
  const int64_t regions = dice_regions(s, o), classes = s.classes - o.first;
  const double share = o.lambda_dice / static_cast<double>(o.mean && regions > 0 ? regions * classes : 1);
  const double of_class = share * (classes > 1 ? class_weight : 1);
  return {of_class * (1 - above / below), -2 * of_class / below, of_class * above / (below * below)};
}

}  // namespace uf

// Doubles of workspace that the sums need on a GPU.
#if defined(USE_CUDA) || defined(__CUDACC__)
namespace uf::cuda {
int64_t dice_cross_entropy_workspace(const DiceCrossEntropyShape& shape);
}  // namespace uf::cuda
#else
namespace uf {
inline int64_t dice_cross_entropy_workspace(const DiceCrossEntropyShape&) { return 0; }
}  // namespace uf
#endif

// On a GPU, where nobody waits for `bad`, the sums of such an image are NaN.
UF_KERNEL(region_sums, const uf::DiceCrossEntropyShape& shape, const uf::DiceCrossEntropyInputs& inputs,
          const uf::DiceCrossEntropySums& sums, double* workspace, uf::BadClass& bad)

// The same, then the loss (wide) and its slopes (double).
UF_KERNEL(dice_cross_entropy, const uf::DiceCrossEntropyShape& shape, const uf::DiceCrossEntropyInputs& inputs,
          const uf::DiceCrossEntropyOptions& options, const uf::DiceCrossEntropySums& sums, void* loss, double* slopes,
          double* workspace, uf::BadClass& bad)

// slopes (N, 2 K + 1): of a loss, by both, predicted and cross_entropy.
UF_KERNEL(dice_cross_entropy_backward, const uf::DiceCrossEntropyShape& shape, const uf::DiceCrossEntropyInputs& inputs,
          const double* slopes, void* grad_logits)
