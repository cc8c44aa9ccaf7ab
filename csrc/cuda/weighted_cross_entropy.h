// Softmax cross-entropy of each pixel times a weight, with its gradient, in one pass over the logits, on a stream.
//
// A target that is neither a class nor ignore_index makes the loss and the gradient of its pixel NaN: raising an error
// would need the host to wait for the device.
#pragma once

#include <cuda_runtime.h>

#include "common/cross_entropy_types.h"

namespace uf::cuda {

// Doubles of workspace that a call needs, 66 KiB at most.
int64_t weighted_cross_entropy_workspace(const WeightedCrossEntropyShape& shape,
                                         const WeightedCrossEntropyArguments& arguments);

// Up to three launches: the divisor (for a gradient of a mean), losses and gradients, the sum of the losses. Sums have
// a fixed order, which does not depend on the device: the result is the same to the last bit in every run.
cudaError_t weighted_cross_entropy(const WeightedCrossEntropyShape& shape,
                                   const WeightedCrossEntropyArguments& arguments, double* workspace,
                                   cudaStream_t stream);

// out = grad * grad_output, all of one dense layout; grad_output is wide, one value or (N, P). `type` is that of grad.
cudaError_t weighted_cross_entropy_backward(int64_t batch, int64_t classes, int64_t pixels, bool channels_last,
                                            DType type, const void* grad, const void* grad_output, bool each_pixel,
                                            void* out, cudaStream_t stream);

// grad *= grad_output, one wide value, for any dense tensor of so many elements. Leaves the memory alone where that value
// is 1, as it is where the backward pass begins with this loss.
cudaError_t scale_in_place(int64_t elements, DType type, void* grad, const void* grad_output, cudaStream_t stream);

}  // namespace uf::cuda
