// From tensors to the shapes, strides and outputs of the fused junctions, for the kernels of every device.
#pragma once

#include <string>

#include "bindings/shape_checks.h"
#include "bindings/tensor.h"
#include "common/junction_types.h"

namespace uf::bindings {

inline BiasReluShape bias_relu_shape(const Tensor& dense) {
  return {dense.size(0), dense.size(1), pixels_of(dense), is_channels_last(dense)};
}

inline ImageStride image_stride(const Tensor& image) {
  return {image.stride(0), image.stride(1), image.stride(2), image.stride(3)};
}

struct ReluPoolSkipCall {
  ReluPoolSkipShape shape;
  DType type;
  Tensor x, pooled, buffer, code;
  std::optional<Tensor> bias;
};

inline ReluPoolSkipCall relu_pool_skip_call(const Tensor& x, const std::optional<Tensor>& bias,
                                            const std::vector<int64_t>& skip_size, int64_t up_channels,
                                            bool want_code) {
  checks::rank(x, 4, 4, "relu_pool_skip: x");
  checks::sides(skip_size, 1, x.size(2), x.size(3), "relu_pool_skip: skip_size");
  STD_TORCH_CHECK(up_channels >= 0, "relu_pool_skip: up_channels is ", up_channels);
  ReluPoolSkipCall call;
  const bool last = is_channels_last(x);
  const MemoryFormat format = dense_format(last);
  call.type = floating_dtype(x, "relu_pool_skip: x");
  call.x = innermost_dense(x, last);
  call.bias = dense_wide(bias, x, x.size(1), "relu_pool_skip: bias");
  call.shape = {x.size(0), x.size(1), x.size(2), x.size(3), skip_size[0], skip_size[1], x.size(1) + up_channels, last};
  const ReluPoolSkipShape& s = call.shape;
  call.pooled = new_tensor(x, {s.batch, s.channels, s.pooled_height(), s.pooled_width()}, std::nullopt, format);
  call.buffer = new_tensor(x, {s.batch, s.buffer_channels, s.skip_height, s.skip_width}, std::nullopt, format);
  call.code = want_code ? new_tensor(x, {s.batch, s.channels, s.code_height(), s.code_width()}, ScalarType::Byte, format)
                        : new_tensor(x, {0}, ScalarType::Byte);
  return call;
}

struct ReluPoolSkipBackwardCall {
  ReluPoolSkipShape shape;
  DType type;
  std::optional<Tensor> grad_pooled, grad_buffer;
  ImageStride pooled_stride = {}, buffer_stride = {};
  Tensor code, grad_x;
};

inline ReluPoolSkipBackwardCall relu_pool_skip_backward_call(const Tensor& code,
                                                             const std::optional<Tensor>& grad_pooled,
                                                             const std::optional<Tensor>& grad_buffer,
                                                             const std::vector<int64_t>& size) {
  STD_TORCH_CHECK(grad_pooled.has_value() || grad_buffer.has_value(), "relu_pool_skip_backward: no gradient was given");
  checks::rank(code, 4, 4, "relu_pool_skip_backward: code");
  checks::sides(size, 1, checks::kLargestSide, checks::kLargestSide, "relu_pool_skip_backward: size");
  STD_TORCH_CHECK(code.scalar_type() == ScalarType::Byte && code.size(2) == (size[0] + 1) / 2 &&
                      code.size(3) == (size[1] + 1) / 2,
                  "relu_pool_skip_backward: code must be uint8, one number for each 2 x 2 pixels of size");
  for (const std::optional<Tensor>* grad : {&grad_pooled, &grad_buffer}) {
    if (!grad->has_value()) continue;
    checks::rank(**grad, 4, 4, "relu_pool_skip_backward: a gradient");
    STD_TORCH_CHECK((*grad)->size(0) == code.size(0), "relu_pool_skip_backward: another batch size");
  }
  STD_TORCH_CHECK(!grad_pooled.has_value() || (grad_pooled->size(1) == code.size(1) && grad_pooled->size(2) == size[0] / 2 &&
                                               grad_pooled->size(3) == size[1] / 2),
                  "relu_pool_skip_backward: grad_pooled does not fit");
  STD_TORCH_CHECK(!grad_buffer.has_value() || (grad_buffer->size(1) >= code.size(1) && grad_buffer->size(2) >= 1 &&
                                               grad_buffer->size(3) >= 1 && grad_buffer->size(2) <= size[0] &&
                                               grad_buffer->size(3) <= size[1]),
                  "relu_pool_skip_backward: grad_buffer does not fit");
  ReluPoolSkipBackwardCall call;
  const Tensor& like = grad_pooled.has_value() ? *grad_pooled : *grad_buffer;
  const bool last = is_channels_last(code);
  call.type = floating_dtype(like, "relu_pool_skip_backward: gradients");
  call.code = torch::stable::contiguous(code, dense_format(last));
  call.shape = {code.size(0), code.size(1), size[0], size[1], 0, 0, 0, last};
  if (grad_pooled.has_value()) {
    call.grad_pooled = innermost_dense(*grad_pooled, last);
    call.pooled_stride = image_stride(*call.grad_pooled);
  }
  if (grad_buffer.has_value()) {
    STD_TORCH_CHECK(grad_buffer->scalar_type() == like.scalar_type(),
                    "relu_pool_skip_backward: both gradients must have the same dtype");
    call.grad_buffer = innermost_dense(*grad_buffer, last);
    call.buffer_stride = image_stride(*call.grad_buffer);
    call.shape.skip_height = grad_buffer->size(2);
    call.shape.skip_width = grad_buffer->size(3);
    call.shape.buffer_channels = grad_buffer->size(1);
  }
  call.grad_x = new_tensor(like, {code.size(0), code.size(1), size[0], size[1]}, std::nullopt, dense_format(last));
  return call;
}

// 2x2, stride-2 transposed convolution of x (N, C_in, h, w) with weight (C_in, C, 2, 2) into the last C channels of
// image (N, ..., 2h, 2w), in whose layout all the work is done.
struct UpConvCall {
  DType type;
  bool channels_last;
  int64_t batch, in_channels, channels, height, width;
  Tensor x, weight;  // dense; the weight as (C_in, 2, 2, C), so a matrix of C_in rows
  ImageStride stride;
  int64_t offset;    // of the first element of those channels, in the image

