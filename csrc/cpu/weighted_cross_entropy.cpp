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
#include "common/softmax.h"

namespace uf {
namespace {

constexpr int64_t kMostPixels = 1024, kFewestPixels = 64, kBlockValues = 8192;
constexpr int64_t kGrainValues = 1 << 14;  // less work than this is not worth waking a second thread for

int64_t block_pixels(int64_t classes) {
  return std::clamp(kBlockValues / classes / 16 * 16, kFewestPixels, kMostPixels);
}

struct BlockSums {
  double loss = 0, weight = 0;
  int64_t counted = 0;
  BadTarget bad = {false, 0};
};

template <class A>
struct Block {
  int64_t pixels, classes, pitch;  // row k of the scratch starts at x + k * pitch
  A* x;                            // logits, later their gradient
  const int32_t* target;           // -1: ignored
  const A* weight;                 // null: 1
  A* loss;                         // weighted
  A scale;                         // of the gradient
  bool want_grad;
};

// ---- targets and weights

template <class I>
UF_INLINE void read_targets(const I* __restrict in, int64_t count, int64_t classes, int64_t ignore_index,
                            int32_t* __restrict out, BlockSums& sums) {
  int32_t counted = 0, wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = static_cast<int64_t>(in[i]);
    const int32_t used = value != ignore_index, valid = value >= 0 && value < classes;
    out[i] = used ? static_cast<int32_t>(value) : -1;
    counted += used;
    wrong |= used & ~valid;
  }
  sums.counted = counted;
  if (!wrong) return;
  for (int64_t i = 0; i < count && !sums.bad.found; ++i) {
    const int64_t value = static_cast<int64_t>(in[i]);
    if (value != ignore_index && (value < 0 || value >= classes)) sums.bad = {true, value};
  }
}

UF_MULTIVERSION void read_int64(const int64_t* in, int64_t count, int64_t classes, int64_t ignore, int32_t* out,
                                BlockSums& sums) {
  read_targets(in, count, classes, ignore, out, sums);
}

UF_MULTIVERSION void read_int32(const int32_t* in, int64_t count, int64_t classes, int64_t ignore, int32_t* out,
                                BlockSums& sums) {
  read_targets(in, count, classes, ignore, out, sums);
}

UF_MULTIVERSION void read_uint8(const uint8_t* in, int64_t count, int64_t classes, int64_t ignore, int32_t* out,
                                BlockSums& sums) {
  read_targets(in, count, classes, ignore, out, sums);
}

// Eight running sums in double: exact enough for any image, and the compiler may keep them in vector registers.
template <class A>
UF_INLINE double sum(const A* values, int64_t count) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int64_t j = 0; j < 8; ++j) lanes[j] += values[i + j];
  for (; i < count; ++i) lanes[0] += values[i];
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

// The selection goes through memory: GCC 12 miscompiles a sum of doubles that an int32 selects (wrong lanes with AVX2).
template <class A>
UF_INLINE double sum_where_counted(const A* __restrict values, const int32_t* __restrict target, int64_t count) {
  A chosen[kMostPixels];
  for (int64_t i = 0; i < count; ++i) chosen[i] = target[i] < 0 ? A(0) : values[i];
  return sum(chosen, count);
}

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

// ---- the maths of one block

template <class A>
UF_INLINE void two_classes(const Block<A>& block) {
  A* __restrict first = block.x;
  A* __restrict second = block.x + block.pitch;
  A* __restrict out = block.loss;
  const int32_t* __restrict target = block.target;
  const A* __restrict weight = block.weight;
  const A scale = block.scale;
  for (int64_t i = 0; i < block.pixels; ++i) {
    const bool counted = target[i] >= 0, upper = target[i] == 1;
    A loss, other;
    two_class_cross_entropy(first[i], second[i], upper, loss, other);
    out[i] = counted ? loss * weight[i] : A(0);
    const A gradient = counted ? other * (weight[i] * scale) : A(0);
    first[i] = upper ? gradient : -gradient;
    second[i] = upper ? -gradient : gradient;
  }
}

