// Blocks of pixels that fit the first-level cache, one row a class, as in weighted_cross_entropy.cpp: the logits are read once for
// the sums and once for the gradient, from either layout.
//
// With a the likeliest class of a pixel, e_k = exp(x_k - x_a) and rest = sum_{k != a} e_k, p_k = e_k / (1 + rest). A class has the
// truth t_k and in the cross-entropy the factor c_k = v_k ((1 - s) t_k + s / K), v_k its weight and s the label smoothing:
//
//   cross-entropy   sum_k c_k (x_a - x_k) + T log(1 + rest),  T = sum_k c_k
//   its gradient    p_k T - c_k; for a: sum_{k != a} c_k - T rest / (1 + rest), whose terms do not cancel where p_a is nearly 1
//   of the sums     p_k (G_k - sum_j p_j G_j), G_k = grad_predicted_k + t_k grad_both_k, all G less G_a for the same reason
//
// With a sigmoid each class is alone: p (1 - p) G, and v t (p - 1) + (1 - t) p.
#include "common/dice_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/half.h"
#include "common/macros.h"
#include "cpu/channel_sums.h"
#include "cpu/cross_entropy_block.h"
#include "cpu/lanes.h"

namespace uf {
namespace {

constexpr int64_t kGrainValues = 1 << 14;  // less work than this is not worth waking a second thread for
constexpr int64_t kParts = 32;             // of an image: sums do not depend on the number of threads
constexpr int64_t kExtraRows = 8;

// Rows of one block; row k of a matrix starts at k * pitch.
template <class A>
struct Rows {
  int64_t pixels, classes, pitch;
  A* x;            // logits, later what is made of them
  const A* t;      // truth of each class, where it is soft
  const int32_t* target;  // else the class
  const A* weight;        // 0 where ignored
  const A* class_weight;
  A smoothing;
  A* extra;  // kExtraRows
  int32_t* argmax;
  double gradient_of_loss;
  const double* gradient_of_both;
  const double* gradient_of_predicted;
};

template <class T, class A>
UF_INLINE void load(const T* __restrict in, int64_t class_stride, int64_t pixel_stride, int64_t pixels, int64_t classes, int64_t pitch,
                    A* __restrict x) {
  if (pixel_stride == 1) {
    for (int64_t k = 0; k < classes; ++k)
      for (int64_t i = 0; i < pixels; ++i) x[k * pitch + i] = widen(in[k * class_stride + i]);
  } else {
    for (int64_t k = 0; k < classes; ++k)
      for (int64_t i = 0; i < pixels; ++i) x[k * pitch + i] = widen(in[i * pixel_stride + k * class_stride]);
  }
}

template <class T, class A>
UF_INLINE void store(T* __restrict out, int64_t class_stride, int64_t pixel_stride, const Rows<A>& rows) {
  for (int64_t k = 0; k < rows.classes; ++k) {
    const A* __restrict x = rows.x + k * rows.pitch;
    if (pixel_stride == 1)
      for (int64_t i = 0; i < rows.pixels; ++i) out[k * class_stride + i] = narrow<T>(x[i]);
    else
      for (int64_t i = 0; i < rows.pixels; ++i) out[i * pixel_stride + k * class_stride] = narrow<T>(x[i]);
  }
}

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
    const A* __restrict t = rows.t + (soft ? k * rows.pitch : 0);
    const A v = rows.class_weight[k];
    UF_INDEPENDENT
    for (int64_t i = 0; i < pixels; ++i) {
      const A d = row[i] - largest[i], e = exp_nonpositive(d);
      rest[i] += argmax[i] == k ? A(0) : e;
      if constexpr (with_loss) {
        const A c = v * (sharp * truth_of<soft>(t, target, i, k) + flat);
        total[i] += c;
        cost[i] -= c == 0 ? A(0) : c * d;
      }
      row[i] = e;
    }
  }
  UF_INDEPENDENT
  for (int64_t i = 0; i < pixels; ++i) {
    const A y = A(1) + rest[i], inverse = A(1) / y;
    if constexpr (with_loss) cost[i] = (cost[i] + total[i] * log1p_nonnegative(rest[i], y, inverse)) * weight[i];
    total[i] = weight[i] * inverse;  // from here on what makes e the weighted probability
  }
  if constexpr (with_loss) loss += row_sum<A>(cost, pixels);
  for (int32_t k = 0; k < rows.classes; ++k) {
    A* __restrict row = rows.x + k * rows.pitch;
    UF_INDEPENDENT
    for (int64_t i = 0; i < pixels; ++i) row[i] *= total[i];
    add_row<soft>(row, weight, rows.t + (soft ? k * rows.pitch : 0), target, k, pixels, rest, cost, both[k], predicted[k], truth[k]);
  }
}

