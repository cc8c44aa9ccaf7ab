// Exact Euclidean distances from every pixel to the nearest and to the second nearest distinct instance.
#pragma once

#include "cpu/distance_grid.h"
#include "cpu/parallel.h"

namespace uf {

// d1, d2 <- labels, all of the shape of the grid; 0 is background. Distances in units of the spacing, infinite where
// there is no such instance. Workspace: 12 bytes a pixel of the images at once (images), 16 to 32 (volumes).
BadLabel nearest_two(const DistanceGrid& grid, const void* labels, DType type, float* d1, float* d2,
                 const Parallel& parallel);

}  // namespace uf
