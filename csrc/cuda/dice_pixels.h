// What a thread does with a pixel in the Dice loss and cross-entropy: its target, its weight, its sums and its gradient. The maths is
// that of csrc/cpu/dice_cross_entropy_rows.h, with the cross-entropy sum_k c_k ((m - x_k) + log(1 + rest)), whose classes can be added
// up one by one.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/dice_cross_entropy.h"
#include "common/half.h"
#include "common/softmax.h"
#include "cuda/launch.h"

namespace uf::cuda {

struct DiceCall {
  DiceCrossEntropyShape shape;
  DiceCrossEntropyInputs inputs;
};

// T: of the logits. K classes, 0 for any number; with a sigmoid each is alone.
template <class T, int K, bool kSigmoid>
struct DicePixel {
  using A = Wide<T>;

  const DiceCall& call;
  const T* logits;     // of this pixel, classes class_stride apart
  const A* soft;       // the truth of this pixel, classes target_stride[1] apart; null for a class map
  const A* class_weight;
  A weight;            // 0 for an ignored pixel, NaN where the target is no class
  A share;             // what the pixel adds to the divisor of the cross-entropy
  int64_t label;
  bool counted;

  __device__ DicePixel(const DiceCall& call_in, int64_t n, int64_t pixel, bool exists) : call(call_in) {
    const DiceCrossEntropyShape& s = call.shape;
    const DiceCrossEntropyInputs& in = call.inputs;
    logits = static_cast<const T*>(in.logits) + n * s.logits_stride[0] + pixel * s.logits_stride[2];
    class_weight = static_cast<const A*>(in.class_weight);
    soft = nullptr;
    label = 0;
    share = 1;
    counted = exists;
    weight = in.weight && exists ? static_cast<const A*>(in.weight)[n * s.pixels + pixel] : A(1);
    if (!exists) {
      // counts for nothing
    } else if (s.soft) {
      soft = static_cast<const A*>(in.target) + n * s.target_stride[0] + pixel * s.target_stride[2];
      counted = !(classes() == 1 && *soft == static_cast<A>(s.ignore_index));
    } else {
      label = read_label(n * s.pixels + pixel);
      counted = label != s.ignore_index;
      const bool known = label >= 0 && label < (classes() == 1 ? 2 : classes());
      if (!known) weight = A(NAN);
      if (!kSigmoid && class_weight) share = known ? class_weight[label] : A(0);
    }
    if (!counted) weight = share = 0;
  }

  __device__ int64_t classes() const { return K > 0 ? K : call.shape.classes; }

  __device__ int64_t read_label(int64_t at) const {
    const void* target = call.inputs.target;
    switch (call.shape.target_type) {
      case DType::kInt64: return static_cast<const int64_t*>(target)[at];
      case DType::kInt32: return static_cast<const int32_t*>(target)[at];
      case DType::kInt16: return static_cast<const int16_t*>(target)[at];
      case DType::kInt8: return static_cast<const int8_t*>(target)[at];
      default: return static_cast<const uint8_t*>(target)[at];
    }
  }

  // An ignored pixel has no number that could spread.
  __device__ A logit(int64_t k) const { return counted ? widen(logits[k * call.shape.logits_stride[1]]) : A(0); }

  __device__ A truth(int64_t k) const {
    if (!soft) return label == (classes() == 1 ? 1 : k) ? A(1) : A(0);
    const A t = counted ? soft[k * call.shape.target_stride[1]] : A(0);
    return t >= 0 && t <= 1 ? t : A(NAN);
  }

  __device__ A weight_of_class(int64_t k) const { return class_weight ? class_weight[k] : A(1); }