template <bool soft, bool with_loss, class A>
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
    const A* __restrict t = rows.t + (soft ? k * rows.pitch : 0);
    const A v = rows.class_weight[k];
    const A of_both = static_cast<A>(rows.gradient_of_both[k]), of_predicted = static_cast<A>(rows.gradient_of_predicted[k]);
    UF_INDEPENDENT
    for (int64_t i = 0; i < pixels; ++i) {
      const bool is_largest = argmax[i] == k;
      const A e = exp_nonpositive(row[i] - largest[i]), truth = truth_of<soft>(t, target, i, k);
      rest[i] += is_largest ? A(0) : e;
      of_largest[i] = is_largest ? of_predicted + of_both * truth : of_largest[i];
      if constexpr (with_loss) {
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
    if constexpr (with_loss) others[i] -= rest[i] * inverse * total[i];
  }
  for (int32_t k = 0; k < rows.classes; ++k) {
    const A* __restrict row = rows.x + k * rows.pitch;
    const A* __restrict t = rows.t + (soft ? k * rows.pitch : 0);
    const A of_both = static_cast<A>(rows.gradient_of_both[k]), of_predicted = static_cast<A>(rows.gradient_of_predicted[k]);
    UF_INDEPENDENT
    for (int64_t i = 0; i < pixels; ++i) {
      const A above = of_predicted + of_both * truth_of<soft>(t, target, i, k) - of_largest[i];
      mean[i] += argmax[i] == k ? A(0) : row[i] * largest[i] * above;
    }
  }
  for (int32_t k = 0; k < rows.classes; ++k) {
    A* __restrict row = rows.x + k * rows.pitch;
    const A* __restrict t = rows.t + (soft ? k * rows.pitch : 0);
    const A v = rows.class_weight[k];
    const A of_both = static_cast<A>(rows.gradient_of_both[k]), of_predicted = static_cast<A>(rows.gradient_of_predicted[k]);
    UF_INDEPENDENT
    for (int64_t i = 0; i < pixels; ++i) {
      const bool is_largest = argmax[i] == k;
      const A p = row[i] * largest[i], truth = truth_of<soft>(t, target, i, k);
      const A above = is_largest ? A(0) : of_predicted + of_both * truth - of_largest[i];
      A gradient = p * (above - mean[i]);
      if constexpr (with_loss) gradient += of_loss * (is_largest ? others[i] : p * total[i] - v * (sharp * truth + flat));
      row[i] = weight[i] * gradient;
    }
  }
}

// ---- sigmoid

