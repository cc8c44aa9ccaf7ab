// What the losses with a softmax share: a block of pixels, its targets and weights, and the maths on its logits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/cross_entropy_types.h"
#include "common/macros.h"
#include "common/softmax.h"
#include "cpu/weighted_cross_entropy.h"

namespace uf {

constexpr int64_t kMostPixels = 1024, kFewestPixels = 64, kBlockValues = 8192;  // of a block

// As many pixels as fit the first-level cache with this many values each.
inline int64_t block_pixels(int64_t values) {
  return std::clamp(kBlockValues / values / 16 * 16, kFewestPixels, kMostPixels);
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

// Targets of `count` pixels from pixel `at` on, with -1 for ignored ones, and what there is to count.
BlockSums read_targets(DType type, const void* targets, int64_t at, int64_t count, int64_t classes,
                       int64_t ignore_index, int32_t* target);

double sum_weights(const double* weight, const int32_t* target, int64_t count);
double sum_weights(const float* weight, const int32_t* target, int64_t count);

// In the order of the blocks, so that neither the value nor the reported target depends on the threads.
BlockSums total(const std::vector<BlockSums>& blocks);

// Nothing counted, or weights that sum to zero: the loss is 0 and so is its gradient.
double divisor(const BlockSums& sums, Reduction reduction);

// Eight running sums in double: exact enough for any image, and the compiler may keep them in vector registers.
template <class A>
UF_INLINE double sum_in_double(const A* values, int64_t count) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int64_t j = 0; j < 8; ++j) lanes[j] += values[i + j];
  for (; i < count; ++i) lanes[0] += values[i];
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
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

}  // namespace uf