// `largest`, `argmax`, `rest` and `mine` (the logit of the target) are scratch rows.
template <class A>
UF_INLINE void many_classes(const Block<A>& block, A* __restrict largest, int32_t* __restrict argmax,
                            A* __restrict rest, A* __restrict mine) {
  const int64_t pixels = block.pixels, classes = block.classes;
  const int32_t* __restrict target = block.target;
  const A* __restrict weight = block.weight;
  A* __restrict out = block.loss;
  for (int64_t i = 0; i < pixels; ++i) {
    largest[i] = block.x[i];
    argmax[i] = 0;
  }
  for (int32_t k = 1; k < classes; ++k) {
    const A* __restrict row = block.x + k * block.pitch;
    for (int64_t i = 0; i < pixels; ++i) {
      const bool larger = row[i] > largest[i];
      largest[i] = larger ? row[i] : largest[i];
      argmax[i] = larger ? k : argmax[i];
    }
  }
  for (int64_t i = 0; i < pixels; ++i) {
    rest[i] = largest[i] - largest[i];  // 0, or NaN for an infinite largest logit, which must not go unnoticed
    mine[i] = largest[i];
  }
  for (int32_t k = 0; k < classes; ++k) {
    A* __restrict row = block.x + k * block.pitch;
    for (int64_t i = 0; i < pixels; ++i) {
      const A e = exp_nonpositive(row[i] - largest[i]);
      mine[i] = target[i] == k ? row[i] : mine[i];
      rest[i] += argmax[i] == k ? A(0) : e;
      row[i] = e;
    }
  }
  for (int64_t i = 0; i < pixels; ++i) {
    const A y = A(1) + rest[i], inverse = A(1) / y;
    const A loss = cross_entropy(largest[i], mine[i], rest[i], y, inverse);
    out[i] = target[i] < 0 ? A(0) : loss * weight[i];
    largest[i] = (weight[i] * block.scale) * inverse;  // from here on the factor of the gradient
  }
  if (!block.want_grad) return;
  for (int32_t k = 0; k < classes; ++k) {
    A* __restrict row = block.x + k * block.pitch;
    for (int64_t i = 0; i < pixels; ++i) {
      const A gradient = cross_entropy_gradient(row[i], rest[i], argmax[i] == k, target[i] == k) * largest[i];
      row[i] = target[i] < 0 ? A(0) : gradient;
    }
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
  return sum(block.loss, block.pixels);
}

UF_MULTIVERSION double compute_float64(const double* logits, const WeightedCrossEntropyShape& s, double* grad,
                                       Block<double>& block, Scratch<double>& scratch) {
  return compute(logits, s, grad, block, scratch);
}

UF_MULTIVERSION double compute_float32(const float* logits, const WeightedCrossEntropyShape& s, float* grad,
                                       Block<float>& block, Scratch<float>& scratch) {
  return compute(logits, s, grad, block, scratch);
}

UF_MULTIVERSION double compute_float16(const Half* logits, const WeightedCrossEntropyShape& s, float* grad,
                                       Block<float>& block, Scratch<float>& scratch) {
  return compute(logits, s, grad, block, scratch);
}

UF_MULTIVERSION double compute_bfloat16(const BFloat16* logits, const WeightedCrossEntropyShape& s, BFloat16* grad,
                                        Block<float>& block, Scratch<float>& scratch) {
  return compute(logits, s, grad, block, scratch);
}

UF_MULTIVERSION double sum_weights(const double* weight, const int32_t* target, int64_t count) {
  return sum_where_counted(weight, target, count);
}

UF_MULTIVERSION double sum_weights(const float* weight, const int32_t* target, int64_t count) {
  return sum_where_counted(weight, target, count);
}

// ---- the whole

BlockSums read_block(const WeightedCrossEntropyShape& s, const WeightedCrossEntropyArguments& a, int64_t at,
                     int64_t count, int32_t* target) {
  BlockSums sums;
  switch (a.class_type) {
    case ClassType::kInt64:
      read_int64(static_cast<const int64_t*>(a.target) + at, count, s.classes, a.ignore_index, target, sums);
      break;
    case ClassType::kInt32:
      read_int32(static_cast<const int32_t*>(a.target) + at, count, s.classes, a.ignore_index, target, sums);
      break;
    case ClassType::kUInt8:
      read_uint8(static_cast<const uint8_t*>(a.target) + at, count, s.classes, a.ignore_index, target, sums);
      break;
  }
  return sums;
}

// In the order of the blocks, so that neither the value nor the reported target depends on the threads.
BlockSums total(const std::vector<BlockSums>& blocks) {
  BlockSums sums;
  for (const BlockSums& block : blocks) {
    sums.loss += block.loss;
    sums.weight += block.weight;
    sums.counted += block.counted;
    if (!sums.bad.found) sums.bad = block.bad;
  }
  return sums;
}

// Nothing counted, or weights that sum to zero: the loss is 0 and so is its gradient.
double divisor(const BlockSums& sums, Reduction reduction) {
  double value = 1;
  if (reduction == Reduction::kMean) value = static_cast<double>(sums.counted);
  if (reduction == Reduction::kWeightMean) value = sums.weight;
  return value == 0 ? 1 : value;
}

template <class T, class G, class A, class Compute>
BadTarget run(const WeightedCrossEntropyShape& s, const WeightedCrossEntropyArguments& a, const Parallel& parallel,
              Compute&& compute) {
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
        sums[unit] = read_block(s, a, at, count, target.data());
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
      sums[unit] = read_block(s, a, at, count, target);
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
      sums[unit].loss = compute(logits, s, grad, block, scratch);
    }
  });
  const BlockSums all = total(sums);
  if (!each_pixel) *static_cast<A*>(a.loss) = static_cast<A>(all.loss / divisor(all, a.reduction));
  return all.bad;
}

}  // namespace

BadTarget weighted_cross_entropy(const WeightedCrossEntropyShape& shape, const WeightedCrossEntropyArguments& arguments,
                                 const Parallel& parallel) {
  switch (arguments.float_type) {
    case FloatType::kFloat64:
      return run<double, double, double>(shape, arguments, parallel, compute_float64);
    case FloatType::kFloat16:
      return run<Half, float, float>(shape, arguments, parallel, compute_float16);
    case FloatType::kBFloat16:
      return run<BFloat16, BFloat16, float>(shape, arguments, parallel, compute_bfloat16);
    default:
      return run<float, float, float>(shape, arguments, parallel, compute_float32);
  }
}

}  // namespace uf