template <bool soft, bool with_loss, class A>
UF_INLINE void sigmoid_sums(const Rows<A>& rows, double* both, double* predicted, double* truth, double& loss) {
  const int64_t pixels = rows.pixels;
  A* __restrict cost = rows.extra;
  const A* __restrict weight = rows.weight;
  const int32_t* __restrict target = rows.target;
  for (int32_t k = 0; k < rows.classes; ++k) {
    A* __restrict row = rows.x + k * rows.pitch;
    const A* __restrict t = rows.t + (soft ? k * rows.pitch : 0);
    const int32_t which = rows.classes == 1 ? 1 : k;
    const A v = rows.class_weight[k];
    UF_INDEPENDENT
    for (int64_t i = 0; i < pixels; ++i) {
      const A x = row[i], u = exp_nonpositive(x < 0 ? x : -x) + (x - x), y = A(1) + u, inverse = A(1) / y;
      if constexpr (with_loss) {
        const A is = truth_of<soft>(t, target, i, which), log = log1p_nonnegative(u, y, inverse);
        cost[i] = weight[i] * ((A(1) - is) * ((x < 0 ? A(0) : x) + log) + v * is * ((x < 0 ? -x : A(0)) + log));
      }
      row[i] = weight[i] * (x < 0 ? u * inverse : inverse);
    }
    if constexpr (with_loss) loss += row_sum<A>(cost, pixels);
    add_row<soft>(row, weight, t, target, which, pixels, cost, cost + rows.pitch, both[k], predicted[k], truth[k]);
  }
}

template <bool soft, bool with_loss, class A>
UF_INLINE void sigmoid_gradient(const Rows<A>& rows) {
  const A* __restrict weight = rows.weight;
  const int32_t* __restrict target = rows.target;
  const A of_loss = static_cast<A>(rows.gradient_of_loss);
  for (int32_t k = 0; k < rows.classes; ++k) {
    A* __restrict row = rows.x + k * rows.pitch;
    const A* __restrict t = rows.t + (soft ? k * rows.pitch : 0);
    const int32_t which = rows.classes == 1 ? 1 : k;
    const A v = rows.class_weight[k];
    const A of_both = static_cast<A>(rows.gradient_of_both[k]), of_predicted = static_cast<A>(rows.gradient_of_predicted[k]);
    UF_INDEPENDENT
    for (int64_t i = 0; i < rows.pixels; ++i) {
      const A x = row[i], u = exp_nonpositive(x < 0 ? x : -x) + (x - x), inverse = A(1) / (A(1) + u);
      const A p = x < 0 ? u * inverse : inverse, not_p = x < 0 ? inverse : u * inverse;
      const A is = truth_of<soft>(t, target, i, which);
      A gradient = p * not_p * (of_predicted + of_both * is);
      if constexpr (with_loss) gradient += of_loss * ((A(1) - is) * p - v * is * not_p);
      row[i] = weight[i] * gradient;
    }
  }
}

// ---- the block in every form

template <class A>
struct SumsOfPart {
  double *both, *predicted, *truth;
  double loss;
};

template <bool soft, bool with_loss, class A>
UF_INLINE void sums_of(bool sigmoid, const Rows<A>& rows, SumsOfPart<A>& sums) {
  if (sigmoid)
    sigmoid_sums<soft, with_loss>(rows, sums.both, sums.predicted, sums.truth, sums.loss);
  else
    softmax_sums<soft, with_loss>(rows, sums.both, sums.predicted, sums.truth, sums.loss);
}

template <bool soft, bool with_loss, class A>
UF_INLINE void gradient_of(bool sigmoid, const Rows<A>& rows) {
  if (sigmoid)
    sigmoid_gradient<soft, with_loss>(rows);
  else
    softmax_gradient<soft, with_loss>(rows);
}

// Ignored pixels: weight 0, and no number there that could spread.
template <class A>
UF_INLINE void leave_out(const Rows<A>& rows, const int32_t* __restrict counted, A* __restrict weight, A* soft) {
  for (int64_t i = 0; i < rows.pixels; ++i) weight[i] = counted[i] ? weight[i] : A(0);
  for (int64_t k = 0; k < rows.classes; ++k) {
    A* __restrict row = rows.x + k * rows.pitch;
    for (int64_t i = 0; i < rows.pixels; ++i) row[i] = counted[i] ? row[i] : A(0);
    if (soft == nullptr) continue;
    A* __restrict t = soft + k * rows.pitch;
    for (int64_t i = 0; i < rows.pixels; ++i) t[i] = counted[i] ? t[i] : A(0);
  }
}

