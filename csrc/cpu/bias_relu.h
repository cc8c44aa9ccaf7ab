// y = relu(x + bias[c]) in one pass, in place where wanted, and its gradient from y in one pass.
#pragma once

#include <cstdint>

#include "common/cross_entropy_types.h"
#include "common/junction_types.h"
#include "cpu/parallel.h"

namespace uf {

// bias (C) is wide (double for float64, else float) or null. out may be x.
void bias_relu(const BiasReluShape& shape, DType type, const void* x, const void* bias, void* out,
               const Parallel& parallel);

// grad_x = grad where out is positive (or NaN), else 0. grad_bias (C) is double, or null.
// Workspace: bias_relu_parts(shape) * C doubles for grad_bias.
void bias_relu_backward(const BiasReluShape& shape, DType type, const void* grad, const void* out, void* grad_x,
                        double* grad_bias, double* workspace, const Parallel& parallel);

int64_t bias_relu_parts(const BiasReluShape& shape);

}  // namespace uf
