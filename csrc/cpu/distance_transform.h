// Exact Euclidean distance from every pixel to the nearest zero.
#pragma once

#include "cpu/distance_grid.h"
#include "cpu/parallel.h"

namespace uf {

// How a mask is stored: the bytes of an element, and whether it is a floating-point number (whose -0 is a zero too).
struct MaskElement {
  int64_t bytes;
  bool floating;
};

// out <- mask, both of the shape of the grid. Distances in units of the spacing, infinite where there is no zero.
// Workspace: 4 bytes a pixel of the images at once (images), 8 or 12 (volumes).
void distance_transform(const DistanceGrid& grid, const void* mask, const MaskElement& element, float* out,
                        const Parallel& parallel);

}  // namespace uf
