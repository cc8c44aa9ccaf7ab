// What a thread does with its pixels in the weighted cross-entropy: targets and weights, logits, loss and gradient.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/cross_entropy_types.h"
#include "common/fast_divide.h"
#include "common/half.h"
#include "common/softmax.h"
#include "cuda/launch.h"

namespace uf::cuda {

constexpr int32_t kIgnored = -1, kOutside = -2;  // targets that are no class

struct LossCall {
  WeightedCrossEntropyShape shape;
  WeightedCrossEntropyArguments arguments;
  Divide<uint32_t> by_classes;
  int64_t tile_pixels;           // that a block takes at once
  int64_t tiles;                 // of one image
  int64_t image_step, tile_step; // the grid as whole images and tiles: from one tile of a block to its next
  const double* divisors;        // sums, or null for a gradient that is not divided
  unsigned divisor_blocks;       // the number of those sums
  double* sums;                  // two for each block: losses, divisor
};

// The gradient of float16 lies below its range until the loss is scaled, so it is stored in float32.
template <class T>
using Gradient = std::conditional_t<std::is_same_v<T, Half>, float, T>;

struct PixelSums {
  double loss, divisor;
};

// ---- targets and weights

template <class I, int N>
__device__ void read_classes(const void* target, int64_t at, const LossCall& call, int32_t (&out)[N]) {
  const auto values = load_vector<I, N>(static_cast<const I*>(target) + at);
  const int64_t ignore_index = call.arguments.ignore_index, classes = call.shape.classes;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const auto value = static_cast<int64_t>(values.values[i]);
    const bool valid = value >= 0 && value < classes;
    out[i] = value == ignore_index ? kIgnored : valid ? static_cast<int32_t>(value) : kOutside;
  }
}

template <int N>
__device__ void read_targets(const LossCall& call, int64_t at, int32_t (&out)[N]) {
  switch (call.arguments.class_type) {
    case DType::kInt64: return read_classes<int64_t>(call.arguments.target, at, call, out);
    case DType::kInt32: return read_classes<int32_t>(call.arguments.target, at, call, out);
    default: return read_classes<uint8_t>(call.arguments.target, at, call, out);
  }
}

template <class A, int N>
__device__ void read_weights(const LossCall& call, int64_t at, A (&out)[N]) {
  Vector<A, N> values;
#pragma unroll
  for (int i = 0; i < N; ++i) values.values[i] = A(1);
  if (call.arguments.weight) values = load_vector<A, N>(static_cast<const A*>(call.arguments.weight) + at);
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = values.values[i];
}

// What one pixel adds to the divisor of the reduction.
template <class A>
__device__ double divisor_of(const LossCall& call, int32_t target, A weight) {
  const double share = call.arguments.reduction == Reduction::kWeightMean ? static_cast<double>(weight) : 1.0;
  return target == kIgnored ? 0.0 : share;
}

// Nothing counted, or weights that sum to zero: the loss is 0 and so is its gradient.
UF_HD_INLINE double usable_divisor(double sum) { return sum == 0 ? 1.0 : sum; }

template <class A, int N>
__device__ double divisor_of_pixels(const LossCall& call, int64_t at) {
  int32_t target[N];
  A weight[N];
  read_targets(call, at, target);
  read_weights(call, at, weight);
  double sum = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += divisor_of(call, target[i], weight[i]);
  return sum;
}

// ---- logits in, gradient out

// Where the pixels of one thread lie: side by side in every class, side by side with their classes, or one alone.
enum class Access { kPlanar, kInterleaved, kSingle };

template <class T, int K, int N, Access access>
__device__ void load_logits(const T* from, const WeightedCrossEntropyShape& s, Wide<T> (&x)[N][K]) {
  if constexpr (access == Access::kInterleaved) {
    const auto all = load_vector<T, N * K>(from);
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
      for (int k = 0; k < K; ++k) x[i][k] = widen(all.values[i * K + k]);
  } else {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const auto row = load_vector<T, N>(from + k * s.class_stride);
#pragma unroll
      for (int i = 0; i < N; ++i) x[i][k] = widen(row.values[i]);
    }
  }
}