#define UF_DICE(T, A)                                                                                                  \
  UF_MULTIVERSION void load_rows(const T* in, int64_t class_stride, int64_t pixel_stride, int64_t pixels,              \
                                 int64_t classes, int64_t pitch, A* x) {                                               \
    load(in, class_stride, pixel_stride, pixels, classes, pitch, x);                                                   \
  }                                                                                                                    \
  UF_MULTIVERSION void store_rows(T* out, int64_t class_stride, int64_t pixel_stride, const Rows<A>& rows) {           \
    store(out, class_stride, pixel_stride, rows);                                                                      \
  }
UF_DICE(double, double)
UF_DICE(float, float)
UF_DICE(Half, float)
UF_DICE(BFloat16, float)
#undef UF_DICE

#define UF_DICE(A)                                                                                                     \
  UF_MULTIVERSION void run_leave_out(const Rows<A>& rows, const int32_t* counted, A* weight, A* soft) {                \
    leave_out(rows, counted, weight, soft);                                                                            \
  }                                                                                                                    \
  UF_MULTIVERSION void run_sums(bool sigmoid, bool soft, bool loss, const Rows<A>& rows, SumsOfPart<A>& sums) {        \
    if (soft)                                                                                                          \
      return loss ? sums_of<true, true>(sigmoid, rows, sums) : sums_of<true, false>(sigmoid, rows, sums);              \
    return loss ? sums_of<false, true>(sigmoid, rows, sums) : sums_of<false, false>(sigmoid, rows, sums);              \
  }                                                                                                                    \
  UF_MULTIVERSION void run_gradient(bool sigmoid, bool soft, bool loss, const Rows<A>& rows) {                         \
    if (soft) return loss ? gradient_of<true, true>(sigmoid, rows) : gradient_of<true, false>(sigmoid, rows);          \
    return loss ? gradient_of<false, true>(sigmoid, rows) : gradient_of<false, false>(sigmoid, rows);                  \
  }
UF_DICE(double)
UF_DICE(float)
#undef UF_DICE

// ---- the whole

// The memory of one thread, and what it finds out about the targets of a block.
template <class A>
struct Scratch {
  Scratch(const DiceCrossEntropyShape& s, const void* weights)
      : pitch(block_pixels(2 * s.classes + kExtraRows) + 16),
        values(static_cast<size_t>((s.classes * (s.soft ? 2 : 1) + kExtraRows + 1) * pitch)),
        integers(static_cast<size_t>(2 * pitch)),
        class_weight(static_cast<size_t>(s.classes), A(1)) {
    if (weights != nullptr) std::copy_n(static_cast<const A*>(weights), s.classes, class_weight.begin());
  }
  A* row(int64_t index) { return values.data() + index * pitch; }

  const int64_t pitch;
  std::vector<A> values;
  std::vector<int32_t> integers;
  std::vector<A> class_weight;
};

