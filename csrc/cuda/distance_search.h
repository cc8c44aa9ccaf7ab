// The passes along the other axes on the GPU. A thread takes one pixel and looks at the pixels of its line on both sides in
// turn, until the next one is farther away than what the pixel already knows: nothing left out could change the result.
// That is a few steps a pixel in images full of cells. What lies beyond 32 steps is looked at in blocks of 32 pixels, of each
// of which a pass beforehand has kept the nearest two: a block that could change nothing even if all of them lay on its
// near end costs one look. So an image with fewer than two cells takes 2 * 32 + length / 32 steps a pixel and those into
// the blocks that hold something nearer, not `length`: of 2048 x 2048 pixels 0.5 billion loads from the L1 and L2 caches,
// which would have been 8 billion (3 ms). Lines of up to 128 pixels do without.
//
// Threads of a warp have pixels side by side and look equally far, so along every axis their loads are of consecutive
// elements; neighbouring warps find in the caches what they load. Small blocks end soon and make room for others: a block
// holds its registers until its last pixel is done.
#pragma once

#include <cmath>

#include "common/distance_grid.h"
#include "common/two_nearest.h"
#include "cuda/distance_scan.h"
#include "cuda/launch.h"

namespace uf::cuda {

constexpr int kSearchThreads = 128;
constexpr int32_t kBlock = 32;            // pixels of a line whose nearest two are kept
constexpr int32_t kLeastForBlocks = 128;  // a shorter line has none: it is soon done

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
  int64_t block;           // the first of the line, in all blocks; those of a line are `stride` apart

  __device__ LinePixel(int64_t pixel, int32_t length, int64_t step) : at(pixel), stride(step) {
    const int64_t line = pixel / step, outer = line / length;
    before = static_cast<int32_t>(line - outer * length);
    behind = length - 1 - before;
    block = outer * ceil_div(length, kBlock) * step + (pixel - line * step);
  }

  __device__ int32_t longest() const { return before > behind ? before : behind; }
};

// The pixel of a thread; may lie beyond the last one.
__device__ inline int64_t pixel_of_thread() { return int64_t{blockIdx.x} * kSearchThreads + threadIdx.x; }

// Costs of two labels a pixel.
template <class Cost, class Stored, class Costs>
struct TwoPlanes {
  using Known = NearestTwo<Cost>;
  const Stored* cost1;
  const Stored* cost2;
  const int32_t* label;
  Axis<Cost> axis;
  Costs costs;
  const Known* blocks = nullptr;  // null: none are kept

  __device__ Known own(int64_t at) const { return {costs(cost1[at]), label[at], costs(cost2[at])}; }

  static __device__ Known nothing() { return {Axis<Cost>::far, 0, Axis<Cost>::far}; }
  static __device__ void add(const Known& other, Known& known) { known.offer(other.d1, other.label, other.d2); }

  // From this distance on nothing matters.
  static __device__ Cost enough(const Known& known) { return known.d2; }

  __device__ void look(int64_t at, Cost distance, Known& two) const {
    const Cost c1 = axis.further(costs(cost1[at]), distance);
    if (!(c1 < two.d2)) return;  // can change nothing: the rest need not be loaded
    two.offer(c1, label[at], axis.further(costs(cost2[at]), distance));
  }

  // Whether a block could change anything if all of it were this near: another label needs to be nearer than the second,
  // the same one nearer than the first.
  __device__ bool matters(const Known& block, Cost distance, const Known& two) const {
    const Cost c1 = axis.further(block.d1, distance);
    if (block.label != two.label) return c1 < two.d2;
    return c1 < two.d1 || axis.further(block.d2, distance) < two.d2;
  }
};

// One cost a pixel.
template <class Cost, class Stored, class Costs>
struct OnePlane {
  using Known = Cost;
  const Stored* cost;
  Axis<Cost> axis;
  Costs costs;
  const Known* blocks = nullptr;  // null: none are kept

  __device__ Known own(int64_t at) const { return costs(cost[at]); }

  static __device__ Known nothing() { return Axis<Cost>::far; }
  static __device__ void add(const Known& other, Known& known) { known = other < known ? other : known; }

  static __device__ Cost enough(const Known& known) { return known; }

  __device__ void look(int64_t at, Cost distance, Known& known) const { add(axis.further(costs(cost[at]), distance), known); }

  __device__ bool matters(const Known& block, Cost distance, const Known& known) const {
    return axis.further(block, distance) < known;
  }
};

struct Forever {
  template <class Known>
  __device__ bool operator()(const Known&, int32_t) const {
    return false;
  }
};

// The blocks of one side that lie beyond kBlock steps, from near to far. `toward` is -1 or 1.
template <class Planes>
struct BlocksBeside {
  int32_t place, last, toward;  // the next pixel to look at; the last one of the line on this side

