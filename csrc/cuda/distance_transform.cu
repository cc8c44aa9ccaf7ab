// The scan of distance_scan.cu, then the other axes (volumes: the middle and the last one), looking to both sides as in
// distance_search.h. The steps of a volume's scan lie in the memory of its result, which is free until the last pass.
//
// Bytes moved by a pass: 2 (costs of a volume: 4, or 8 in float64) a pixel read, twice where lines are longer than 128, and 4
// written. Limit: the bytes of all passes / copy bandwidth where zeros are dense, the loads of the search where they are
// far.
#include "cuda/distance_transform.h"

#include "cuda/distance_scan.h"
#include "cuda/distance_search.h"

namespace uf::cuda {
namespace {

template <class Cost, class Stored, class Costs>
__global__ void __launch_bounds__(kSearchThreads)
    middle_kernel(const OnePlane<Cost, Stored, Costs> plane, const int64_t pixels, const int32_t length,
                  const int64_t stride, Cost* out) {
  const int64_t at = pixel_of_thread();
  if (at < pixels) out[at] = search(plane, LinePixel(at, length, stride));
}

template <class Cost, class Stored, class Costs>
__global__ void __launch_bounds__(kSearchThreads)
    last_kernel(const OnePlane<Cost, Stored, Costs> plane, const int64_t pixels, const int32_t length, const double scale,
                float* out) {
  const int64_t at = pixel_of_thread();
  if (at < pixels) out[at] = distance_of(search(plane, LinePixel(at, length, 1)), scale);
}

// The memory besides the result.
template <class Cost, class Steps>
struct Memory {
  Steps* steps = nullptr;  // of the scan of images
  Cost* middle = nullptr;  // the costs of volumes
  Cost* blocks;            // of one pass after the other
  void* scan;
  int64_t bytes;

  Memory(const DistanceGrid& grid, void* memory) {
    Workspace workspace(memory);
    const int64_t count = grid.batch * grid.pixels();
    if (grid.middle > 1)
      middle = workspace.take<Cost>(count);
    else
      steps = workspace.take<Steps>(count);
    blocks = workspace.take<Cost>(std::max(blocks_of_lines(count, grid.last), blocks_of_lines(count, grid.middle)));
    scan = workspace.take<char>(scan_workspace(grid));
    bytes = workspace.bytes();
  }
};

template <class Cost, class Stored, class Costs>
cudaError_t run_last(const DistanceGrid& grid, OnePlane<Cost, Stored, Costs> plane, Cost* blocks, float* out,
                     cudaStream_t stream) {
  const int64_t pixels = grid.batch * grid.pixels();
  const cudaError_t error = keep_blocks(plane, pixels, grid.last, 1, blocks, stream);
  if (error != cudaSuccess) return error;
  return launch(last_kernel<Cost, Stored, Costs>, ceil_div(pixels, kSearchThreads), kSearchThreads, stream, plane, pixels,
                static_cast<int32_t>(grid.last), grid.scale(), out);
}

template <class Cost, class Steps>
cudaError_t run(const DistanceGrid& grid, const void* mask, const MaskElement& element, float* out, void* workspace,
                cudaStream_t stream) {
  const Memory<Cost, Steps> memory(grid, workspace);
  const bool volume = grid.middle > 1;
  Steps* steps = volume ? reinterpret_cast<Steps*>(out) : memory.steps;
  cudaError_t error = scan_zeros(grid, mask, element, steps, memory.scan, stream);
  if (error != cudaSuccess) return error;

  const StepCosts<Cost> costs = {Axis<Cost>(grid.scan_weight()), kNone<Steps>};
  const Axis<Cost> middle(grid.middle_weight()), last(grid.last_weight());
  if (!volume) return run_last<Cost, Steps, StepCosts<Cost>>(grid, {steps, last, costs}, memory.blocks, out, stream);
  OnePlane<Cost, Steps, StepCosts<Cost>> plane = {steps, middle, costs};
  const int64_t pixels = grid.batch * grid.pixels();
  error = keep_blocks(plane, pixels, grid.middle, grid.last, memory.blocks, stream);
  if (error != cudaSuccess) return error;
  error = launch(middle_kernel<Cost, Steps, StepCosts<Cost>>, ceil_div(pixels, kSearchThreads), kSearchThreads, stream,
                 plane, pixels, static_cast<int32_t>(grid.middle), grid.last, memory.middle);
  if (error != cudaSuccess) return error;
  return run_last<Cost, Cost, ReadyCosts<Cost>>(grid, {memory.middle, last, {}}, memory.blocks, out, stream);
}

}  // namespace

int64_t distance_transform_workspace(const DistanceGrid& grid) {
  return with_types(grid, [&](auto cost, auto steps) { return Memory<decltype(cost), decltype(steps)>(grid, nullptr).bytes; });
}

cudaError_t distance_transform(const DistanceGrid& grid, const void* mask, const MaskElement& element, float* out,
                               void* workspace, cudaStream_t stream) {
  if (grid.batch * grid.pixels() == 0) return cudaSuccess;
  return with_types(grid, [&](auto cost, auto steps) {
    return run<decltype(cost), decltype(steps)>(grid, mask, element, out, workspace, stream);
  });
}

}  // namespace uf::cuda
