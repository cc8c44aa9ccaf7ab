// The scan of distance_scan.cu, then the other axes (volumes: the middle and the last one) as in distance_search.h. The
// steps of a volume's scan lie in the memory of its result, which is free until the last pass.
//
// Bytes moved by a pass: 8 a pixel read (costs of a volume: 12, or 20 in float64), twice where lines are longer than 128, and
// 8 written, 12 (20) by the middle pass of a volume. Limit: the bytes of all passes / copy bandwidth where cells are dense,
// the loads of the search where they are not.
#include "cuda/nearest_two.h"

#include "cuda/distance_scan.h"
#include "cuda/distance_search.h"

namespace uf::cuda {
namespace {

template <class Cost, class Steps>
__global__ void __launch_bounds__(kSearchThreads)
    middle_kernel(const TwoPlanes<Cost, Steps, StepCosts<Cost>> planes, const int64_t pixels, const int32_t length,
                  const int64_t stride, Cost* cost1, Cost* cost2, int32_t* label) {
  const int64_t at = pixel_of_thread();
  if (at >= pixels) return;
  const NearestTwo<Cost> two = search(planes, LinePixel(at, length, stride));
  cost1[at] = two.d1;
  cost2[at] = two.d2;
  label[at] = two.label;
}

template <class Cost, class Stored, class Costs>
__global__ void __launch_bounds__(kSearchThreads)
    last_kernel(const TwoPlanes<Cost, Stored, Costs> planes, const int64_t pixels, const int32_t length,
                const double scale, float* d1, float* d2) {
  const int64_t at = pixel_of_thread();
  if (at >= pixels) return;
  const NearestTwo<Cost> two = search(planes, LinePixel(at, length, 1));
  const bool bad = two.label == kBadLabel;
  d1[at] = bad ? NAN : distance_of(two.d1, scale);
  d2[at] = bad ? NAN : distance_of(two.d2, scale);
}

// The memory besides the result.
template <class Cost, class Steps>
struct Memory {
  int32_t* label;
  Steps *steps1 = nullptr, *steps2 = nullptr;  // of the scan of images
  Cost *cost1 = nullptr, *cost2 = nullptr;     // of the middle pass
  int32_t* middle_label = nullptr;
  NearestTwo<Cost>* blocks;  // of one pass after the other
  void* scan;
  int64_t bytes;

  Memory(const DistanceGrid& grid, void* memory) {
    Workspace workspace(memory);
    const int64_t count = grid.batch * grid.pixels();
    label = workspace.take<int32_t>(count);
    if (grid.middle > 1) {
      cost1 = workspace.take<Cost>(count);
      cost2 = workspace.take<Cost>(count);
      middle_label = workspace.take<int32_t>(count);
    } else {
      steps1 = workspace.take<Steps>(count);
      steps2 = workspace.take<Steps>(count);
    }
    blocks = workspace.take<NearestTwo<Cost>>(
        std::max(blocks_of_lines(count, grid.last), blocks_of_lines(count, grid.middle)));
    scan = workspace.take<char>(scan_workspace(grid));
    bytes = workspace.bytes();
  }
};

template <class Cost, class Stored, class Costs>
cudaError_t run_last(const DistanceGrid& grid, TwoPlanes<Cost, Stored, Costs> planes, NearestTwo<Cost>* blocks, float* d1,
                     float* d2, cudaStream_t stream) {
  const int64_t pixels = grid.batch * grid.pixels();
  const cudaError_t error = keep_blocks(planes, pixels, grid.last, 1, blocks, stream);
  if (error != cudaSuccess) return error;
  return launch(last_kernel<Cost, Stored, Costs>, ceil_div(pixels, kSearchThreads), kSearchThreads, stream, planes, pixels,
                static_cast<int32_t>(grid.last), grid.scale(), d1, d2);
}

template <class Cost, class Steps>
cudaError_t run(const DistanceGrid& grid, const void* labels, DType type, float* d1, float* d2, void* workspace,
                cudaStream_t stream) {
  const Memory<Cost, Steps> memory(grid, workspace);
  const bool volume = grid.middle > 1;
  const LabelPlanes<Steps> scan = {memory.label, volume ? reinterpret_cast<Steps*>(d1) : memory.steps1,
                                   volume ? reinterpret_cast<Steps*>(d2) : memory.steps2};
  cudaError_t error = scan_labels(grid, labels, type, scan, nullptr, memory.scan, stream);
  if (error != cudaSuccess) return error;

  const StepCosts<Cost> steps = {Axis<Cost>(grid.scan_weight()), kNone<Steps>};
  const Axis<Cost> middle(grid.middle_weight()), last(grid.last_weight());
  if (!volume) {
    return run_last<Cost, Steps, StepCosts<Cost>>(grid, {scan.steps1, scan.steps2, scan.label, last, steps}, memory.blocks,
                                                  d1, d2, stream);
  }
  TwoPlanes<Cost, Steps, StepCosts<Cost>> planes = {scan.steps1, scan.steps2, scan.label, middle, steps};
  const int64_t pixels = grid.batch * grid.pixels();
  error = keep_blocks(planes, pixels, grid.middle, grid.last, memory.blocks, stream);
  if (error != cudaSuccess) return error;
  error = launch(middle_kernel<Cost, Steps>, ceil_div(pixels, kSearchThreads), kSearchThreads, stream, planes, pixels,
                 static_cast<int32_t>(grid.middle), grid.last, memory.cost1, memory.cost2, memory.middle_label);
  if (error != cudaSuccess) return error;
  return run_last<Cost, Cost, ReadyCosts<Cost>>(grid, {memory.cost1, memory.cost2, memory.middle_label, last, {}},
                                                memory.blocks, d1, d2, stream);
}

}  // namespace

int64_t nearest_two_workspace(const DistanceGrid& grid) {
  return with_types(grid, [&](auto cost, auto steps) { return Memory<decltype(cost), decltype(steps)>(grid, nullptr).bytes; });
}

cudaError_t nearest_two(const DistanceGrid& grid, const void* labels, DType type, float* d1, float* d2, void* workspace,
                        cudaStream_t stream) {
  if (grid.batch * grid.pixels() == 0) return cudaSuccess;
  return with_types(grid, [&](auto cost, auto steps) {
    return run<decltype(cost), decltype(steps)>(grid, labels, type, d1, d2, workspace, stream);
  });
}

}  // namespace uf::cuda
