// Bias, ReLU, 2x2 max-pooling and the cropped skip, in one pass over a convolution's output; and the gradient of all four.
#pragma once

#include "common/cross_entropy_types.h"
#include "common/junction_types.h"
#include "cpu/parallel.h"

namespace uf {

// How both passes cut their work.
namespace pool_skip {
inline constexpr int64_t kSegmentBytes = 1 << 13;   // of one row, channels last
inline constexpr int64_t kGrainElements = 1 << 15;  // less work than this is not worth waking a second thread for
}  // namespace pool_skip

// bias (C) is wide (double for float64, else float) or null; code is null where there will be no backward pass.
void relu_pool_skip(const ReluPoolSkipShape& shape, DType type, const void* x, const ImageStride& x_stride,
                    const void* bias, void* pooled, void* buffer, uint8_t* code, const Parallel& parallel);

// grad_x (N, C, H, W) from grad_pooled (N, C, H / 2, W / 2) and the first C channels of grad_buffer; either may be null
// and counts as 0. grad_bias (C) is double, or null. Workspace: relu_pool_skip_parts(shape) * C doubles for grad_bias.
void relu_pool_skip_backward(const ReluPoolSkipShape& shape, DType type, const void* grad_pooled,
                             const ImageStride& pooled_stride, const void* grad_buffer,
                             const ImageStride& buffer_stride, const uint8_t* code, void* grad_x, double* grad_bias,
                             double* workspace, const Parallel& parallel);

// Into how many parts the work is cut, whatever the number of threads, so that the bias gradient does not depend on it.
int64_t relu_pool_skip_parts(const ReluPoolSkipShape& shape);

}  // namespace uf
