// The U-Net's pixel-wise loss weight: class balance plus emphasis on the gaps between neighbouring cells.
#pragma once

#include "cpu/distance_grid.h"
#include "cpu/parallel.h"

namespace uf {

struct WeightMapOptions {
  double w0;
  double sigma;       // pixels
  bool inside;        // the border term also counts on the pixels of cells
  bool balanced;      // class weights from the class frequencies of each image, instead of the two below
  float class_weights[2];  // background, cells
};

// out <- labels, both of the shape of the grid (images); 0 is background. d1 and d2 live only line by line.
// Workspace: 12 bytes a pixel of the images at once.
BadLabel weight_map(const DistanceGrid& grid, const void* labels, DType type, const WeightMapOptions& options, float* out,
                const Parallel& parallel);

}  // namespace uf