  __device__ BlocksBeside(const LinePixel& pixel, int32_t toward)
      : place(pixel.before + toward * (kBlock + 1)), last(toward < 0 ? 0 : pixel.before + pixel.behind), toward(toward) {}

  // Looks at one block. False where there are no more that could matter.
  __device__ bool next(const Planes& planes, const LinePixel& pixel, typename Planes::Known& known) {
    if (toward * (last - place) < 0) return false;
    const int32_t block = place / kBlock, end = toward < 0 ? block * kBlock : block * kBlock + kBlock - 1;
    const auto distance = planes.axis.square(place - pixel.before);
    if (!(distance < Planes::enough(known))) return false;
    if (planes.matters(planes.blocks[pixel.block + block * pixel.stride], distance, known)) {
      for (int32_t at = place; toward * (end - at) >= 0 && toward * (last - at) >= 0; at += toward) {
        const auto here = planes.axis.square(at - pixel.before);
        if (!(here < Planes::enough(known))) return false;
        planes.look(pixel.at + (at - pixel.before) * pixel.stride, here, known);
      }
    }
    place = end + toward;
    return true;
  }
};

// Looks up to `furthest` steps away, on both sides; done(known, k) ends it before step k. True where all that is farther
// does not matter.
template <class Planes, class Done>
__device__ bool search_near(const Planes& planes, const LinePixel& pixel, int32_t furthest, const Done& done,
                            typename Planes::Known& known) {
  const int32_t longest = pixel.longest();
  for (int32_t k = 1; k <= furthest; ++k) {
    const auto distance = planes.axis.square(k);
    if (k > longest || !(distance < Planes::enough(known)) || done(known, k)) return true;
    if (k <= pixel.before) planes.look(pixel.at - k * pixel.stride, distance, known);
    if (k <= pixel.behind) planes.look(pixel.at + k * pixel.stride, distance, known);
  }
  return false;
}

// What is nearest on the whole line.
template <class Planes>
__device__ typename Planes::Known search(const Planes& planes, const LinePixel& pixel) {
  auto known = planes.own(pixel.at);
  const bool finished = search_near(planes, pixel, planes.blocks ? kBlock : pixel.longest(), Forever{}, known);
  if (finished || !planes.blocks) return known;
  BlocksBeside<Planes> left(pixel, -1), right(pixel, 1);
  for (bool more_left = true, more_right = true; more_left || more_right;) {
    more_left = more_left && left.next(planes, pixel, known);
    more_right = more_right && right.next(planes, pixel, known);
  }
  return known;
}

// What a block of a line holds. Bytes: a pixel read once, and 4 (12 for two labels; twice that in float64) written for 32.
template <class Planes>
__global__ void __launch_bounds__(kSearchThreads)
    blocks_kernel(const Planes planes, const int64_t all, const int32_t length, const int64_t stride,
                  typename Planes::Known* blocks) {
  const int64_t at = int64_t{blockIdx.x} * kSearchThreads + threadIdx.x;
  if (at >= all) return;
  const int64_t row = at / stride, inner = at - row * stride, in_line = ceil_div(length, kBlock), outer = row / in_line;
  const auto first = static_cast<int32_t>(row - outer * in_line) * kBlock;
  const int32_t behind = length - first < kBlock ? length : first + kBlock;
  auto known = Planes::nothing();
  for (int32_t i = first; i < behind; ++i) Planes::add(planes.own((outer * length + i) * stride + inner), known);
  blocks[at] = known;
}

// Blocks of lines of so many pixels; none for short ones.
inline int64_t blocks_of_lines(int64_t pixels, int64_t length) {
  return length > kLeastForBlocks ? pixels / length * ceil_div(length, kBlock) : 0;
}

// Fills the memory for the blocks, if there are any, and lets the planes know.
template <class Planes>
cudaError_t keep_blocks(Planes& planes, int64_t pixels, int64_t length, int64_t stride, typename Planes::Known* memory,
                        cudaStream_t stream) {
  const int64_t all = blocks_of_lines(pixels, length);
  if (all == 0) return cudaSuccess;
  const cudaError_t error = launch(blocks_kernel<Planes>, ceil_div(all, kSearchThreads), kSearchThreads, stream, planes,
                                   all, static_cast<int32_t>(length), stride, memory);
  planes.blocks = memory;
  return error;
}

// In double, so that the root of an exact square is the float32 nearest to the true distance.
template <class Cost>
__device__ float distance_of(Cost squared, double scale) {
  return squared < Axis<Cost>::far ? static_cast<float>(std::sqrt(static_cast<double>(squared)) * scale) : INFINITY;
}

// f(costs, steps) with the types that this grid takes.
template <class F>
auto with_types(const DistanceGrid& grid, const F& f) {
  if (grid.integral()) return has_short_steps(grid) ? f(int32_t{}, ShortSteps{}) : f(int32_t{}, LongSteps{});
  return has_short_steps(grid) ? f(double{}, ShortSteps{}) : f(double{}, LongSteps{});
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
