// The maths of a Dice loss and a binary cross-entropy on one block of pixels, whose logits lie in one row a class. Each class is alone.
//
// With u = exp(-|x|), p and 1 - p are 1 / (1 + u) and u / (1 + u) in the order that the sign of x says, and with the truth t and the
// weight v of the truth
//
//   cross-entropy   (1 - t) (max(x, 0) + log(1 + u)) + v t (max(-x, 0) + log(1 + u))
//   its gradient    (1 - t) p - v t (1 - p)
//   of the sums     p (1 - p) G, G = grad_predicted + t grad_both
//
// Where all weights are 1 the logarithms of a lane are one: (1 + U) (1 + u) = 1 + (U + u (1 + U)). All terms are positive, so that
// small losses keep their digits.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/softmax.h"
#include "cpu/cross_entropy_block.h"
#include "cpu/dice_cross_entropy_rows.h"
#include "cpu/lanes.h"

namespace uf {

constexpr int kSigmoidLanes = 16;
static_assert(kMostPixels / kSigmoidLanes <= 100, "a product of so many numbers of at most 2 is a float");

template <class A>
struct SigmoidSums {
  A both[kSigmoidLanes] = {}, predicted[kSigmoidLanes] = {}, truth[kSigmoidLanes] = {}, cost[kSigmoidLanes] = {};
  A product[kSigmoidLanes] = {};  // less 1: U
};

// What a pixel adds to lane j. `weighted`: by pixel or by truth.
template <bool with_loss, bool weighted, class A>
UF_INLINE void add_pixel(A x, A is, A w, A v, int j, SigmoidSums<A>& sums) {
  const A far = std::abs(x), u = exp_nonpositive(-far) + (x - x), y = A(1) + u, inverse = A(1) / y;
  const A p = w * (x < 0 ? u * inverse : inverse);
  sums.both[j] += p * is;
  sums.predicted[j] += p;
  sums.truth[j] += w * is;
  if constexpr (with_loss) {
    // max(x, 0) and max(-x, 0), without a second look at the sign, which GCC makes a branch of
    const A above = A(0.5) * (far + x), below = A(0.5) * (far - x);
    if constexpr (weighted) {
      const A log = log1p_nonnegative(u, y, inverse);
      sums.cost[j] += w * ((A(1) - is) * (above + log) + v * is * (below + log));
    } else {
      sums.cost[j] += (A(1) - is) * above + is * below;
      sums.product[j] += u * (A(1) + sums.product[j]);
    }
  }
}

template <class A>
UF_INLINE double all_lanes(const A (&lanes)[kSigmoidLanes]) {
  double sum = 0;
  for (int j = 0; j < kSigmoidLanes; ++j) sum += static_cast<double>(lanes[j]);
  return sum;
}

template <bool soft, bool with_loss, bool weighted, class A>
UF_INLINE void sigmoid_sums(const Rows<A>& rows, double* both, double* predicted, double* truth, double& loss) {
  constexpr int L = kSigmoidLanes;
  const A* __restrict weight = rows.weight;
  const int32_t* __restrict target = rows.target;
  for (int32_t k = 0; k < rows.classes; ++k) {
    const A* __restrict x = rows.logits + k * rows.logits_pitch;
    const A* __restrict t = rows.t + (soft ? k * rows.t_pitch : 0);
    const int32_t which = rows.classes == 1 ? 1 : k;
    const A v = rows.class_weight[k];
    SigmoidSums<A> sums;
    const auto add = [&](int64_t i, int j) {
      const A w = weighted ? weight[i] : A(1);
      add_pixel<with_loss, weighted>(x[i], truth_of<soft>(t, target, i, which), w, v, j, sums);
    };
    int64_t i = 0;
    for (; i + L <= rows.pixels; i += L) UF_LANES(j) add(i + j, j);
    for (int j = 0; i < rows.pixels; ++i, ++j) add(i, j);
    both[k] += all_lanes(sums.both);
    predicted[k] += all_lanes(sums.predicted);
    truth[k] += all_lanes(sums.truth);
    if constexpr (with_loss && !weighted) {
      UF_LANES(j) {
        const A u = sums.product[j], y = A(1) + u;
        sums.cost[j] += log1p_nonnegative(u, y, A(1) / y);
      }
    }
    if constexpr (with_loss) loss += all_lanes(sums.cost);
  }
}

template <bool soft, bool with_loss, bool weighted, class A>
UF_INLINE void sigmoid_gradient(const Rows<A>& rows) {
  const A* __restrict weight = rows.weight;
  const int32_t* __restrict target = rows.target;
  const A of_loss = static_cast<A>(rows.gradient_of_loss);
  for (int32_t k = 0; k < rows.classes; ++k) {
    const A* x = rows.logits + k * rows.logits_pitch;
    A* out = rows.gradient + k * rows.gradient_pitch;  // may be x
    const A* __restrict t = rows.t + (soft ? k * rows.t_pitch : 0);
    const int32_t which = rows.classes == 1 ? 1 : k;
    const A v = rows.class_weight[k];
    const A of_both = static_cast<A>(rows.gradient_of_both[k]), of_predicted = static_cast<A>(rows.gradient_of_predicted[k]);
    UF_INDEPENDENT
    for (int64_t i = 0; i < rows.pixels; ++i) {
      const A u = exp_nonpositive(-std::abs(x[i])) + (x[i] - x[i]);
      const A large = A(1) / (A(1) + u), small = u * large, is = truth_of<soft>(t, target, i, which);
      const A p = x[i] < 0 ? small : large, not_p = x[i] < 0 ? large : small;
      A gradient = large * small * (of_predicted + of_both * is);
      if constexpr (with_loss) gradient += of_loss * ((A(1) - is) * p - (weighted ? v * is : is) * not_p);
      out[i] = weighted ? weight[i] * gradient : gradient;
    }
  }
}

}  // namespace uf
