// Centre-crop of the skip, concatenated with the up-sampled tensor along the channels, on a stream.
#pragma once

#include <cuda_runtime.h>

#include "common/crop.h"

namespace uf::cuda {

// Strides are those of any strided tensor; inputs that step by one element along the innermost dimension of the layout
// are fastest. No workspace; empty tensors launch nothing.
//
// out (N, C1 + C2, *s) <- skip (N, C1, *S), up (N, C2, *s); a null `up` (and its strides) leaves its channels as they are
cudaError_t crop_concat(const CropConcatShape& shape, const void* skip, const int64_t skip_stride[kDims],
                        const void* up, const int64_t up_stride[kDims], void* out, cudaStream_t stream);

// grad_skip (N, C1, *S) <- grad (N, C1 + C2, *s): the first C1 channels in the centre, zero around them
cudaError_t crop_concat_backward(const CropConcatShape& shape, const void* grad, const int64_t grad_stride[kDims],
                                 void* grad_skip, cudaStream_t stream);

}  // namespace uf::cuda
