// A block scans 32 lines, one a lane, so that a warp touches 128 consecutive bytes; each of its 16 warps takes a segment
// of the lines. A warp first finds out what a walk down and a walk up its segment would know at their ends, then starts
// its own two walks with what the segments before and behind it add up to: the lines of one image alone, walked by one
// thread each, would leave most of the GPU without work.
//
// Bytes moved: the labels are read and 12 bytes a pixel written from and to memory (4 for zeros). The labels are read
// twice more, and the planes read and written once more, out of the L2 cache: the lines of all blocks that run together
// take 12 bytes * 32 * length * 2 to 4 * (number of multiprocessors), 50 MB for 512 rows on an H100. Limit: (element + 12)
// bytes / copy bandwidth, twice that for lines too long for the cache.
#include "cuda/distance_scan.h"

#include <type_traits>

#include "common/two_nearest.h"
#include "cuda/block_sum.h"
#include "cuda/launch.h"

namespace uf::cuda {
namespace {

constexpr int kSegments = 16, kThreads = kSegments * kWarp;

// The lines and the segment of one thread.
struct Lane {
  int64_t offset;  // of the first pixel of the line, in labels and planes
  int64_t stride;  // from one pixel of a line to the next
  int32_t begin, end;
  int32_t segment, lane;

  __device__ Lane(int32_t length, int64_t lanes, uint32_t strips) {
    const uint32_t image = blockIdx.x / strips, strip = blockIdx.x - image * strips;
    segment = static_cast<int32_t>(threadIdx.x / kWarp);
    lane = static_cast<int32_t>(threadIdx.x % kWarp);
    const int64_t line = int64_t{strip} * kWarp + lane;
    offset = int64_t{image} * length * lanes + line;
    stride = lanes;
    const bool inside = line < lanes;  // lines beyond the image have no pixels
    begin = inside ? static_cast<int32_t>(int64_t{length} * segment / kSegments) : 0;
    end = inside ? static_cast<int32_t>(int64_t{length} * (segment + 1) / kSegments) : 0;
  }

