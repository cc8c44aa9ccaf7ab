// First pass of the distance kernels on the GPU: what every pixel knows of its line along the first axis.
#pragma once

#include <cuda_runtime.h>

#include "common/distance_grid.h"

namespace uf::cuda {

// Stands for every label that is none (negative, or beyond int32), since a GPU cannot raise without being waited for.
constexpr int32_t kBadLabel = -1;

// One value a pixel each: the nearest label of the line (0: none), the steps to it and to the nearest other label
// (kNoSteps or more: none).
struct LabelPlanes {
  int32_t* label;
  int32_t* steps1;
  int32_t* steps2;
};

// Blocks that scan one image or volume.
int64_t scan_blocks(const DistanceGrid& grid);

// Fills the planes. `cells`, unless null, gets the labelled pixels of every block, scan_blocks(grid) numbers an image.
cudaError_t scan_labels(const DistanceGrid& grid, const void* labels, Element type, const LabelPlanes& planes,
                        int32_t* cells, cudaStream_t stream);

// steps <- the steps to the nearest zero of the line.
cudaError_t scan_zeros(const DistanceGrid& grid, const void* mask, const MaskElement& element, int32_t* steps,
                       cudaStream_t stream);

}  // namespace uf::cuda
