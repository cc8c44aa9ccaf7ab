// The scan of distance_scan.cu, then the other axes (volumes: the middle and the last one) as in distance_search.h. The
// steps of a volume's scan lie in the memory of its result, which is free until the last pass.
//
// Bytes moved by a pass: 12 a pixel read (20 for float64 costs) and 8 written, 12 (20) by the middle pass of a volume.
// Limit: the bytes of all passes / copy bandwidth where cells are dense, the loads of the search where they are not.
#include "cuda/nearest_two.h"

#include "cuda/distance_scan.h"
#include "cuda/distance_search.h"

namespace uf::cuda {
namespace {

struct Forever {
  template <class Cost>
  __device__ bool operator()(const NearestTwo<Cost>&, int32_t) const {
    return false;
  }
};

template <class Cost>
__global__ void __launch_bounds__(kSearchThreads)
    middle_kernel(const TwoPlanes<Cost, int32_t, StepCosts<Cost>> planes, const int64_t pixels, const int32_t length,
                  const int64_t stride, Cost* cost1, Cost* cost2, int32_t* label) {
  const int64_t at = pixel_of_thread();
  if (at >= pixels) return;
  const NearestTwo<Cost> two = search_two(planes, LinePixel(at, length, stride), length, Forever{});
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
  const NearestTwo<Cost> two = search_two(planes, LinePixel(at, length, 1), length, Forever{});
  const bool bad = two.label == kBadLabel;
  d1[at] = bad ? NAN : distance_of(two.d1, scale);
  d2[at] = bad ? NAN : distance_of(two.d2, scale);
}

// The memory besides the result.
template <class Cost>
struct Memory {
  int32_t *label, *steps1 = nullptr, *steps2 = nullptr;  // of the scan
  Cost *cost1 = nullptr, *cost2 = nullptr;               // of the middle pass
  int32_t* middle_label = nullptr;
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
      steps1 = workspace.take<int32_t>(count);
      steps2 = workspace.take<int32_t>(count);
    }
    bytes = workspace.bytes();
  }
};

template <class Cost>
cudaError_t run(const DistanceGrid& grid, const void* labels, Element type, float* d1, float* d2, void* workspace,
                cudaStream_t stream) {
  const Memory<Cost> memory(grid, workspace);
  const bool volume = grid.middle > 1;
  const LabelPlanes scan = {memory.label, volume ? reinterpret_cast<int32_t*>(d1) : memory.steps1,
                            volume ? reinterpret_cast<int32_t*>(d2) : memory.steps2};
  cudaError_t error = scan_labels(grid, labels, type, scan, nullptr, stream);
  if (error != cudaSuccess) return error;

  const StepCosts<Cost> steps = {Axis<Cost>(grid.scan_weight()), kNoSteps};
  const Axis<Cost> middle(grid.middle_weight()), last(grid.last_weight());
  const int64_t pixels = grid.batch * grid.pixels(), blocks = ceil_div(pixels, kSearchThreads);
  const auto length = static_cast<int32_t>(grid.last);
  if (!volume) {
    const TwoPlanes<Cost, int32_t, StepCosts<Cost>> planes = {scan.steps1, scan.steps2, scan.label, last, steps};
    return launch(last_kernel<Cost, int32_t, StepCosts<Cost>>, blocks, kSearchThreads, stream, planes, pixels, length,
                  grid.scale(), d1, d2);
  }
  const TwoPlanes<Cost, int32_t, StepCosts<Cost>> planes = {scan.steps1, scan.steps2, scan.label, middle, steps};
  error = launch(middle_kernel<Cost>, blocks, kSearchThreads, stream, planes, pixels, static_cast<int32_t>(grid.middle),
                 grid.last, memory.cost1, memory.cost2, memory.middle_label);
  if (error != cudaSuccess) return error;
  const TwoPlanes<Cost, Cost, ReadyCosts<Cost>> costs = {memory.cost1, memory.cost2, memory.middle_label, last, {}};
  return launch(last_kernel<Cost, Cost, ReadyCosts<Cost>>, blocks, kSearchThreads, stream, costs, pixels, length,
                grid.scale(), d1, d2);
}

}  // namespace

int64_t nearest_two_workspace(const DistanceGrid& grid) {
  return grid.integral() ? Memory<int32_t>(grid, nullptr).bytes : Memory<double>(grid, nullptr).bytes;
}

cudaError_t nearest_two(const DistanceGrid& grid, const void* labels, Element type, float* d1, float* d2, void* workspace,
                        cudaStream_t stream) {
  if (grid.batch * grid.pixels() == 0) return cudaSuccess;
  return grid.integral() ? run<int32_t>(grid, labels, type, d1, d2, workspace, stream)
                         : run<double>(grid, labels, type, d1, d2, workspace, stream);
}

}  // namespace uf::cuda
