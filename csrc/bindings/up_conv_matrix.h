// The operands of a transposed convolution as matrices, for torch's matrix product on every device.
#pragma once

#include "bindings/junction_call.h"
#include "common/up_conv_types.h"

namespace uf::bindings {

// A matrix, or equal ones a step apart, in the memory of a tensor.
struct Matrix {
  const Tensor& storage;
  int64_t rows, columns, row_stride, column_stride, offset = 0;

  Matrix transposed() const { return {storage, columns, rows, column_stride, row_stride, offset}; }
  Tensor view() const { return view_of({rows, columns}, {row_stride, column_stride}); }
  Tensor batch(int64_t count, int64_t step) const {
    return view_of({count, rows, columns}, {step, row_stride, column_stride});
  }

 private:
  Tensor view_of(const std::vector<int64_t>& size, const std::vector<int64_t>& stride) const {
    char* data = static_cast<char*>(const_cast<void*>(storage.const_data_ptr()));
    return torch::stable::from_blob(data + offset * static_cast<int64_t>(storage.element_size()), size, stride,
                                    storage.device(), storage.scalar_type());
  }
};

inline UpConvShape shape_of(const UpConvCall& call) {
  return {call.batch, call.channels, call.height, call.width, call.channels_last};
}

inline char* first_channel(const UpConvCall& call, const Tensor& image) {
  return static_cast<char*>(const_cast<void*>(image.const_data_ptr())) +
         call.offset * static_cast<int64_t>(image.element_size());
}

// (C_in, 4 C); the rows of a product of one pixel, or of one channel of an image, are its columns.
inline Matrix weight_matrix(const UpConvCall& call, const Tensor& weight) {
  return {weight, call.in_channels, 4 * call.channels, 4 * call.channels, 1};
}

// Image n of a dense planar (N, channels, pixels).
inline Matrix plane_matrix(const Tensor& tensor, int64_t n, int64_t channels, int64_t pixels) {
  return {tensor, channels, pixels, pixels, 1, n * channels * pixels};
}

}  // namespace uf::bindings
