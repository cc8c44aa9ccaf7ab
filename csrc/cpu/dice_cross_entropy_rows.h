// The maths of a Dice loss and a cross-entropy on one block of pixels, whose logits lie in one row a class.
//
// With a the likeliest class of a pixel, e_k = exp(x_k - x_a) and rest = sum_{k != a} e_k, p_k = e_k / (1 + rest). A class has the
// truth t_k and in the cross-entropy the factor c_k = v_k ((1 - s) t_k + s / K), v_k its weight and s the label smoothing:
//
//   cross-entropy   sum_k c_k (x_a - x_k) + T log(1 + rest),  T = sum_k c_k
//   its gradient    p_k T - c_k; for a: sum_{k != a} c_k - T rest / (1 + rest), whose terms do not cancel where p_a is nearly 1
//   of the sums     p_k (G_k - sum_j p_j G_j), G_k = grad_predicted_k + t_k grad_both_k, all G less G_a for the same reason
//
// Two classes need one exponential, u = exp(-|x_1 - x_0|): p_0 and p_1 are 1 / (1 + u) and u / (1 + u), the gradient of x_1 is
// p_0 p_1 (G_1 - G_0) + p_1 c_0 - p_0 c_1, and that of x_0 its negative.
//
// The sigmoid: dice_cross_entropy_sigmoid.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/macros.h"
#include "common/softmax.h"
#include "cpu/channel_sums.h"
#include "cpu/lanes.h"

