// Warp of images by an elastic field and an affine matrix: what is computed stands in common/warp_types.h.
#pragma once

#include <cstdint>

#include "common/warp_types.h"
#include "cpu/parallel.h"

namespace uf {

void elastic_warp(const WarpFrame& frame, const WarpImage* images, int count, const Parallel& parallel);

// Gradients of the inputs. Each is float64 with WarpFrame::wide, else float32, and so is the gradient of its output.
// The order of the sums does not depend on the number of threads.
struct WarpGradient {
  const void* grad_output;  // (N, C, out_height, out_width), contiguous
  int64_t channels, out_height, out_width;
  void* grad_input;  // (N, C, H, W), contiguous, overwritten
  Interpolation interpolation;
};

void elastic_warp_backward(const WarpFrame& frame, const WarpGradient* gradients, int count, const Parallel& parallel);

}  // namespace uf