// Reads `count` pixels from pixel `start` of image n on: logits, truth and weights, with nothing at ignored pixels. Adds to
// `counted`, and looks for targets out of range.
template <class T, class A>
Rows<A> read_block(const DiceCrossEntropyShape& s, const DiceCrossEntropyInputs& in, int64_t n, int64_t start, int64_t count,
                   Scratch<A>& scratch, double& counted, BadClass& bad) {
  const int64_t at = n * s.pixels + start, k = s.classes;
  A* t = scratch.row(k + kExtraRows + 1);
  A* weight = scratch.row(k + kExtraRows);
  int32_t* target = scratch.integers.data();
  Rows<A> rows = {count,  k,      scratch.pitch, scratch.row(0), t, target, weight, scratch.class_weight.data(), static_cast<A>(s.smoothing),
                  scratch.row(k), scratch.integers.data() + scratch.pitch, 0, nullptr, nullptr};
  load_rows(static_cast<const T*>(in.logits) + n * s.logits_stride[0] + start * s.logits_stride[2], s.logits_stride[1],
            s.logits_stride[2], count, k, scratch.pitch, rows.x);
  if (in.weight)
    std::copy_n(static_cast<const A*>(in.weight) + at, count, weight);
  else
    std::fill_n(weight, count, A(1));
  int64_t used = count;
  if (s.soft) {
    load_rows(static_cast<const A*>(in.target) + n * s.target_stride[0] + start * s.target_stride[2], s.target_stride[1],
              s.target_stride[2], count, k, scratch.pitch, t);
    if (k == 1) {  // of several classes no pixel is ignored
      const A ignored = static_cast<A>(s.ignore_index);
      used = 0;
      for (int64_t i = 0; i < count; ++i) used += target[i] = t[i] != ignored;
    }
    if (used < count) run_leave_out(rows, target, weight, t);
    for (int64_t row = 0; row < k && !bad.found; ++row)
      for (int64_t i = 0; i < count; ++i) {
        const A value = t[row * scratch.pitch + i];
        if (!(value >= 0 && value <= 1) && !bad.found) bad = {true, static_cast<double>(value)};
      }
    counted += static_cast<double>(used);
    return rows;
  }
  const BlockSums found = read_targets(s.target_type, in.target, at, count, std::max<int64_t>(k, 2), s.ignore_index, target);
  if (found.bad.found && !bad.found) bad = {true, static_cast<double>(found.bad.value)};
  if (found.counted < count) {
    for (int64_t i = 0; i < count; ++i) rows.argmax[i] = target[i] >= 0;
    run_leave_out(rows, rows.argmax, weight, static_cast<A*>(nullptr));
  }
  if (in.class_weight && !s.sigmoid) {
    for (int64_t i = 0; i < count; ++i) counted += target[i] >= 0 && target[i] < k ? scratch.class_weight[target[i]] : A(0);
  } else {
    counted += static_cast<double>(found.counted);
  }
  return rows;
}

// f(image, first block, last block) of each part of each image; `rows` numbers the parts.
struct Parts {
  explicit Parts(const DiceCrossEntropyShape& s)
      : pixels(block_pixels(2 * s.classes + kExtraRows)), blocks((s.pixels + pixels - 1) / pixels), each(std::min(blocks, kParts)),
        grain(kGrainValues * each / std::max<int64_t>(1, s.pixels * s.classes) + 1), batch(s.batch) {}

  template <class F>
  void run(const Parallel& parallel, F f) const {
    parallel(batch * each, grain, [&](int64_t begin, int64_t end) {
      f(begin, end);
    });
  }

  int64_t first(int64_t part) const { return blocks * (part % each) / each; }
  int64_t last(int64_t part) const { return blocks * (part % each + 1) / each; }

  const int64_t pixels, blocks, each, grain, batch;
};