namespace uf {

constexpr int64_t kExtraRows = 8;  // of scratch

// Rows of one block; row k of a matrix starts at k * pitch, where it has no pitch of its own.
template <class A>
struct Rows {
  int64_t pixels, classes, pitch;
  A* x;              // logits, later what is made of them
  const A* logits;   // of a sigmoid: x, or where the caller has them
  A* gradient;       // likewise
  const A* t;        // truth of each class, where it is soft
  int64_t logits_pitch, gradient_pitch, t_pitch;
  const int32_t* target;  // else the class
  const A* weight;        // 0 where ignored
  const A* class_weight;
  A smoothing;
  A* extra;  // kExtraRows
  int32_t* argmax;
  double gradient_of_loss;
  const double* gradient_of_both;
  const double* gradient_of_predicted;
  bool plain;     // without weights of classes
  bool weighted;  // in any way; else `weight` holds ones
};

// The truth of class k (of the only class, with a sigmoid of one channel) at pixel i.
template <bool soft, class A>
UF_INLINE A truth_of(const A* __restrict t, const int32_t* __restrict target, int64_t i, int32_t k) {
  if constexpr (soft) return t[i];
  return target[i] == k ? A(1) : A(0);
}

// Adds the sums of a row of w p, and of its parts and of w where the truth is, which go through two rows of scratch: GCC vectorises
// no sum that selects.
template <bool soft, class A>
UF_INLINE void add_row(const A* __restrict row, const A* __restrict weight, const A* __restrict t, const int32_t* __restrict target,
                       int32_t k, int64_t pixels, A* __restrict chosen, A* __restrict true_weight, double& both, double& predicted,
                       double& truth) {
  UF_INDEPENDENT
  for (int64_t i = 0; i < pixels; ++i) {
    if constexpr (soft) {
      chosen[i] = row[i] * t[i];
      true_weight[i] = weight[i] * t[i];
    } else {
      chosen[i] = target[i] == k ? row[i] : A(0);
      true_weight[i] = target[i] == k ? weight[i] : A(0);
    }
  }
  both += row_sum<A>(chosen, pixels);
  predicted += row_sum<A>(row, pixels);
  truth += row_sum<A>(true_weight, pixels);
}

// ---- softmax

// `plain`: a class map without weights of classes, so that T = 1.

// Largest logit and its class; then x becomes e, and `rest` their sum without that of the largest.
template <class A>
UF_INLINE void find_largest(const Rows<A>& rows, A* __restrict largest) {
  int32_t* __restrict argmax = rows.argmax;
  UF_INDEPENDENT
  for (int64_t i = 0; i < rows.pixels; ++i) largest[i] = rows.x[i], argmax[i] = 0;
  for (int32_t k = 1; k < rows.classes; ++k) {
    const A* __restrict row = rows.x + k * rows.pitch;
    UF_INDEPENDENT
    for (int64_t i = 0; i < rows.pixels; ++i) {
      const bool larger = row[i] > largest[i];
      largest[i] = larger ? row[i] : largest[i];
      argmax[i] = larger ? k : argmax[i];
    }
  }
}

template <bool soft, bool with_loss, class A>
UF_INLINE void two_class_sums(const Rows<A>& rows, double* both, double* predicted, double* truth, double& loss) {
  A* __restrict first = rows.x;
  A* __restrict second = rows.x + rows.pitch;
  A* __restrict cost = rows.extra;
  const A* __restrict t0 = rows.t;
  const A* __restrict t1 = rows.t + (soft ? rows.t_pitch : 0);
  const A* __restrict weight = rows.weight;
  const int32_t* __restrict target = rows.target;
  const A v0 = rows.class_weight[0], v1 = rows.class_weight[1], flat = rows.smoothing / A(2), sharp = 1 - rows.smoothing;
  UF_INDEPENDENT
  for (int64_t i = 0; i < rows.pixels; ++i) {
    const A d = second[i] - first[i], far = d < 0 ? -d : d, m = d < 0 ? first[i] : second[i];
    const A u = exp_nonpositive(-far) + (m - m), y = A(1) + u, inverse = A(1) / y;
    const A large = weight[i] * inverse, small = large * u;
    if constexpr (with_loss) {
      const A c0 = v0 * (sharp * truth_of<soft>(t0, target, i, 0) + flat), c1 = v1 * (sharp * truth_of<soft>(t1, target, i, 1) + flat);
      const A of_smaller = d < 0 ? c1 : c0;
      cost[i] = weight[i] * ((c0 + c1) * log1p_nonnegative(u, y, inverse) + (of_smaller == 0 ? A(0) : of_smaller * far));
    }
    first[i] = d < 0 ? large : small;
    second[i] = d < 0 ? small : large;
  }
  if constexpr (with_loss) loss += row_sum<A>(cost, rows.pixels);
  for (int32_t k = 0; k < 2; ++k)
    add_row<soft>(rows.x + k * rows.pitch, weight, rows.t + (soft ? k * rows.t_pitch : 0), target, k, rows.pixels, cost,
                  cost + rows.pitch, both[k], predicted[k], truth[k]);
}

template <bool soft, bool with_loss, class A>
UF_INLINE void two_class_gradient(const Rows<A>& rows) {
  A* __restrict first = rows.x;
  A* __restrict second = rows.x + rows.pitch;
  const A* __restrict t0 = rows.t;
  const A* __restrict t1 = rows.t + (soft ? rows.t_pitch : 0);
  const A* __restrict weight = rows.weight;
  const int32_t* __restrict target = rows.target;
  const A v0 = rows.class_weight[0], v1 = rows.class_weight[1], flat = rows.smoothing / A(2), sharp = 1 - rows.smoothing;
  const A of_loss = static_cast<A>(rows.gradient_of_loss);
  const A of_both0 = static_cast<A>(rows.gradient_of_both[0]), of_both1 = static_cast<A>(rows.gradient_of_both[1]);
  const A of_predicted = static_cast<A>(rows.gradient_of_predicted[1] - rows.gradient_of_predicted[0]);
  UF_INDEPENDENT
  for (int64_t i = 0; i < rows.pixels; ++i) {
    const A d = second[i] - first[i], m = d < 0 ? first[i] : second[i];
    const A u = exp_nonpositive(d < 0 ? d : -d) + (m - m), large = A(1) / (A(1) + u), small = u * large;
    const A p0 = d < 0 ? large : small, p1 = d < 0 ? small : large;
    const A is0 = truth_of<soft>(t0, target, i, 0), is1 = truth_of<soft>(t1, target, i, 1);
    A gradient = large * small * (of_predicted + (of_both1 * is1 - of_both0 * is0));
    if constexpr (with_loss)
      gradient += of_loss * (p1 * (v0 * (sharp * is0 + flat)) - p0 * (v1 * (sharp * is1 + flat)));
    gradient *= weight[i];
    first[i] = -gradient;
    second[i] = gradient;
  }
}

template <bool soft, bool with_loss, bool plain, class A>
UF_INLINE void softmax_sums(const Rows<A>& rows, double* both, double* predicted, double* truth, double& loss) {
  const int64_t pixels = rows.pixels;
  A* __restrict largest = rows.extra;
  A* __restrict rest = rows.extra + rows.pitch;
  A* __restrict total = rows.extra + 2 * rows.pitch;
  A* __restrict cost = rows.extra + 3 * rows.pitch;
  const A* __restrict weight = rows.weight;
  const int32_t* __restrict argmax = rows.argmax;
  const int32_t* __restrict target = rows.target;
  find_largest(rows, largest);
  UF_INDEPENDENT
  for (int64_t i = 0; i < pixels; ++i) rest[i] = largest[i] - largest[i], total[i] = cost[i] = 0;
  const A flat = rows.smoothing / static_cast<A>(rows.classes), sharp = 1 - rows.smoothing;
  for (int32_t k = 0; k < rows.classes; ++k) {
    A* __restrict row = rows.x + k * rows.pitch;
    const A* __restrict t = rows.t + (soft ? k * rows.t_pitch : 0);
    const A v = rows.class_weight[k];
    UF_INDEPENDENT
    for (int64_t i = 0; i < pixels; ++i) {
      const A d = row[i] - largest[i], e = exp_nonpositive(d);
      rest[i] += argmax[i] == k ? A(0) : e;
      if constexpr (with_loss) {
        const A c = v * (sharp * truth_of<soft>(t, target, i, k) + flat);
        if constexpr (!plain) total[i] += c;
        cost[i] -= c == 0 ? A(0) : c * d;
      }
      row[i] = e;
    }
  }
  UF_INDEPENDENT
  for (int64_t i = 0; i < pixels; ++i) {
    const A y = A(1) + rest[i], inverse = A(1) / y;
    if constexpr (with_loss) cost[i] = (cost[i] + (plain ? A(1) : total[i]) * log1p_nonnegative(rest[i], y, inverse)) * weight[i];
    total[i] = weight[i] * inverse;  // from here on what makes e the weighted probability
  }
  if constexpr (with_loss) loss += row_sum<A>(cost, pixels);
  for (int32_t k = 0; k < rows.classes; ++k) {
    A* __restrict row = rows.x + k * rows.pitch;
    UF_INDEPENDENT
    for (int64_t i = 0; i < pixels; ++i) row[i] *= total[i];
    add_row<soft>(row, weight, rows.t + (soft ? k * rows.t_pitch : 0), target, k, pixels, rest, cost, both[k], predicted[k], truth[k]);
  }
}

template <bool soft, bool with_loss, bool plain, class A>
UF_INLINE void softmax_gradient(const Rows<A>& rows) {
  const int64_t pixels = rows.pixels;
  A* __restrict largest = rows.extra;
  A* __restrict rest = rows.extra + rows.pitch;
  A* __restrict total = rows.extra + 2 * rows.pitch;
  A* __restrict others = rows.extra + 3 * rows.pitch;
  A* __restrict of_largest = rows.extra + 4 * rows.pitch;
  A* __restrict mean = rows.extra + 5 * rows.pitch;
  const A* __restrict weight = rows.weight;
  const int32_t* __restrict argmax = rows.argmax;
  const int32_t* __restrict target = rows.target;
  const A flat = rows.smoothing / static_cast<A>(rows.classes), sharp = 1 - rows.smoothing;
  const A of_loss = static_cast<A>(rows.gradient_of_loss);
  find_largest(rows, largest);
  UF_INDEPENDENT
  for (int64_t i = 0; i < pixels; ++i) rest[i] = largest[i] - largest[i], total[i] = others[i] = of_largest[i] = mean[i] = 0;
  for (int32_t k = 0; k < rows.classes; ++k) {
    A* __restrict row = rows.x + k * rows.pitch;
    const A* __restrict t = rows.t + (soft ? k * rows.t_pitch : 0);
    const A v = rows.class_weight[k];
    const A of_both = static_cast<A>(rows.gradient_of_both[k]), of_predicted = static_cast<A>(rows.gradient_of_predicted[k]);
    UF_INDEPENDENT
    for (int64_t i = 0; i < pixels; ++i) {
      const bool is_largest = argmax[i] == k;
      const A e = exp_nonpositive(row[i] - largest[i]), truth = truth_of<soft>(t, target, i, k);
      rest[i] += is_largest ? A(0) : e;
      of_largest[i] = is_largest ? of_predicted + of_both * truth : of_largest[i];
      if constexpr (with_loss && !plain) {
        const A c = v * (sharp * truth + flat);
        total[i] += c;
        others[i] += is_largest ? A(0) : c;
      }
      row[i] = e;
    }
  }
  UF_INDEPENDENT
  for (int64_t i = 0; i < pixels; ++i) {
    const A inverse = A(1) / (A(1) + rest[i]);
    largest[i] = inverse;
    if constexpr (with_loss && plain) others[i] = A(1) - (argmax[i] == target[i] ? sharp + flat : flat) - rest[i] * inverse;
    if constexpr (with_loss && !plain) others[i] -= rest[i] * inverse * total[i];
  }
  for (int32_t k = 0; k < rows.classes; ++k) {
    const A* __restrict row = rows.x + k * rows.pitch;
    const A* __restrict t = rows.t + (soft ? k * rows.t_pitch : 0);
    const A of_both = static_cast<A>(rows.gradient_of_both[k]), of_predicted = static_cast<A>(rows.gradient_of_predicted[k]);
    UF_INDEPENDENT
    for (int64_t i = 0; i < pixels; ++i) {
      const A above = of_predicted + of_both * truth_of<soft>(t, target, i, k) - of_largest[i];
      mean[i] += argmax[i] == k ? A(0) : row[i] * largest[i] * above;
    }
  }
  for (int32_t k = 0; k < rows.classes; ++k) {
    A* __restrict row = rows.x + k * rows.pitch;
    const A* __restrict t = rows.t + (soft ? k * rows.t_pitch : 0);
    const A v = rows.class_weight[k];
    const A of_both = static_cast<A>(rows.gradient_of_both[k]), of_predicted = static_cast<A>(rows.gradient_of_predicted[k]);
    UF_INDEPENDENT
    for (int64_t i = 0; i < pixels; ++i) {
      const bool is_largest = argmax[i] == k;
      const A p = row[i] * largest[i], truth = truth_of<soft>(t, target, i, k);
      const A above = is_largest ? A(0) : of_predicted + of_both * truth - of_largest[i];
      A gradient = p * (above - mean[i]);
      if constexpr (with_loss) gradient += of_loss * (is_largest ? others[i] : (plain ? p : p * total[i]) - v * (sharp * truth + flat));
      row[i] = weight[i] * gradient;
    }
  }
}

}  // namespace uf