  __device__ int64_t at(int32_t position) const { return offset + position * stride; }
};

template <class T>
__device__ int32_t label_of(T value) {
  if constexpr (std::is_signed_v<T>) {
    if (value < 0) return kBadLabel;
  }
  if constexpr (sizeof(T) > sizeof(int32_t)) {
    if (value > std::numeric_limits<int32_t>::max()) return kBadLabel;
  }
  return static_cast<int32_t>(value);
}

// All that a segment says about its labels to those behind it: the last two distinct ones that a walk meets.
__device__ void meet_segment(LabelScan& scan, const LabelScan& segment) {
  scan.meet(segment.label2, segment.position2);
  scan.meet(segment.label1, segment.position1);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    label_kernel(const T* __restrict__ labels, const LabelPlanes planes, int32_t* cells, const int32_t length,
                 const int64_t lanes, const uint32_t strips) {
  __shared__ LabelScan downs[kThreads], ups[kThreads];
  __shared__ double scratch[kSegments];
  const Lane line(length, lanes, strips);
  const LabelScan above = {0, -kNoSteps, 0, -kNoSteps};
  const LabelScan below = {0, kNoSteps + length, 0, kNoSteps + length};

  LabelScan down = above, up = below;
  int32_t count = 0;
  for (int32_t y = line.begin; y < line.end; ++y) {
    const int32_t label = label_of(labels[line.at(y)]);
    count += label != 0;
    down.meet(label, y);
  }
  for (int32_t y = line.end - 1; y >= line.begin; --y) up.meet(label_of(labels[line.at(y)]), y);
  downs[threadIdx.x] = down;
  ups[threadIdx.x] = up;
  __syncthreads();

  down = above;
  for (int32_t s = 0; s < line.segment; ++s) meet_segment(down, downs[s * kWarp + line.lane]);
  for (int32_t y = line.begin; y < line.end; ++y) {
    const int64_t at = line.at(y);
    down.meet(label_of(labels[at]), y);
    planes.label[at] = down.label1;
    planes.steps1[at] = y - down.position1;
    planes.steps2[at] = y - down.position2;
  }

  up = below;
  for (int32_t s = kSegments - 1; s > line.segment; --s) meet_segment(up, ups[s * kWarp + line.lane]);
  for (int32_t y = line.end - 1; y >= line.begin; --y) {
    const int64_t at = line.at(y);
    const TwoLabels from_above = {planes.label[at], planes.steps1[at], 0, planes.steps2[at]};
    up.meet(from_above.steps1 == 0 ? from_above.label1 : 0, y);
    const TwoLabels both = merge(from_above, TwoLabels{up.label1, up.position1 - y, 0, up.position2 - y});
    planes.label[at] = both.label1;
    planes.steps1[at] = both.steps1;
    planes.steps2[at] = both.steps2;
  }

  if (cells == nullptr) return;
  const double sum = block_sum<kThreads>(count, scratch);
  if (threadIdx.x == 0) cells[blockIdx.x] = static_cast<int32_t>(sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    zero_kernel(const T* __restrict__ mask, const T significant, int32_t* steps, const int32_t length,
                const int64_t lanes, const uint32_t strips) {
  __shared__ int32_t lasts[kThreads], firsts[kThreads];
  const Lane line(length, lanes, strips);
  const auto is_zero = [&](int64_t at) { return static_cast<T>(mask[at] & significant) == 0; };
  int32_t last = -kNoSteps, first = kNoSteps + length;
  for (int32_t y = line.begin; y < line.end; ++y) {
    if (!is_zero(line.at(y))) continue;
    first = last < 0 ? y : first;
    last = y;
  }
  lasts[threadIdx.x] = last;
  firsts[threadIdx.x] = first;
  __syncthreads();

  last = -kNoSteps;
  for (int32_t s = 0; s < line.segment; ++s) {
    const int32_t other = lasts[s * kWarp + line.lane];
    last = other > last ? other : last;
  }
  for (int32_t y = line.begin; y < line.end; ++y) {
    if (is_zero(line.at(y))) last = y;
    steps[line.at(y)] = y - last;
  }
  first = kNoSteps + length;
  for (int32_t s = line.segment + 1; s < kSegments; ++s) {
    const int32_t other = firsts[s * kWarp + line.lane];
    first = other < first ? other : first;
  }
  for (int32_t y = line.end - 1; y >= line.begin; --y) {
    const int32_t down = steps[line.at(y)];
    if (down == 0) first = y;
    steps[line.at(y)] = first - y < down ? first - y : down;
  }
}

template <class T>
cudaError_t launch_labels(const DistanceGrid& grid, const void* labels, const LabelPlanes& planes, int32_t* cells,
                          cudaStream_t stream) {
  return launch(label_kernel<T>, grid.batch * scan_blocks(grid), kThreads, stream, static_cast<const T*>(labels), planes,
                cells, static_cast<int32_t>(grid.scan), grid.lanes(),
                static_cast<uint32_t>(scan_blocks(grid)));
}

template <class T>
cudaError_t launch_zeros(const DistanceGrid& grid, const void* mask, bool floating, int32_t* steps, cudaStream_t stream) {
  const T all = static_cast<T>(~T{0});  // the sign of a floating-point zero says nothing
  return launch(zero_kernel<T>, grid.batch * scan_blocks(grid), kThreads, stream, static_cast<const T*>(mask),
                static_cast<T>(floating ? all >> 1 : all), steps, static_cast<int32_t>(grid.scan), grid.lanes(),
                static_cast<uint32_t>(scan_blocks(grid)));
}

}  // namespace

int64_t scan_blocks(const DistanceGrid& grid) { return ceil_div(grid.lanes(), kWarp); }

cudaError_t scan_labels(const DistanceGrid& grid, const void* labels, Element type, const LabelPlanes& planes,
                        int32_t* cells, cudaStream_t stream) {
  switch (type) {
    case Element::kUInt8: return launch_labels<uint8_t>(grid, labels, planes, cells, stream);
    case Element::kInt8: return launch_labels<int8_t>(grid, labels, planes, cells, stream);
    case Element::kUInt16: return launch_labels<uint16_t>(grid, labels, planes, cells, stream);
    case Element::kInt16: return launch_labels<int16_t>(grid, labels, planes, cells, stream);
    case Element::kInt32: return launch_labels<int32_t>(grid, labels, planes, cells, stream);
    default: return launch_labels<int64_t>(grid, labels, planes, cells, stream);
  }
}

cudaError_t scan_zeros(const DistanceGrid& grid, const void* mask, const MaskElement& element, int32_t* steps,
                       cudaStream_t stream) {
  switch (element.bytes) {
    case 1: return launch_zeros<uint8_t>(grid, mask, element.floating, steps, stream);
    case 2: return launch_zeros<uint16_t>(grid, mask, element.floating, steps, stream);
    case 4: return launch_zeros<uint32_t>(grid, mask, element.floating, steps, stream);
    default: return launch_zeros<uint64_t>(grid, mask, element.floating, steps, stream);
  }
}

}  // namespace uf::cuda
