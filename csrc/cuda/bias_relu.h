// y = relu(x + bias[c]) in one pass, in place where wanted, and its gradient from y in one pass, on a stream.
#pragma once

#include <cuda_runtime.h>

#include "common/cross_entropy_types.h"
#include "common/junction_types.h"

namespace uf::cuda {

// Dense tensors. bias (C) is wide (double for float64, else float) or null. out may be x. No workspace.
cudaError_t bias_relu(const BiasReluShape& shape, DType type, const void* x, const void* bias, void* out,
                      cudaStream_t stream);

// grad_x = grad where out is positive (or NaN), else 0. grad_bias (C) is wide, or null.
// Workspace: for grad_bias, bias_relu_workspace(...) doubles.
cudaError_t bias_relu_backward(const BiasReluShape& shape, DType type, const void* grad, const void* out,
                               void* grad_x, void* grad_bias, double* workspace, cudaStream_t stream);

int64_t bias_relu_workspace(const BiasReluShape& shape, DType type, const void* grad, const void* out,
                            const void* grad_x);

}  // namespace uf::cuda
