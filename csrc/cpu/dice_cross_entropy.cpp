// Blocks of pixels that fit the first-level cache, one row a class, as in weighted_cross_entropy.cpp: the logits are read once for
// the sums and once for the gradient, from either layout. The maths: dice_cross_entropy_rows.h and, of a sigmoid, which reads and
// writes rows without gaps where the caller has them, dice_cross_entropy_sigmoid.h; from the sums on, dice_cross_entropy_loss.h.
#include "common/dice_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/half.h"
#include "common/macros.h"
#include "cpu/cross_entropy_block.h"
#include "cpu/dice_cross_entropy_loss.h"
#include "cpu/dice_cross_entropy_rows.h"
#include "cpu/dice_cross_entropy_sigmoid.h"

namespace uf {
namespace {

constexpr int64_t kGrainValues = 1 << 14;  // less work than this is not worth waking a second thread for
constexpr int64_t kParts = 32;             // of an image: sums do not depend on the number of threads

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

// ---- the block in every form

template <class A>
struct SumsOfPart {
  double *both, *predicted, *truth;
  double loss;
};

template <bool soft, bool with_loss, class A>
UF_INLINE void sums_of(bool sigmoid, const Rows<A>& rows, SumsOfPart<A>& sums) {
  if (sigmoid && rows.weighted)
    sigmoid_sums<soft, with_loss, true>(rows, sums.both, sums.predicted, sums.truth, sums.loss);
  else if (sigmoid)
    sigmoid_sums<soft, with_loss, false>(rows, sums.both, sums.predicted, sums.truth, sums.loss);
  else if (rows.classes == 2)
    two_class_sums<soft, with_loss>(rows, sums.both, sums.predicted, sums.truth, sums.loss);
  else if (!soft && rows.plain)
    softmax_sums<soft, with_loss, !soft>(rows, sums.both, sums.predicted, sums.truth, sums.loss);
  else
    softmax_sums<soft, with_loss, false>(rows, sums.both, sums.predicted, sums.truth, sums.loss);
}

template <bool soft, bool with_loss, class A>
UF_INLINE void gradient_of(bool sigmoid, const Rows<A>& rows) {
  if (sigmoid && rows.weighted)
    sigmoid_gradient<soft, with_loss, true>(rows);
  else if (sigmoid)
    sigmoid_gradient<soft, with_loss, false>(rows);
  else if (rows.classes == 2)
    two_class_gradient<soft, with_loss>(rows);
  else if (!soft && rows.plain)
    softmax_gradient<soft, with_loss, !soft>(rows);
  else
    softmax_gradient<soft, with_loss, false>(rows);
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

// counted[i] = t[i] is not ignored; returns how many are.
template <class A>
UF_INLINE int64_t find_counted(const A* __restrict t, int64_t pixels, A ignored, int32_t* __restrict counted) {
  int32_t number = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    counted[i] = t[i] != ignored;
    number += counted[i];
  }
  return number;
}

template <class A>
UF_INLINE bool is_probability(A t) {  // which a NaN is not
  return t >= 0 && t <= 1;
}

// Whether one of them is ignored, or no probability.
template <class A>
UF_INLINE bool any_unusual(const A* __restrict t, int64_t pixels, A ignored) {
  int32_t number = 0;
  for (int64_t i = 0; i < pixels; ++i) number += !is_probability(t[i]) || t[i] == ignored;
  return number > 0;
}

#define UF_DICE(T, A)                                                                                                  \
  UF_MULTIVERSION void load_rows(const T* in, int64_t class_stride, int64_t pixel_stride, int64_t pixels,              \
                                 int64_t classes, int64_t pitch, A* x) {                                               \
    load(in, class_stride, pixel_stride, pixels, classes, pitch, x);                                                   \
  }                                                                                                                    \
  UF_MULTIVERSION void store_rows(T* out, int64_t class_stride, int64_t pixel_stride, const Rows<A>& rows) {           \
    store(out, class_stride, pixel_stride, rows);                                                                      \
  }
UF_FLOATING(UF_DICE)
#undef UF_DICE

#define UF_DICE(A)                                                                                                     \
  UF_MULTIVERSION int64_t run_find_counted(const A* t, int64_t pixels, A ignored, int32_t* counted) {                  \
    return find_counted(t, pixels, ignored, counted);                                                                  \
  }                                                                                                                    \
  UF_MULTIVERSION bool run_any_unusual(const A* t, int64_t pixels, A ignored) {                                        \
    return any_unusual(t, pixels, ignored);                                                                            \
  }                                                                                                                    \
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

  // Those of `count` pixels from pixel `at` on, 1 without `given`; only read where `all` of them count.
  const A* weights(const A* given, int64_t at, int64_t count, bool all) {
    if (given != nullptr && all) return given + at;
    A* mine = row(static_cast<int64_t>(class_weight.size()) + kExtraRows);
    if (given != nullptr)
      std::copy_n(given + at, count, mine);
    else if (!ones)
      std::fill_n(mine, pitch, A(1));
    ones = given == nullptr && all;
    return mine;
  }

