// Exact Euclidean distance from every pixel to the nearest zero.
#pragma once

#include "cpu/distance_grid.h"
#include "cpu/parallel.h"

namespace uf {

// out <- mask, both of the shape of the grid. Distances in units of the spacing, infinite where there is no zero.
// Workspace: 4 bytes a pixel of the images at once (images), 8 or 12 (volumes).
void distance_transform(const DistanceGrid& grid, const void* mask, const MaskElement& element, float* out,
                        const Parallel& parallel);

}  // namespace uf