template <class G, int K, int N, Access access, class A>
__device__ void store_gradient(G* to, const WeightedCrossEntropyShape& s, const A (&x)[N][K]) {
  if constexpr (access == Access::kInterleaved) {
    Vector<G, N * K> all;
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
      for (int k = 0; k < K; ++k) all.values[i * K + k] = narrow<G>(x[i][k]);
    store_vector(to, all);
  } else {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      Vector<G, N> row;
#pragma unroll
      for (int i = 0; i < N; ++i) row.values[i] = narrow<G>(x[i][k]);
      store_vector(to + k * s.grad_class_stride, row);
    }
  }
}

// The loss of one pixel; its logits become the gradient. `factor` is what the gradient is multiplied with.
template <class A, int K>
__device__ A loss_of_pixel(A (&x)[K], int32_t target, A factor) {
  A loss;
  if constexpr (K == 2) {
    A other;
    two_class_cross_entropy(x[0], x[1], target == 1, loss, other);
    x[0] = (target == 1 ? other : -other) * factor;
    x[1] = -x[0];
  } else {
    A m = x[0], mine = x[0];
    int32_t argmax = 0;
#pragma unroll
    for (int k = 1; k < K; ++k) {
      const bool larger = x[k] > m;
      m = larger ? x[k] : m;
      argmax = larger ? k : argmax;
      mine = target == k ? x[k] : mine;
    }
    A rest = m - m;  // 0, or NaN for an infinite largest logit
#pragma unroll
    for (int k = 0; k < K; ++k) {
      x[k] = exp_nonpositive(x[k] - m);
      rest += argmax == k ? A(0) : x[k];
    }
    const A y = A(1) + rest, inverse = A(1) / y;
    loss = cross_entropy(m, mine, rest, y, inverse);
#pragma unroll
    for (int k = 0; k < K; ++k)
      x[k] = cross_entropy_gradient(x[k], rest, argmax == k, target == k) * (factor * inverse);
  }
  return loss;
}

// The same for any number of classes: load(k) gives the logits, twice where the gradient is wanted, which goes to
// store(k, value). At a given k the load comes first, so both may mean the same memory.
template <class A, class Load, class Store>
__device__ A loss_of_many_classes(int64_t classes, int32_t target, A factor, bool want_grad, const Load& load,
                                  const Store& store) {
  RunningSoftmax<A> softmax(load(0));
  for (int64_t k = 1; k < classes; ++k) softmax.add(load(k), static_cast<int32_t>(k));
  softmax.finish();
  const A mine = load(target < 0 ? 0 : target);
  const A y = A(1) + softmax.rest, inverse = A(1) / y;
  for (int64_t k = 0; want_grad && k < classes; ++k) {
    const A e = exp_nonpositive(load(k) - softmax.largest);
    const A raw = cross_entropy_gradient(e, softmax.rest, softmax.argmax == k, target == k);
    store(k, target == kIgnored ? A(0) : raw * (factor * inverse));
  }
  return cross_entropy(softmax.largest, mine, softmax.rest, y, inverse);
}

// Straight from and to global memory, which do not overlap: the loads of later classes need not wait for stores.
template <class T, class G, class A>
__device__ A loss_of_strided_classes(const T* __restrict__ x, G* __restrict__ grad, const WeightedCrossEntropyShape& s,
                                     int32_t target, A factor) {
  return loss_of_many_classes(
      s.classes, target, factor, grad != nullptr, [&](int64_t k) -> A { return widen(x[k * s.class_stride]); },
      [&](int64_t k, A value) { grad[k * s.grad_class_stride] = narrow<G>(value); });
}

}  // namespace uf::cuda
