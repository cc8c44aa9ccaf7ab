// Bias, ReLU, 2x2 max-pooling and the cropped skip, in one pass over a convolution's output; and the gradient of all
// four; on a stream.
#pragma once

#include <cuda_runtime.h>

#include "common/cross_entropy_types.h"
#include "common/junction_types.h"

namespace uf::cuda {

// bias (C) is wide (double for float64, else float) or null; code is null where there will be no backward pass. No
// workspace.
cudaError_t relu_pool_skip(const ReluPoolSkipShape& shape, DType type, const void* x, const ImageStride& x_stride,
                           const void* bias, void* pooled, void* buffer, uint8_t* code, cudaStream_t stream);

struct ReluPoolSkipGradients {
  const void* pooled;  // (N, C, H / 2, W / 2), or null: 0
  ImageStride pooled_stride;
  const void* buffer;  // the first C channels of (N, ..., skip_height, skip_width), or null: 0
  ImageStride buffer_stride;
  const uint8_t* code;
  void* x;             // (N, C, H, W), dense
  void* bias;          // (C) wide, or null
};

// Workspace: for the gradient of the bias, relu_pool_skip_workspace(...) doubles.
cudaError_t relu_pool_skip_backward(const ReluPoolSkipShape& shape, DType type, const ReluPoolSkipGradients& grad,
                                    double* workspace, cudaStream_t stream);

int64_t relu_pool_skip_workspace(const ReluPoolSkipShape& shape, DType type, const ReluPoolSkipGradients& grad);

}  // namespace uf::cuda