template <class T, class A>
void all_sums(const DiceCrossEntropyShape& s, const DiceCrossEntropyInputs& in, const DiceCrossEntropySums& out, BadClass& bad,
              const Parallel& parallel) {
  const Parts parts(s);
  const int64_t k = s.classes, width = 3 * k + 2;  // both, predicted, truth, loss, counted
  std::vector<double> found(static_cast<size_t>(s.batch * parts.each * width));
  std::vector<BadClass> bads(static_cast<size_t>(s.batch * parts.each), BadClass{false, 0});
  parts.run(parallel, [&](int64_t begin, int64_t end) {
    Scratch<A> scratch(s, in.class_weight);
    for (int64_t part = begin; part < end; ++part) {
      double* row = found.data() + part * width;
      SumsOfPart<A> sums = {row, row + k, row + 2 * k, 0};
      for (int64_t block = parts.first(part); block < parts.last(part); ++block) {
        const int64_t start = block * parts.pixels, count = std::min(parts.pixels, s.pixels - start);
        const Rows<A> rows = read_block<T>(s, in, part / parts.each, start, count, scratch, row[3 * k + 1], bads[part]);
        run_sums(s.sigmoid, s.soft, s.cross_entropy, rows, sums);
      }
      row[3 * k] = sums.loss;
    }
  });
  for (int64_t n = 0; n < s.batch; ++n) {
    std::vector<double> sum(static_cast<size_t>(width));
    for (int64_t part = n * parts.each; part < (n + 1) * parts.each; ++part) {
      for (int64_t i = 0; i < width; ++i) sum[i] += found[part * width + i];
      if (!bad.found) bad = bads[part];
    }
    std::copy_n(sum.data(), k, out.both + n * k);
    std::copy_n(sum.data() + k, k, out.predicted + n * k);
    std::copy_n(sum.data() + 2 * k, k, out.truth + n * k);
    out.cross_entropy[n] = sum[3 * k];
    out.counted[n] = sum[3 * k + 1];
  }
}

template <class T, class A>
void all_gradients(const DiceCrossEntropyShape& s, const DiceCrossEntropyInputs& in, const double* slopes, T* grad,
                   const Parallel& parallel) {
  const Parts parts(s);
  parts.run(parallel, [&](int64_t begin, int64_t end) {
    Scratch<A> scratch(s, in.class_weight);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t n = part / parts.each;
      for (int64_t block = parts.first(part); block < parts.last(part); ++block) {
        const int64_t start = block * parts.pixels, count = std::min(parts.pixels, s.pixels - start);
        double counted = 0;
        BadClass bad = {true, 0};  // the sums have looked
        Rows<A> rows = read_block<T>(s, in, n, start, count, scratch, counted, bad);
        rows.gradient_of_both = slopes + n * (2 * s.classes + 1);
        rows.gradient_of_predicted = rows.gradient_of_both + s.classes;
        rows.gradient_of_loss = rows.gradient_of_predicted[s.classes];
        run_gradient(s.sigmoid, s.soft, s.cross_entropy, rows);
        store_rows(grad + n * s.classes * s.pixels + start * s.grad_pixel_stride, s.grad_class_stride, s.grad_pixel_stride, rows);
      }
    }
  });
}

}  // namespace

void region_sums(const DiceCrossEntropyShape& shape, const DiceCrossEntropyInputs& inputs, const DiceCrossEntropySums& sums,
                 BadClass& bad, const Parallel& parallel) {
  dispatch_floating(shape.type, [&]<class T>(T) { all_sums<T, Wide<T>>(shape, inputs, sums, bad, parallel); });
}

void dice_cross_entropy(const DiceCrossEntropyShape& shape, const DiceCrossEntropyInputs& inputs,
                        const DiceCrossEntropyOptions& options, const DiceCrossEntropySums& sums, void* loss, double* slopes,
                        BadClass& bad, const Parallel& parallel) {
  dispatch_floating(shape.type, [&]<class T>(T) {
    using A = Wide<T>;
    all_sums<T, A>(shape, inputs, sums, bad, parallel);
    const A* class_weight = static_cast<const A*>(inputs.class_weight);
    *static_cast<A*>(loss) = static_cast<A>(dice_cross_entropy_of_sums(shape, options, sums, class_weight, slopes));
  });
}

void dice_cross_entropy_backward(const DiceCrossEntropyShape& shape, const DiceCrossEntropyInputs& inputs, const double* slopes,
                                 void* grad_logits, const Parallel& parallel) {
  dispatch_floating(shape.type, [&]<class T>(T) {
    all_gradients<T, Wide<T>>(shape, inputs, slopes, static_cast<T*>(grad_logits), parallel);
  });
}

}  // namespace uf
