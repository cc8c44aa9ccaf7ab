// First pass of the two-nearest-instances kernels: every pixel learns the two nearest distinct labels of its line.
#pragma once

#include <cstdint>

#include "cpu/distance_grid.h"
#include "cpu/parallel.h"

namespace uf {

// One value a pixel each: the nearest label of the line (0: none), the steps to it and to the nearest other label
// (kNoSteps or more: none), and that label, which only volumes need (else null).
struct LabelPlanes {
  int32_t* label1;
  int32_t* steps1;
  int32_t* steps2;
  int32_t* label2;
};

// Fills the planes of `images` images that follow one another from `labels` on, unless there is a bad label.
BadLabel scan_labels(const DistanceGrid& grid, int64_t images, const void* labels, DType type, const LabelPlanes& planes,
                     const Parallel& parallel);

}  // namespace uf
