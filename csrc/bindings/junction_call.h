// From tensors to the shapes, strides and outputs of the fused junctions, for the kernels of every device.
#pragma once

#include <string>

#include "bindings/torch_common.h"
#include "common/cross_entropy_types.h"
#include "common/junction_types.h"

namespace uf::bindings {

inline FloatType element_type(const Tensor& tensor, const char* op) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return FloatType::kFloat64;
    case ScalarType::Float: return FloatType::kFloat32;
    case ScalarType::Half: return FloatType::kFloat16;
    case ScalarType::BFloat16: return FloatType::kBFloat16;
    default: STD_TORCH_CHECK(false, op, ": tensors must be float64, float32, float16 or bfloat16");
  }
}

// The dtype of biases and of their gradients.
inline ScalarType wide_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline MemoryFormat format_of_layout(bool channels_last, int64_t dims = 4) {
  return channels_last ? channels_last_format(dims) : MemoryFormat::Contiguous;
}

// The dense layout that is nearest to a tensor's.
inline MemoryFormat layout_of(const Tensor& tensor) { return format_of_layout(is_channels_last(tensor), tensor.dim()); }

inline BiasReluShape bias_relu_shape(const Tensor& dense) {
  int64_t pixels = 1;
  for (int64_t d = 2; d < dense.dim(); ++d) pixels *= dense.size(d);
  return {dense.size(0), dense.size(1), pixels, is_channels_last(dense)};
}

// The tensor itself where it steps by one element along the innermost dimension of the layout, else a copy that does.
inline Tensor innermost_dense_image(const Tensor& tensor, bool channels_last) {
  const int64_t dim = channels_last ? 1 : tensor.dim() - 1;
  if (tensor.size(dim) <= 1 || tensor.stride(dim) == 1) return tensor;
  return torch::stable::contiguous(tensor, format_of_layout(channels_last, tensor.dim()));
}

inline ImageStride image_stride(const Tensor& image) {
  return {image.stride(0), image.stride(1), image.stride(2), image.stride(3)};
}

// A bias of C wide numbers, dense; nothing where none was given.
inline std::optional<Tensor> dense_bias(const std::optional<Tensor>& bias, const Tensor& x, int64_t channels,
                                        const char* op) {
  if (!bias.has_value()) return std::nullopt;
  STD_TORCH_CHECK(bias->scalar_type() == wide_type(x) && bias->numel() == channels, op, ": bias must hold ", channels,
                  " float32 numbers (float64 for float64 images)");
  return torch::stable::contiguous(*bias);
}

inline const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

struct ReluPoolSkipCall {
  ReluPoolSkipShape shape;
  FloatType type;
  Tensor x, pooled, buffer, code;
  std::optional<Tensor> bias;
};

inline ReluPoolSkipCall relu_pool_skip_call(const Tensor& x, const std::optional<Tensor>& bias,
                                            const std::vector<int64_t>& skip_size, int64_t up_channels,
                                            bool want_code) {
  ReluPoolSkipCall call;
  const bool last = is_channels_last(x);
  const MemoryFormat format = format_of_layout(last);
  call.type = element_type(x, "relu_pool_skip");
  call.x = innermost_dense_image(x, last);
  call.bias = dense_bias(bias, x, x.size(1), "relu_pool_skip");
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
  FloatType type;
  std::optional<Tensor> grad_pooled, grad_buffer;
  ImageStride pooled_stride = {}, buffer_stride = {};
  Tensor code, grad_x;
};

inline ReluPoolSkipBackwardCall relu_pool_skip_backward_call(const Tensor& code,
                                                             const std::optional<Tensor>& grad_pooled,
                                                             const std::optional<Tensor>& grad_buffer,
                                                             const std::vector<int64_t>& size) {
  STD_TORCH_CHECK(grad_pooled.has_value() || grad_buffer.has_value(), "relu_pool_skip_backward: no gradient was given");
  ReluPoolSkipBackwardCall call;
  const Tensor& like = grad_pooled.has_value() ? *grad_pooled : *grad_buffer;
  const bool last = is_channels_last(code);
  call.type = element_type(like, "relu_pool_skip_backward");
  call.code = torch::stable::contiguous(code, format_of_layout(last));
  call.shape = {code.size(0), code.size(1), size[0], size[1], 0, 0, 0, last};
  if (grad_pooled.has_value()) {
    call.grad_pooled = innermost_dense_image(*grad_pooled, last);
    call.pooled_stride = image_stride(*call.grad_pooled);
  }
  if (grad_buffer.has_value()) {
    STD_TORCH_CHECK(grad_buffer->scalar_type() == like.scalar_type(),
                    "relu_pool_skip_backward: both gradients must have the same dtype");
    call.grad_buffer = innermost_dense_image(*grad_buffer, last);
    call.buffer_stride = image_stride(*call.grad_buffer);
    call.shape.skip_height = grad_buffer->size(2);
    call.shape.skip_width = grad_buffer->size(3);
    call.shape.buffer_channels = grad_buffer->size(1);
  }
  call.grad_x = new_tensor(like, {code.size(0), code.size(1), size[0], size[1]}, std::nullopt, format_of_layout(last));
  return call;
}

// 2x2, stride-2 transposed convolution of x (N, C_in, h, w) with weight (C_in, C, 2, 2) into the last C channels of
// image (N, ..., 2h, 2w), in whose layout all the work is done.
struct UpConvCall {
  FloatType type;
  bool channels_last;
  int64_t batch, in_channels, channels, height, width;
  Tensor x, weight;  // dense; the weight as (C_in, 2, 2, C), so a matrix of C_in rows
  ImageStride stride;
  int64_t offset;    // of the first element of those channels, in the image

  int64_t pixels() const { return height * width; }
};

inline UpConvCall up_conv_call(const Tensor& x, const Tensor& weight, const Tensor& image, const char* op) {
  UpConvCall call;
  call.type = element_type(image, op);
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
  call.x = torch::stable::contiguous(x, format_of_layout(call.channels_last));
  call.weight = torch::stable::contiguous(weight, MemoryFormat::ChannelsLast);
  call.stride = image_stride(image);
  call.offset = (image.size(1) - call.channels) * call.stride.channel;
  return call;
}

}  // namespace uf::bindings
