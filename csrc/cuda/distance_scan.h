// First pass of the distance kernels on the GPU: what every pixel knows of its line along the first axis.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "common/distance_grid.h"
#include "common/two_nearest.h"

namespace uf::cuda {

// Stands for every label that is none (negative, or beyond int32), since a GPU cannot raise without being waited for.
constexpr int32_t kBadLabel = -1;

// Steps are stored in 16 bits where lines are short enough, as lines of images are.
using ShortSteps = uint16_t;
using LongSteps = int32_t;

// The steps to what is not there; more than any line is long.
template <class Steps>
constexpr int32_t kNone = std::is_same_v<Steps, ShortSteps> ? 0xffff : kNoSteps;

inline bool has_short_steps(const DistanceGrid& grid) { return grid.scan <= kNone<ShortSteps>; }

// One value a pixel each: the nearest label of the line (0: none), the steps to it and to the nearest other label.
template <class Steps>
struct LabelPlanes {
  int32_t* label;
  Steps* steps1;
  Steps* steps2;
};

// Blocks that scan one image or volume.
int64_t scan_blocks(const DistanceGrid& grid);

// Bytes of workspace; none for lines of up to 512 pixels, else a sixteenth of a byte a pixel.
int64_t scan_workspace(const DistanceGrid& grid);

// Fills the planes. `cells`, unless null, gets the labelled pixels of every block, scan_blocks(grid) numbers an image.
template <class Steps>
cudaError_t scan_labels(const DistanceGrid& grid, const void* labels, DType type, const LabelPlanes<Steps>& planes,
                        int32_t* cells, void* workspace, cudaStream_t stream);

// steps <- the steps to the nearest zero of the line.
template <class Steps>
cudaError_t scan_zeros(const DistanceGrid& grid, const void* mask, const MaskElement& element, Steps* steps,
                       void* workspace, cudaStream_t stream);

}  // namespace uf::cuda
