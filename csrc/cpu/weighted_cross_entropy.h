// Softmax cross-entropy of each pixel times a weight, with its gradient, in one pass over the logits.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"

namespace uf {

enum class FloatType { kFloat64, kFloat32, kFloat16, kBFloat16 };
enum class ClassType { kInt64, kInt32, kUInt8 };
enum class Reduction { kNone, kSum, kMean, kWeightMean };  // in the order of unet_fast/ops/weighted_cross_entropy.py

// Strides count elements; the spatial dimensions are flattened to `pixels` and step evenly. "Wide" below is double for
// float64 logits and float for all others.
struct WeightedCrossEntropyShape {
  int64_t batch, classes, pixels;
  int64_t batch_stride, class_stride, pixel_stride;  // of the logits; their gradient is dense, its batch stride K * P
  int64_t grad_class_stride, grad_pixel_stride;
};

struct WeightedCrossEntropyArguments {
  FloatType float_type;   // of the logits; the gradient has the same, but float32 for float16, whose range is too small
  ClassType class_type;   // of the target
  const void* logits;     // (N, K, P)
  const void* target;     // (N, P) dense
  const void* weight;     // (N, P) dense, wide, or null for 1
  int64_t ignore_index;
  Reduction reduction;
  void* loss;             // wide: (N, P) for kNone, else one value
  void* grad;             // (N, K, P), or null where nobody needs it
};

struct BadTarget {
  bool found;
  int64_t value;  // the first target that is neither a class nor ignore_index
};

// Workspace: 40 bytes for each block of up to 1,024 pixels, and up to 260 KiB + 68 * K * sizeof(wide) a thread.
// The result does not depend on the number of threads.
BadTarget weighted_cross_entropy(const WeightedCrossEntropyShape& shape, const WeightedCrossEntropyArguments& arguments,
                                 const Parallel& parallel);

// out = grad * grad_output, all of one dense layout; grad_output is wide, one value or (N, P). `type` is that of grad.
void weighted_cross_entropy_backward(int64_t batch, int64_t classes, int64_t pixels, bool channels_last, FloatType type,
                                     const void* grad, const void* grad_output, bool each_pixel, void* out,
                                     const Parallel& parallel);

}  // namespace uf