  // c_k of the softmax.
  __device__ A factor(int64_t k, A truth) const {
    const A smoothing = static_cast<A>(call.shape.smoothing);
    return weight_of_class(k) * ((A(1) - smoothing) * truth + smoothing / static_cast<A>(classes()));
  }
};

// The softmax of a pixel: largest logit, its class, and the sum of all other terms.
template <class T, int K, bool kSigmoid>
__device__ RunningSoftmax<Wide<T>> softmax_of(const DicePixel<T, K, kSigmoid>& pixel, const Wide<T>* x) {
  const auto logit = [&](int64_t k) { return K > 0 ? x[k] : pixel.logit(k); };
  RunningSoftmax<Wide<T>> softmax(logit(0));
#pragma unroll
  for (int64_t k = 1; k < pixel.classes(); ++k) softmax.add(logit(k), static_cast<int32_t>(k));
  softmax.finish();
  return softmax;
}

// A class with a sigmoid: exp(-|x|) and what comes of it; NaN for an infinite x, which must not go unnoticed.
template <class A>
struct Sigmoid {
  A x, u, inverse;

  __device__ explicit Sigmoid(A x_in) : x(x_in), u(exp_nonpositive(x_in < 0 ? x_in : -x_in) + (x_in - x_in)), inverse(A(1) / (A(1) + u)) {}
  __device__ A probability() const { return x < 0 ? u * inverse : inverse; }
  __device__ A against() const { return x < 0 ? inverse : u * inverse; }
  __device__ A cost(A truth, A weight) const {
    const A log = log1p_nonnegative(u, A(1) + u, inverse);
    return (A(1) - truth) * ((x < 0 ? A(0) : x) + log) + weight * truth * ((x < 0 ? -x : A(0)) + log);
  }
};

// Stores the gradient of each class by way of store(k, value). of_both(k) and of_predicted(k): slopes of the sums; of_loss: that of the
// cross-entropy.
template <class T, int K, bool kSigmoid, class OfBoth, class OfPredicted, class Store>
__device__ void dice_gradient(const DicePixel<T, K, kSigmoid>& pixel, const OfBoth& of_both, const OfPredicted& of_predicted,
                              Wide<T> of_loss, const Store& store) {
  using A = Wide<T>;
  const int64_t classes = pixel.classes();
  const bool with_loss = pixel.call.shape.cross_entropy;
  const auto slope = [&](int64_t k, A truth) { return of_predicted(k) + of_both(k) * truth; };
  const auto put = [&](int64_t k, A value) { store(k, pixel.counted ? value * pixel.weight : A(0)); };
  if constexpr (kSigmoid) {
    for (int64_t k = 0; k < classes; ++k) {
      const Sigmoid<A> s(pixel.logit(k));
      const A t = pixel.truth(k);
      A value = s.probability() * s.against() * slope(k, t);
      if (with_loss) value += of_loss * ((A(1) - t) * s.probability() - pixel.weight_of_class(k) * t * s.against());
      put(k, value);
    }
  } else {
    A x[K > 0 ? K : 1] = {};
    if constexpr (K > 0) {
#pragma unroll
      for (int k = 0; k < K; ++k) x[k] = pixel.logit(k);
    }
    const auto logit = [&](int64_t k) { return K > 0 ? x[k] : pixel.logit(k); };
    const auto softmax = softmax_of(pixel, x);
    const A inverse = A(1) / (A(1) + softmax.rest), of_largest = slope(softmax.argmax, pixel.truth(softmax.argmax));
    // all of it less what the likeliest class has, and the sums without that class, so that nothing cancels where it is nearly certain
    A mean = 0, total = 0, others = 0;
#pragma unroll
    for (int64_t k = 0; k < classes; ++k) {
      const A t = pixel.truth(k), c = with_loss ? pixel.factor(k, t) : A(0);
      const A p = exp_nonpositive(logit(k) - softmax.largest) * inverse;
      total += c;
      others += softmax.argmax == k ? A(0) : c;
      mean += softmax.argmax == k ? A(0) : p * (slope(k, t) - of_largest);
    }
    others -= softmax.rest * inverse * total;
#pragma unroll
    for (int64_t k = 0; k < classes; ++k) {
      const bool largest = softmax.argmax == k;
      const A t = pixel.truth(k), p = exp_nonpositive(logit(k) - softmax.largest) * inverse;
      A value = p * ((largest ? A(0) : slope(k, t) - of_largest) - mean);
      if (with_loss) value += of_loss * (largest ? others : p * total - pixel.factor(k, t));
      put(k, value);
    }
  }
}

}  // namespace uf::cuda
