// The shapes, pointers and options of the weighted cross-entropy, for the kernels of every device.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/dtype.h"

namespace uf {

enum class Reduction { kNone, kSum, kMean, kWeightMean };  // in the order of unet_fast/ops/weighted_cross_entropy.py

// The gradient of float16 logits is float32: that of a mean over many pixels lies below the range of float16.
template <class T>
using GradientOf = std::conditional_t<std::is_same_v<T, Half>, float, T>;

// Strides count elements; the spatial dimensions are flattened to `pixels` and step evenly. "Wide" below is double for
// float64 logits and float for all others.
struct WeightedCrossEntropyShape {
  int64_t batch, classes, pixels;
  int64_t batch_stride, class_stride, pixel_stride;  // of the logits; their gradient is dense, its batch stride K * P
  int64_t grad_class_stride, grad_pixel_stride;
};

struct WeightedCrossEntropyArguments {
  DType float_type;   // of the logits; the gradient has the same, but float32 for float16, whose range is too small
  DType class_type;   // of the target
  const void* logits;     // (N, K, P)
  const void* target;     // (N, P) dense
  const void* weight;     // (N, P) dense, wide, or null for 1
  int64_t ignore_index;
  Reduction reduction;
  void* loss;             // wide: (N, P) for kNone, else one value
  void* grad;             // (N, K, P), or null where nobody needs it
};

}  // namespace uf
