// The scan of distance_scan.cu, then the other axes (volumes: the middle and the last one), looking to both sides as in
// distance_search.h. The steps of a volume's scan lie in the memory of its result, which is free until the last pass.
//
// Bytes moved by a pass: 4 a pixel read and 4 written (8 for float64 costs). Limit: the bytes of all passes / copy
// bandwidth where zeros are dense, the loads of the search where they are far.
#include "cuda/distance_transform.h"

#include "cuda/distance_scan.h"
#include "cuda/distance_search.h"

namespace uf::cuda {
namespace {

// The least cost of the line.
template <class Cost, class Stored, class Costs>
__device__ Cost search_one(const Stored* cost, const Axis<Cost>& axis, const Costs& costs, const LinePixel& pixel) {
  Cost nearest = costs(cost[pixel.at]);
  const auto look = [&](int64_t at, Cost distance) {
    const Cost there = axis.further(costs(cost[at]), distance);
    nearest = there < nearest ? there : nearest;
  };
  const int32_t longest = pixel.longest();
  for (int32_t k = 1; k <= longest; ++k) {
    const Cost distance = axis.square(k);
    if (!(distance < nearest)) break;
    if (k <= pixel.before) look(pixel.at - k * pixel.stride, distance);
    if (k <= pixel.behind) look(pixel.at + k * pixel.stride, distance);
  }
  return nearest;
}

template <class Cost>
__global__ void __launch_bounds__(kSearchThreads)
    middle_kernel(const int32_t* steps, const Axis<Cost> axis, const StepCosts<Cost> costs, const int64_t pixels,
                  const int32_t length, const int64_t stride, Cost* out) {
  const int64_t at = pixel_of_thread();
  if (at < pixels) out[at] = search_one(steps, axis, costs, LinePixel(at, length, stride));
}

template <class Cost, class Stored, class Costs>
__global__ void __launch_bounds__(kSearchThreads)
    last_kernel(const Stored* cost, const Axis<Cost> axis, const Costs costs, const int64_t pixels, const int32_t length,
                const double scale, float* out) {
  const int64_t at = pixel_of_thread();
  if (at < pixels) out[at] = distance_of(search_one(cost, axis, costs, LinePixel(at, length, 1)), scale);
}

template <class Cost>
cudaError_t run(const DistanceGrid& grid, const void* mask, const MaskElement& element, float* out, void* workspace,
                cudaStream_t stream) {
  const bool volume = grid.middle > 1;
  int32_t* steps = volume ? reinterpret_cast<int32_t*>(out) : static_cast<int32_t*>(workspace);
  cudaError_t error = scan_zeros(grid, mask, element, steps, stream);
  if (error != cudaSuccess) return error;

  const StepCosts<Cost> costs = {Axis<Cost>(grid.scan_weight()), kNoSteps};
  const Axis<Cost> middle(grid.middle_weight()), last(grid.last_weight());
  const int64_t pixels = grid.batch * grid.pixels(), blocks = ceil_div(pixels, kSearchThreads);
  const auto length = static_cast<int32_t>(grid.last);
  if (!volume) {
    return launch(last_kernel<Cost, int32_t, StepCosts<Cost>>, blocks, kSearchThreads, stream, steps, last, costs, pixels,
                  length, grid.scale(), out);
  }
  Cost* between = static_cast<Cost*>(workspace);
  error = launch(middle_kernel<Cost>, blocks, kSearchThreads, stream, steps, middle, costs, pixels,
                 static_cast<int32_t>(grid.middle), grid.last, between);
  if (error != cudaSuccess) return error;
  return launch(last_kernel<Cost, Cost, ReadyCosts<Cost>>, blocks, kSearchThreads, stream, between, last,
                ReadyCosts<Cost>{}, pixels, length, grid.scale(), out);
}

}  // namespace

int64_t distance_transform_workspace(const DistanceGrid& grid) {
  const bool wide = grid.middle > 1 && !grid.integral();
  return grid.batch * grid.pixels() * static_cast<int64_t>(wide ? sizeof(double) : sizeof(int32_t));
}

cudaError_t distance_transform(const DistanceGrid& grid, const void* mask, const MaskElement& element, float* out,
                               void* workspace, cudaStream_t stream) {
  if (grid.batch * grid.pixels() == 0) return cudaSuccess;
  return grid.integral() ? run<int32_t>(grid, mask, element, out, workspace, stream)
                         : run<double>(grid, mask, element, out, workspace, stream);
}

}  // namespace uf::cuda