  int64_t pixels() const { return height * width; }
};

inline UpConvCall up_conv_call(const Tensor& x, const Tensor& weight, const Tensor& image, const char* op) {
  checks::rank(x, 4, 4, op);
  checks::rank(weight, 4, 4, op);
  checks::rank(image, 4, 4, op);
  UpConvCall call;
  call.type = floating_dtype(image, op);
  call.channels_last = is_channels_last(image);
  call.batch = x.size(0);
  call.in_channels = x.size(1);
  call.height = x.size(2);
  call.width = x.size(3);
  call.channels = weight.size(1);
  STD_TORCH_CHECK(x.scalar_type() == image.scalar_type() && weight.scalar_type() == image.scalar_type(), op,
                  ": tensors must have the same dtype");
  STD_TORCH_CHECK(image.size(0) == call.batch && image.size(1) >= call.channels && image.size(2) == 2 * call.height &&
                      image.size(3) == 2 * call.width && weight.size(0) == call.in_channels && weight.size(2) == 2 &&
                      weight.size(3) == 2,
                  op, ": shapes do not match");
  call.x = torch::stable::contiguous(x, dense_format(call.channels_last));
  call.weight = torch::stable::contiguous(weight, MemoryFormat::ChannelsLast);
  call.stride = image_stride(image);
  call.offset = (image.size(1) - call.channels) * call.stride.channel;
  return call;
}

}  // namespace uf::bindings
