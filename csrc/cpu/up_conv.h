// What surrounds the matrix products of a 2x2, stride-2 transposed convolution: the scatter of its output into a part of
// the channels of an image, and the gather of the gradient from there.
#pragma once

#include "common/cross_entropy_types.h"
#include "common/junction_types.h"
#include "common/up_conv_types.h"
#include "cpu/parallel.h"

namespace uf {

// The product is (N, y, x, 2, 2, C) for channels last and (N, 2, 2, C, y, x) for planar, dense.
//
// image[n, c, 2y + dy, 2x + dx] = product[n, y, x, dy, dx, c] + bias[c]; bias is wide or null
void up_conv_scatter(const UpConvShape& shape, DType type, const void* product, const void* bias, void* image,
                     const ImageStride& stride, const Parallel& parallel);

// The other way round; grad_bias (C), the sum over all pixels, is double, or null.
// Workspace: up_conv_parts(shape) * C doubles for grad_bias.
void up_conv_gather(const UpConvShape& shape, DType type, const void* image, const ImageStride& stride,
                    void* product, double* grad_bias, double* workspace, const Parallel& parallel);

int64_t up_conv_parts(const UpConvShape& shape);

}  // namespace uf
