// The passes along the other axes on the GPU. A thread takes one pixel and looks at the pixels of its line on both sides in
// turn, until the next one is farther away than what the pixel already knows: nothing left out could change the result.
// That is a few steps a pixel in images full of cells and at worst as many as the line is long, unlike on the CPU, whose
// lower envelopes work one pixel after the other: on a GPU even that is soon done (512 x 512 pixels without any cell are
// 270 million loads from the L1 cache).
//
// Threads of a warp have pixels side by side and look equally far, so along every axis their loads are of consecutive
// elements; neighbouring warps find in the caches what they load. Small blocks end soon and make room for others: a block
// holds its registers until its last pixel is done.
#pragma once

#include <cmath>

#include "common/distance_grid.h"
#include "common/two_nearest.h"
#include "cuda/launch.h"

namespace uf::cuda {

constexpr int kSearchThreads = 128;

// The steps of the scan as costs; far from `limit` steps on.
template <class Cost>
struct StepCosts {
  Axis<Cost> axis;
  int32_t limit;
  __device__ Cost operator()(int32_t steps) const {
    return steps < limit ? axis.square(steps) : Axis<Cost>::far;
  }
};

// Costs of an earlier pass, as they are.
template <class Cost>
struct ReadyCosts {
  __device__ Cost operator()(Cost cost) const { return cost; }
};

// One pixel of a line. Lines lie `stride` pixels apart from one of their pixels to the next.
struct LinePixel {
  int64_t at;
  int64_t stride;
  int32_t before, behind;  // pixels of the line on either side

  __device__ LinePixel(int64_t pixel, int32_t length, int64_t step) : at(pixel), stride(step) {
    before = static_cast<int32_t>(pixel / step % length);
    behind = length - 1 - before;
  }

  __device__ int32_t longest() const { return before > behind ? before : behind; }
};

// The pixel of a thread; may lie beyond the last one.
__device__ inline int64_t pixel_of_thread() { return int64_t{blockIdx.x} * kSearchThreads + threadIdx.x; }

template <class Cost, class Stored, class Costs>
struct TwoPlanes {
  const Stored* cost1;
  const Stored* cost2;
  const int32_t* label;
  Axis<Cost> axis;
  Costs costs;

  __device__ NearestTwo<Cost> own(int64_t at) const { return {costs(cost1[at]), label[at], costs(cost2[at])}; }

  __device__ void look(int64_t at, Cost distance, NearestTwo<Cost>& two) const {
    const Cost c1 = axis.further(costs(cost1[at]), distance);
    if (!(c1 < two.d2)) return;  // can change nothing: the rest need not be loaded
    two.offer(c1, label[at], axis.further(costs(cost2[at]), distance));
  }
};

// The two nearest distinct labels of the line, up to `furthest` steps away; enough(two, k) ends it before step k.
template <class Cost, class Stored, class Costs, class Enough>
__device__ NearestTwo<Cost> search_two(const TwoPlanes<Cost, Stored, Costs>& planes, const LinePixel& pixel,
                                       int32_t furthest, const Enough& enough) {
  NearestTwo<Cost> two = planes.own(pixel.at);
  const int32_t longest = pixel.longest();
  furthest = furthest < longest ? furthest : longest;
  for (int32_t k = 1; k <= furthest; ++k) {
    const Cost distance = planes.axis.square(k);
    if (!(distance < two.d2) || enough(two, k)) break;
    if (k <= pixel.before) planes.look(pixel.at - k * pixel.stride, distance, two);
    if (k <= pixel.behind) planes.look(pixel.at + k * pixel.stride, distance, two);
  }
  return two;
}

// In double, so that the root of an exact square is the float32 nearest to the true distance.
template <class Cost>
__device__ float distance_of(Cost squared, double scale) {
  return squared < Axis<Cost>::far ? static_cast<float>(std::sqrt(static_cast<double>(squared)) * scale) : INFINITY;
}

// Memory handed out piece by piece; every piece begins at a multiple of 16 bytes. Without memory it only counts.
class Workspace {
 public:
  explicit Workspace(void* memory = nullptr) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    char* piece = memory_ ? memory_ + used_ : nullptr;
    used_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), kVectorBytes) * kVectorBytes;
    return reinterpret_cast<T*>(piece);
  }

  int64_t bytes() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

}  // namespace uf::cuda
