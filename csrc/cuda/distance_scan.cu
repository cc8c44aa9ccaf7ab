// A block scans a chunk of up to 512 pixels of eight lines; each of its 64 rows of threads takes a segment of up to eight
// pixels of every line, which it holds in registers: from one read it knows what a walk down and a walk up its segment
// meet, then starts its own two walks with what the segments before and behind it add up to. Lines of more than one chunk
// are read twice, since what a chunk adds up to (64 bytes for 512 pixels) has to be known beforehand.
//
// So one image of 512 x 512 is the work of 64 blocks of 512 threads, each with up to eight loads in flight, and eight
// lines of int32 labels are one sector of 32 bytes.
//
// Bytes moved a pixel: the label read (twice where lines are long, mostly out of the L2 cache for the second time), 4 for the
// label and 2 + 2 for steps written (2 for zeros). Limit: those / copy bandwidth: 12 bytes for int32 labels, so 0.26 ms for
// 64 images of 1024 x 1024 at 3 TB/s; below some 4 million pixels the launch and the walks, some 10 us, count for more.
#include "cuda/distance_scan.h"

#include "cuda/block_sum.h"
#include "cuda/launch.h"

namespace uf::cuda {
namespace {

constexpr int kLines = 8, kSegments = 64, kRows = 8, kThreads = kLines * kSegments;
constexpr int kGroups = 8, kInGroup = kSegments / kGroups;  // of segments, which are added up in two steps
constexpr int64_t kChunk = kSegments * kRows;               // pixels of a line
static_assert(kThreads >= 2 * kGroups * kLines, "a thread adds up a group of segments for one line in one direction");

// A scan for zeros, as LabelScan for labels: the last one met.
struct ZeroScan {
  int32_t position;
  UF_HD_INLINE void meet(bool zero, int32_t at) { position = zero ? at : position; }
};

// All that a walk behind a segment needs to know of it: the last two distinct labels met in it, or the last zero.
__device__ void meet_segment(LabelScan& scan, const LabelScan& segment) {
  scan.meet(segment.label2, segment.position2);
  scan.meet(segment.label1, segment.position1);
}

__device__ void meet_segment(ZeroScan& scan, const ZeroScan& segment) {
  const bool any = segment.position >= 0 && segment.position < kNoSteps;
  scan.meet(any, segment.position);
}

template <class Scan>
struct Ends {
  Scan down, up;  // what walks through a segment, a group of them or a chunk would know at their ends
};

template <class Steps>
__device__ Steps stored(int32_t steps) {
  return static_cast<Steps>(steps < kNone<Steps> ? steps : kNone<Steps>);
}

// What is scanned: labels into planes.
template <class T, class Steps>
struct Labels {
  using Scan = LabelScan;
  using Value = int32_t;
  const T* labels;
  LabelPlanes<Steps> planes;
  int32_t* cells;  // may be null

  static UF_HD_INLINE Scan above() { return {0, -kNoSteps, 0, -kNoSteps}; }
  static UF_HD_INLINE Scan below(int32_t length) { return {0, kNoSteps + length, 0, kNoSteps + length}; }

  __device__ Value load(int64_t at) const {
    const T value = labels[at];
    if constexpr (std::is_signed_v<T>) {
      if (value < 0) return kBadLabel;
    }
    if constexpr (sizeof(T) > sizeof(int32_t)) {
      if (value > std::numeric_limits<int32_t>::max()) return kBadLabel;
    }
    return static_cast<int32_t>(value);
  }

  __device__ void store(int64_t at, int32_t y, const Scan& down, const Scan& up) const {
    const TwoLabels both = merge(TwoLabels{down.label1, y - down.position1, 0, y - down.position2},
                                 TwoLabels{up.label1, up.position1 - y, 0, up.position2 - y});
    planes.label[at] = both.label1;
    planes.steps1[at] = stored<Steps>(both.steps1);
    planes.steps2[at] = stored<Steps>(both.steps2);
  }
};

// A mask into steps to its zeros.
template <class T, class Steps>
struct Zeros {
  using Scan = ZeroScan;
  using Value = bool;
  const T* mask;
  T significant;  // bits
  Steps* steps;
  static constexpr int32_t* cells = nullptr;

