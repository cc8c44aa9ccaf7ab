// Centre-crop of the skip, concatenated with the up-sampled tensor along the channels.
#pragma once

#include <cstdint>

#include "common/crop.h"
#include "cpu/parallel.h"

namespace uf {

// Inputs step by one element along the innermost dimension of the layout.
//
// out (N, C1 + C2, *s) <- skip (N, C1, *S), up (N, C2, *s)
void crop_concat(const CropConcatShape& shape, const void* skip, const int64_t skip_stride[kDims], const void* up,
                 const int64_t up_stride[kDims], void* out, const Parallel& parallel);

// grad_skip (N, C1, *S) <- grad (N, C1 + C2, *s): the first C1 channels in the centre, zero around them
void crop_concat_backward(const CropConcatShape& shape, const void* grad, const int64_t grad_stride[kDims],
                          void* grad_skip, const Parallel& parallel);

}  // namespace uf