  const int64_t pitch;
  std::vector<A> values;
  std::vector<int32_t> integers;
  std::vector<A> class_weight;
  bool ones = false;  // are what the row of weights holds
};

// A matrix of one row a class in scratch, or where the caller has it in that form.
template <class A>
struct Matrix {
  const A* values;
  int64_t pitch;
};

// The rows of pixels from `from` on, which `scratch` holds where it has to.
template <class T, class A>
Matrix<A> rows_of(const T* from, int64_t class_stride, int64_t pixel_stride, int64_t count, int64_t classes, A* scratch, int64_t pitch,
                  bool anywhere) {
  if constexpr (std::is_same_v<T, A>)
    if (anywhere && pixel_stride == 1) return {from, class_stride};
  load_rows(from, class_stride, pixel_stride, count, classes, pitch, scratch);
  return {scratch, pitch};
}

// Reads `count` pixels from pixel `start` of image n on: logits, truth and weights, with nothing at ignored pixels. Adds to
// `counted`, and looks for targets out of range.
template <class T, class A>
Rows<A> read_block(const DiceCrossEntropyShape& s, const DiceCrossEntropyInputs& in, int64_t n, int64_t start, int64_t count,
                   Scratch<A>& scratch, double& counted, BadClass& bad) {
  const int64_t at = n * s.pixels + start, k = s.classes, pitch = scratch.pitch;
  A* const soft = scratch.row(k + kExtraRows + 1);
  int32_t* const target = scratch.integers.data();
  Rows<A> rows = {};
  rows.pixels = count, rows.classes = k, rows.pitch = rows.gradient_pitch = pitch;
  rows.x = rows.gradient = scratch.row(0), rows.extra = scratch.row(k);
  rows.target = target, rows.argmax = target + pitch;
  rows.class_weight = scratch.class_weight.data(), rows.smoothing = static_cast<A>(s.smoothing);
  rows.plain = in.class_weight == nullptr;

  Matrix<A> truth = {soft, pitch};
  int64_t used = count;
  if (s.soft) {
    truth = rows_of(static_cast<const A*>(in.target) + n * s.target_stride[0] + start * s.target_stride[2], s.target_stride[1],
                    s.target_stride[2], count, k, soft, pitch, true);
    // of several classes no pixel is ignored
    const A ignored = k == 1 ? static_cast<A>(s.ignore_index) : std::numeric_limits<A>::quiet_NaN();
    for (int64_t row = 0; row < k; ++row) {
      const A* values = truth.values + row * truth.pitch;
      if (!run_any_unusual(values, count, ignored)) continue;
      used = run_find_counted(values, count, ignored, target);
      const A* wrong = std::find_if(values, values + count, [&](A t) { return t != ignored && !is_probability(t); });
      if (wrong != values + count && !bad.found) bad = {true, static_cast<double>(*wrong)};
    }
    counted += static_cast<double>(used);
  } else {
    const BlockSums found = read_targets(s.target_type, in.target, at, count, std::max<int64_t>(k, 2), s.ignore_index, target);
    if (found.bad.found && !bad.found) bad = {true, static_cast<double>(found.bad.value)};
    used = found.counted;
    if (in.class_weight && !s.sigmoid) {
      for (int64_t i = 0; i < count; ++i) counted += target[i] >= 0 && target[i] < k ? scratch.class_weight[target[i]] : A(0);
    } else {
      counted += static_cast<double>(used);
    }
  }

  const bool all = used == count;
  const Matrix<A> logits = rows_of(static_cast<const T*>(in.logits) + n * s.logits_stride[0] + start * s.logits_stride[2], s.logits_stride[1],
                                   s.logits_stride[2], count, k, rows.x, pitch, s.sigmoid && all);
  rows.logits = logits.values, rows.logits_pitch = logits.pitch;
  rows.weighted = in.weight != nullptr || in.class_weight != nullptr || !all;
  rows.weight = scratch.weights(static_cast<const A*>(in.weight), at, count, all);
  if (!all) {
    if (s.soft && truth.values != soft) std::copy_n(truth.values, count, soft), truth = {soft, pitch};
    if (!s.soft)
      for (int64_t i = 0; i < count; ++i) rows.argmax[i] = target[i] >= 0;
    run_leave_out(rows, s.soft ? target : rows.argmax, scratch.row(k + kExtraRows), s.soft ? soft : nullptr);
  }
  rows.t = truth.values, rows.t_pitch = truth.pitch;
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
        T* out = grad + n * s.classes * s.pixels + start * s.grad_pixel_stride;
        bool there = false;
        if constexpr (std::is_same_v<T, A>) {
          there = s.sigmoid && s.grad_pixel_stride == 1;
          if (there) rows.gradient = out, rows.gradient_pitch = s.grad_class_stride;
        }
        run_gradient(s.sigmoid, s.soft, s.cross_entropy, rows);
        if (!there) store_rows(out, s.grad_class_stride, s.grad_pixel_stride, rows);
      }
    }
  });
}

}  // namespace

void region_sums(const DiceCrossEntropyShape& shape, const DiceCrossEntropyInputs& inputs, const DiceCrossEntropySums& sums,
                 double*, BadClass& bad, const Parallel& parallel) {
  dispatch_floating(shape.type, [&]<class T>(T) { all_sums<T, Wide<T>>(shape, inputs, sums, bad, parallel); });
}

void dice_cross_entropy(const DiceCrossEntropyShape& shape, const DiceCrossEntropyInputs& inputs,
                        const DiceCrossEntropyOptions& options, const DiceCrossEntropySums& sums, void* loss, double* slopes,
                        double*, BadClass& bad, const Parallel& parallel) {
  dispatch_floating(shape.type, [&]<class T>(T) {
    using A = Wide<T>;
    all_sums<T, A>(shape, inputs, sums, bad, parallel);
    const A* class_weight = static_cast<const A*>(inputs.class_weight);
    *static_cast<A*>(loss) = static_cast<A>(loss_of_sums(shape, options, sums, class_weight, slopes));
  });
}

void dice_cross_entropy_backward(const DiceCrossEntropyShape& shape, const DiceCrossEntropyInputs& inputs, const double* slopes,
                                 void* grad_logits, const Parallel& parallel) {
  dispatch_floating(shape.type, [&]<class T>(T) {
    all_gradients<T, Wide<T>>(shape, inputs, slopes, static_cast<T*>(grad_logits), parallel);
  });
}

}  // namespace uf