  static UF_HD_INLINE Scan above() { return {-kNoSteps}; }
  static UF_HD_INLINE Scan below(int32_t length) { return {kNoSteps + length}; }

  __device__ Value load(int64_t at) const { return static_cast<T>(mask[at] & significant) == 0; }

  __device__ void store(int64_t at, int32_t y, const Scan& down, const Scan& up) const {
    const int32_t before = y - down.position, behind = up.position - y;
    steps[at] = stored<Steps>(before < behind ? before : behind);
  }
};

struct Layout {
  int32_t length;
  int64_t lanes;
  uint32_t strips, chunks;  // of eight lines, of an image; of a line

  explicit Layout(const DistanceGrid& grid)
      : length(static_cast<int32_t>(grid.scan)),
        lanes(grid.lanes()),
        strips(static_cast<uint32_t>(ceil_div(grid.lanes(), kLines))),
        chunks(static_cast<uint32_t>(ceil_div(grid.scan, kChunk))) {}
};

// The line and the segment of one thread.
struct Place {
  int64_t first;  // the first pixel of the line, in all pixels; pixels of a line are `lanes` apart
  int64_t ends;   // of the first chunk of the line, in all ends; those of a line are `lanes` apart
  uint32_t chunk;
  int32_t begin, end;
  int line, segment;
  bool inside;

  __device__ explicit Place(const Layout& all) {
    const uint32_t rest = blockIdx.x / all.chunks, image = rest / all.strips;
    chunk = blockIdx.x - rest * all.chunks;
    line = static_cast<int>(threadIdx.x) % kLines;
    segment = static_cast<int>(threadIdx.x) / kLines;
    const int64_t at = int64_t{rest - image * all.strips} * kLines + line;
    inside = at < all.lanes;
    first = int64_t{image} * all.length * all.lanes + at;
    ends = int64_t{image} * all.chunks * all.lanes + at;
    const int64_t from = int64_t{all.length} * chunk / all.chunks, behind = int64_t{all.length} * (chunk + 1) / all.chunks;
    begin = static_cast<int32_t>(from + (behind - from) * segment / kSegments);
    end = static_cast<int32_t>(from + (behind - from) * (segment + 1) / kSegments);
  }
};

// kEnds: only tells what each chunk adds up to, for the blocks of the other chunks.
template <class Line, bool kEnds>
__global__ void __launch_bounds__(kThreads, 2)
    scan_kernel(const Line line, const Layout all, Ends<typename Line::Scan>* ends) {
  using Scan = typename Line::Scan;
  __shared__ Ends<Scan> segments[kSegments][kLines], groups[kGroups][kLines];
  __shared__ double scratch[kThreads / kWarp];
  const Place place(all);
  const Scan above = Line::above(), below = Line::below(all.length);

  typename Line::Value value[kRows];
  int32_t count = 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const bool exists = place.inside && place.begin + i < place.end;
    value[i] = exists ? line.load(place.first + (place.begin + i) * all.lanes) : typename Line::Value(0);
    count += value[i] != 0;
  }
  Scan down = above, up = below;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    down.meet(value[i], place.begin + i);
    up.meet(value[kRows - 1 - i], place.begin + kRows - 1 - i);
  }
  segments[place.segment][place.line] = {down, up};
  __syncthreads();

  // one thread adds up a group of segments for one line and direction
  const int group = place.segment % kGroups;
  if (place.segment < 2 * kGroups) {
    const bool going_down = place.segment < kGroups;
    Scan sum = going_down ? above : below;
    for (int i = 0; i < kInGroup; ++i) {
      const int s = group * kInGroup + (going_down ? i : kInGroup - 1 - i);
      meet_segment(sum, going_down ? segments[s][place.line].down : segments[s][place.line].up);
    }
    (going_down ? groups[group][place.line].down : groups[group][place.line].up) = sum;
  }
  __syncthreads();

