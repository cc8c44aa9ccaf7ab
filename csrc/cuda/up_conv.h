// What surrounds the matrix products of a 2x2, stride-2 transposed convolution, on a stream: the scatter of the product
// into a part of the channels of an image, and the gather of the gradient from there.
#pragma once

#include <cuda_runtime.h>

#include "common/cross_entropy_types.h"
#include "common/junction_types.h"
#include "common/up_conv_types.h"

namespace uf::cuda {

// The product is (N, y, x, 2, 2, C) for channels last and (2, 2, C, N, y, x) for planar, dense: either way one matrix of
// all pixels of all images. The image steps by one element along the innermost dimension of its layout.
//
// image[n, c, 2y + dy, 2x + dx] = product of n, y, x, dy, dx, c, plus bias[c]; bias is wide or null
cudaError_t up_conv_scatter(const UpConvShape& shape, DType type, const void* product, const void* bias, void* image,
                            const ImageStride& stride, cudaStream_t stream);

// Doubles of workspace for grad_bias.
int64_t up_conv_workspace(const UpConvShape& shape, DType type, const void* image, const ImageStride& stride,
                          const void* product);

// The other way round; grad_bias (C) wide, the sum over all pixels, the same to the last bit in every run, or null.
cudaError_t up_conv_gather(const UpConvShape& shape, DType type, const void* image, const ImageStride& stride,
                           void* product, void* grad_bias, double* workspace, cudaStream_t stream);

}  // namespace uf::cuda
