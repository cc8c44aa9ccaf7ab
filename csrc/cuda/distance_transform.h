// Exact Euclidean distance from every pixel to the nearest zero, on a stream.
#pragma once

#include <cuda_runtime.h>

#include "common/distance_grid.h"

namespace uf::cuda {

// Bytes: 2 a pixel for images (4 where they are higher than 65,535); for volumes 4, or 8 where squared distances are no
// integers; less than one more for what long lines need.
int64_t distance_transform_workspace(const DistanceGrid& grid);

// out <- mask, both of the shape of the grid. Distances in units of the spacing, infinite where there is no zero.
// `workspace` is aligned to 16 bytes.
cudaError_t distance_transform(const DistanceGrid& grid, const void* mask, const MaskElement& element, float* out,
                               void* workspace, cudaStream_t stream);

}  // namespace uf::cuda