  const int own = kEnds ? kGroups : place.segment / kInGroup;  // all groups where the whole chunk is asked for
  down = above;
  up = below;
  if constexpr (!kEnds) {
    for (uint32_t c = 0; place.inside && c < place.chunk; ++c) meet_segment(down, ends[place.ends + c * all.lanes].down);
    for (uint32_t c = all.chunks - 1; place.inside && c > place.chunk; --c)
      meet_segment(up, ends[place.ends + c * all.lanes].up);
  }
  for (int g = 0; g < own; ++g) meet_segment(down, groups[g][place.line].down);
  for (int g = kGroups - 1; g > (kEnds ? -1 : own); --g) meet_segment(up, groups[g][place.line].up);
  if constexpr (kEnds) {
    if (place.inside && place.segment == 0) ends[place.ends + place.chunk * all.lanes] = {down, up};
  } else {
    for (int s = own * kInGroup; s < place.segment; ++s) meet_segment(down, segments[s][place.line].down);
    for (int s = own * kInGroup + kInGroup - 1; s > place.segment; --s) meet_segment(up, segments[s][place.line].up);

    Scan known[kRows];  // on the way down
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      down.meet(value[i], place.begin + i);
      known[i] = down;
    }
#pragma unroll
    for (int i = kRows - 1; i >= 0; --i) {
      const int32_t y = place.begin + i;
      up.meet(value[i], y);
      if (place.inside && y < place.end) line.store(place.first + y * all.lanes, y, known[i], up);
    }

    if (line.cells == nullptr) return;
    const double sum = block_sum<kThreads>(count, scratch);
    if (threadIdx.x == 0) line.cells[blockIdx.x] = static_cast<int32_t>(sum);
  }
}

template <class Line>
cudaError_t scan(const DistanceGrid& grid, const Line& line, void* workspace, cudaStream_t stream) {
  const Layout all(grid);
  auto* ends = static_cast<Ends<typename Line::Scan>*>(workspace);
  const int64_t blocks = grid.batch * scan_blocks(grid);
  if (all.chunks > 1) {
    const cudaError_t error = launch(scan_kernel<Line, true>, blocks, kThreads, stream, line, all, ends);
    if (error != cudaSuccess) return error;
  }
  return launch(scan_kernel<Line, false>, blocks, kThreads, stream, line, all, ends);
}

}  // namespace

int64_t scan_blocks(const DistanceGrid& grid) { return ceil_div(grid.lanes(), kLines) * ceil_div(grid.scan, kChunk); }

int64_t scan_workspace(const DistanceGrid& grid) {
  const int64_t chunks = ceil_div(grid.scan, kChunk);
  return chunks > 1 ? grid.batch * chunks * grid.lanes() * static_cast<int64_t>(sizeof(Ends<LabelScan>)) : 0;
}

template <class Steps>
cudaError_t scan_labels(const DistanceGrid& grid, const void* labels, DType type, const LabelPlanes<Steps>& planes,
                        int32_t* cells, void* workspace, cudaStream_t stream) {
  return dispatch_integral(type, [&]<class T>(T) {
    return scan(grid, Labels<T, Steps>{static_cast<const T*>(labels), planes, cells}, workspace, stream);
  });
}

template <class Steps>
cudaError_t scan_zeros(const DistanceGrid& grid, const void* mask, const MaskElement& element, Steps* steps,
                       void* workspace, cudaStream_t stream) {
  return dispatch_bytes(element.bytes, [&]<class T>(T) {
    const T bits = static_cast<T>(~T{0});  // the sign of a floating-point zero says nothing
    return scan(grid,
                Zeros<T, Steps>{static_cast<const T*>(mask), static_cast<T>(element.floating ? bits >> 1 : bits), steps},
                workspace, stream);
  });
}

template cudaError_t scan_labels(const DistanceGrid&, const void*, DType, const LabelPlanes<ShortSteps>&, int32_t*,
                                 void*, cudaStream_t);
template cudaError_t scan_labels(const DistanceGrid&, const void*, DType, const LabelPlanes<LongSteps>&, int32_t*,
                                 void*, cudaStream_t);
template cudaError_t scan_zeros(const DistanceGrid&, const void*, const MaskElement&, ShortSteps*, void*, cudaStream_t);
template cudaError_t scan_zeros(const DistanceGrid&, const void*, const MaskElement&, LongSteps*, void*, cudaStream_t);

}  // namespace uf::cuda
