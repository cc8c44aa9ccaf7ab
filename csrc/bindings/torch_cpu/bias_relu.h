// Bias and ReLU of CPU tensors, for the operators that have them behind something else.
#pragma once

#include "bindings/tensor.h"

namespace uf::bindings {

void bias_relu_in_place(const Tensor& x, const std::optional<Tensor>& bias);

// The gradients of x and of the bias (empty where nobody wants it), from the output.
std::tuple<Tensor, Tensor> bias_relu_gradients(const Tensor& grad, const Tensor& out, bool want_bias);

}  // namespace uf::bindings
