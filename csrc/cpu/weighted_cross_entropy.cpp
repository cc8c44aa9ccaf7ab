// The pixels are cut into blocks that fit the first-level cache. Of each block the logits are read once, from either
// layout, into rows of a scratch buffer, one row a class; all the maths runs on those rows, so that it vectorises over
// pixels whatever the layout and dtype; the rows then hold the gradient and are written out once.
//
// The maths is that of common/softmax.h; the gradient is scale * weight * (p_k - [k = t]).
//
// "mean" and "weight_mean" need their divisor before the first gradient is written, so a pass over the targets (and the
// weights) alone comes first; without a gradient it is not needed.
#include "cpu/weighted_cross_entropy.h"

#include <algorithm>
#include <vector>

#include "common/half.h"
#include "common/macros.h"
#include "cpu/cross_entropy_block.h"
#include "cpu/lanes.h"

namespace uf {
namespace {

constexpr int64_t kGrainValues = 1 << 14;  // less work than this is not worth waking a second thread for

// ---- logits in, gradient out

template <class T, class A>
UF_INLINE void load(const T* __restrict in, int64_t class_stride, int64_t pixel_stride, const Block<A>& block) {
  A* __restrict x = block.x;
  const int64_t pixels = block.pixels, classes = block.classes, pitch = block.pitch;
  if (pixel_stride == 1) {
    for (int64_t k = 0; k < classes; ++k)
      for (int64_t i = 0; i < pixels; ++i) x[k * pitch + i] = widen(in[k * class_stride + i]);
  } else if (classes == 2 && class_stride == 1 && pixel_stride == 2) {
    for (int64_t i = 0; i < pixels; ++i) {
      x[i] = widen(in[2 * i]);
      x[pitch + i] = widen(in[2 * i + 1]);
    }
  } else {
    for (int64_t i = 0; i < pixels; ++i)
      for (int64_t k = 0; k < classes; ++k) x[k * pitch + i] = widen(in[i * pixel_stride + k * class_stride]);
  }
}

template <class T, class A>
UF_INLINE void store(T* __restrict out, int64_t class_stride, int64_t pixel_stride, const Block<A>& block) {
  const A* __restrict x = block.x;
  const int64_t pixels = block.pixels, classes = block.classes, pitch = block.pitch;
  if (pixel_stride == 1) {
    for (int64_t k = 0; k < classes; ++k)
      for (int64_t i = 0; i < pixels; ++i) out[k * class_stride + i] = narrow<T>(x[k * pitch + i]);
  } else if (classes == 2) {
    for (int64_t i = 0; i < pixels; ++i) {
      out[2 * i] = narrow<T>(x[i]);
      out[2 * i + 1] = narrow<T>(x[pitch + i]);
    }
  } else {
    for (int64_t i = 0; i < pixels; ++i)
      for (int64_t k = 0; k < classes; ++k) out[i * pixel_stride + k] = narrow<T>(x[k * pitch + i]);
  }
}

// Rows of one thread's scratch; all have the pitch of a block row.
template <class A>
struct Scratch {
  explicit Scratch(int64_t classes)
      // a few vectors more than a block: rows a power of two apart would fall on the same cache lines
      : pitch(block_pixels(classes) + 16), values((classes + 5) * pitch), integers(2 * pitch) {
    std::fill_n(ones(), pitch, A(1));
  }
  A* row(int64_t index) { return values.data() + index * pitch; }
  A* ones() { return values.data() + (values.size() - pitch); }

