// The U-Net's pixel-wise loss weight, on a stream: class balance plus emphasis on the gaps between neighbouring cells.
#pragma once

#include <cuda_runtime.h>

#include "common/distance_grid.h"

namespace uf::cuda {

struct WeightMapOptions {
  double w0;
  double sigma;                // pixels
  bool inside;                 // the border term also counts on the pixels of cells
  bool balanced;               // class weights from the class frequencies of each image
  const float* class_weights;  // else background, cells, on the device; null: both are 1
};

// Bytes: 8 a pixel (12 where images are higher than 65,535), less than one more for high images; balanced weights take 4 more
// for every block of the scan, and 8 an image.
int64_t weight_map_workspace(const DistanceGrid& grid, const WeightMapOptions& options);

// out <- labels, both of the shape of the grid (images); 0 is background. d1 and d2 live in registers only. NaN where
// the nearest label is negative or beyond int32. `workspace` is aligned to 16 bytes.
cudaError_t weight_map(const DistanceGrid& grid, const void* labels, DType type, const WeightMapOptions& options,
                       float* out, void* workspace, cudaStream_t stream);

}  // namespace uf::cuda
