// y = relu(conv3x3(x) + bias) of an image of one to four channels, channels-last, and the gradients of its weights, on a
// stream: the first layer of a network, of which cuDNN makes tensor-core work by padding the channels to eight.
#pragma once

#include <cuda_runtime.h>

#include "common/dtype.h"

namespace uf::cuda {

struct FewChannels {
  int64_t batch, channels, height, width;  // of the image
  int64_t features, padding;               // channels of the output; zeros around the image
  int64_t stride[4];                       // of the image, in elements

  int64_t out_height() const { return height + 2 * padding - 2; }
  int64_t out_width() const { return width + 2 * padding - 2; }
  int64_t pixels() const { return batch * out_height() * out_width(); }
};

// Whether the kernels take it: sums in float32, whole vectors of features, indices of 31 bits. The rest is cuDNN's. So are
// the gradients in 16 bits but for those of one channel: its tensor cores are faster there (conv_few_channels.cu).
bool fits_few_channels(const FewChannels& shape, DType type);
bool fits_few_channels_backward(const FewChannels& shape, DType type);

// out (pixels, features), 16-byte aligned. weight (features, channels, 3, 3) with these strides; bias (features) float or null.
cudaError_t conv_few_channels(const FewChannels& shape, DType type, const void* x, const void* weight,
                              const int64_t weight_stride[4], const void* bias, void* out, cudaStream_t stream);

// grad and out (pixels, features), 16-byte aligned. grad_weight (features, 3, 3, channels); grad_bias (features) float or null.
// Workspace: conv_few_channels_workspace(...) doubles.
cudaError_t conv_few_channels_backward(const FewChannels& shape, DType type, const void* grad, const void* out,
                                       const void* x, void* grad_weight, void* grad_bias, double* workspace,
                                       cudaStream_t stream);

int64_t conv_few_channels_workspace(const FewChannels& shape, DType type);

}  // namespace uf::cuda
