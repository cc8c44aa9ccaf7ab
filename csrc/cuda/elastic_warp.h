// Warp of images by an elastic field and an affine matrix, and its gradient, on a stream: see common/warp_types.h.
#pragma once

#include <cuda_runtime.h>

#include "common/warp_types.h"

namespace uf::cuda {

// Bytes, aligned to 8: the coefficients of Field::kBSpline, 16 for each control point; no other field needs any.
int64_t elastic_warp_workspace(const WarpFrame& frame);

// All pointers are on the device. One launch for each eight images, one more for the coefficients of Field::kBSpline.
cudaError_t elastic_warp(const WarpFrame& frame, const WarpImage* images, int count, void* workspace,
                         cudaStream_t stream);

// Each gradient is float64 with WarpFrame::wide, else float32.
struct WarpGradientImage {
  const void* grad_output;  // (N, C, out_height, out_width), any strides (in elements)
  int64_t channels, stride[4], out_height, out_width;
  void* grad_input;  // (N, C, H, W), contiguous, overwritten
  Interpolation interpolation;
};

// Bytes, aligned to 8: as above, and if `deterministic` 8 for each pixel of the gradients and 8 for each channel of a sample.
int64_t elastic_warp_backward_workspace(const WarpFrame& frame, const WarpGradientImage* images, int count,
                                        bool deterministic);

// Sums in the order in which the atomic additions happen, or, if `deterministic`, sums of whole numbers, which have no order:
// they are right to 2^-40 of the largest gradient of the sample and channel, and NaN where a gradient is not finite.
cudaError_t elastic_warp_backward(const WarpFrame& frame, const WarpGradientImage* images, int count, bool deterministic,
                                  void* workspace, cudaStream_t stream);

}  // namespace uf::cuda
