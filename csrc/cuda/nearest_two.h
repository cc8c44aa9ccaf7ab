// Exact Euclidean distances to the nearest and to the second nearest distinct instance, on a stream.
#pragma once

#include <cuda_runtime.h>

#include "common/distance_grid.h"

namespace uf::cuda {

// Bytes: 8 a pixel for images (12 where they are higher than 65,535); for volumes 16, or 24 where squared distances are no
// integers; less than one more for what long lines need.
int64_t nearest_two_workspace(const DistanceGrid& grid);

// d1, d2 <- labels, all of the shape of the grid; 0 is background. Distances in units of the spacing, infinite where
// there is no such instance; NaN where the nearest label is negative or beyond int32. `workspace` is aligned to 16 bytes.
cudaError_t nearest_two(const DistanceGrid& grid, const void* labels, DType type, float* d1, float* d2, void* workspace,
                        cudaStream_t stream);

}  // namespace uf::cuda