  const int64_t pitch;
  std::vector<A> values;
  std::vector<int32_t> integers;
};

template <class T, class G, class A>
UF_INLINE double compute(const T* logits, const WeightedCrossEntropyShape& s, G* grad, Block<A>& block,
                         Scratch<A>& scratch) {
  load(logits, s.class_stride, s.pixel_stride, block);
  const int64_t k = s.classes;
  if (k == 2)
    two_classes(block);
  else
    many_classes(block, scratch.row(k), scratch.integers.data() + scratch.pitch, scratch.row(k + 1), scratch.row(k + 2));
  if (block.want_grad) store(grad, s.grad_class_stride, s.grad_pixel_stride, block);
  return sum_in_double(block.loss, block.pixels);
}

#define UF_LOSS(T, A)                                                                                                  \
  UF_MULTIVERSION double compute_block(const T* logits, const WeightedCrossEntropyShape& s, GradientOf<T>* grad,       \
                                       Block<A>& block, Scratch<A>& scratch) {                                         \
    return compute(logits, s, grad, block, scratch);                                                                   \
  }

UF_FLOATING(UF_LOSS)
#undef UF_LOSS

// ---- the whole

template <class T, class G, class A>
BadTarget run(const WeightedCrossEntropyShape& s, const WeightedCrossEntropyArguments& a, const Parallel& parallel) {
  const int64_t most = block_pixels(s.classes), blocks = (s.pixels + most - 1) / most;
  const int64_t grain = kGrainValues / (most * s.classes) + 1;
  const A* weight = static_cast<const A*>(a.weight);
  const bool each_pixel = a.reduction == Reduction::kNone, weight_mean = a.reduction == Reduction::kWeightMean;
  std::vector<BlockSums> sums(static_cast<size_t>(s.batch * blocks));

  const auto add_weights = [&](BlockSums& block, int64_t at, int64_t count, const int32_t* target) {
    if (weight_mean)
      block.weight = weight ? sum_weights(weight + at, target, count) : static_cast<double>(block.counted);
  };

  double scale = 1;
  if (a.grad && (a.reduction == Reduction::kMean || weight_mean)) {
    parallel(s.batch * blocks, grain, [&](int64_t begin, int64_t end) {
      std::vector<int32_t> target(static_cast<size_t>(most));
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t start = unit % blocks * most, at = unit / blocks * s.pixels + start;
        const int64_t count = std::min(most, s.pixels - start);
        sums[unit] = read_targets(a.class_type, a.target, at, count, s.classes, a.ignore_index, target.data());
        add_weights(sums[unit], at, count, target.data());
      }
    });
    const BlockSums all = total(sums);
    if (all.bad.found) return all.bad;
    scale = 1 / divisor(all, a.reduction);
  }

  parallel(s.batch * blocks, grain, [&](int64_t begin, int64_t end) {
    Scratch<A> scratch(s.classes);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / blocks, start = unit % blocks * most, at = n * s.pixels + start;
      const int64_t count = std::min(most, s.pixels - start);
      int32_t* target = scratch.integers.data();
      sums[unit] = read_targets(a.class_type, a.target, at, count, s.classes, a.ignore_index, target);
      add_weights(sums[unit], at, count, target);
      Block<A> block = {count,
                        s.classes,
                        scratch.pitch,
                        scratch.row(0),
                        target,
                        weight ? weight + at : scratch.ones(),
                        each_pixel ? static_cast<A*>(a.loss) + at : scratch.row(s.classes + 3),
                        static_cast<A>(scale),
                        a.grad != nullptr};
      const T* logits = static_cast<const T*>(a.logits) + n * s.batch_stride + start * s.pixel_stride;
      G* grad = block.want_grad ? static_cast<G*>(a.grad) + n * s.classes * s.pixels +
                                      start * s.grad_pixel_stride
                                : nullptr;
      sums[unit].loss = compute_block(logits, s, grad, block, scratch);
    }
  });
  const BlockSums all = total(sums);
  if (!each_pixel) *static_cast<A*>(a.loss) = static_cast<A>(all.loss / divisor(all, a.reduction));
  return all.bad;
}

}  // namespace

BadTarget weighted_cross_entropy(const WeightedCrossEntropyShape& shape, const WeightedCrossEntropyArguments& arguments,
                                 const Parallel& parallel) {
  return dispatch_floating(arguments.float_type, [&]<class T>(T) {
    return run<T, GradientOf<T>, Wide<T>>(shape, arguments, parallel);
  });
}

}  // namespace uf
