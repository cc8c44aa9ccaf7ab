// Softmax cross-entropy of each pixel times a weight, with its gradient, in one pass over the logits.
#pragma once

#include <cstdint>

#include "common/cross_entropy_types.h"
#include "cpu/parallel.h"

namespace uf {

struct BadTarget {
  bool found;
  int64_t value;  // the first target that is neither a class nor ignore_index
};

// Workspace: 40 bytes for each block of up to 1,024 pixels, and up to 260 KiB + 68 * K * sizeof(wide) a thread.
// The result does not depend on the number of threads.
BadTarget weighted_cross_entropy(const WeightedCrossEntropyShape& shape, const WeightedCrossEntropyArguments& arguments,
                                 const Parallel& parallel);

// out = grad * grad_output, all of one dense layout; grad_output is wide, one value or (N, P). `type` is that of grad.
void weighted_cross_entropy_backward(int64_t batch, int64_t classes, int64_t pixels, bool channels_last, DType type,
                                     const void* grad, const void* grad_output, bool each_pixel, void* out,
                                     const Parallel& parallel);

}  // namespace uf
