// A 1x1 convolution and the weighted softmax cross-entropy of what it puts out, with all gradients, in one pass over the
// features, on a stream. A target that is neither a class nor ignore_index makes the loss NaN, as in the loss alone.
#pragma once

#include <cuda_runtime.h>

#include "common/head_cross_entropy_types.h"

namespace uf::cuda {

// Whether the kernels take so many classes and channels: their weights and gradients must fit the registers of a block.
bool head_cross_entropy_fits(const HeadCrossEntropyShape& shape, DType type);

// Doubles: 9 KiB, and K C + K + C for each of up to 512 blocks where gradients are wanted.
int64_t head_cross_entropy_workspace(const HeadCrossEntropyShape& shape, const HeadCrossEntropyArguments& arguments);

// Wide gradients of the parameters.
struct HeadGradients {
  void* weight;        // (K, C)
  void* bias;          // (K)
  void* feature_bias;  // (C)
};

// Up to four launches: the divisor (for gradients of a mean), the pass, the sum of the losses, the sums of the gradients.
// The result is the same to the last bit in every run. The doubles* of `arguments` are not used.
cudaError_t head_cross_entropy(const HeadCrossEntropyShape& shape, const HeadCrossEntropyArguments& arguments,
                               const HeadGradients& gradients, double* workspace, cudaStream_t stream);

}  // namespace uf::cuda
