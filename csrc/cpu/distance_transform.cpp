// Three steps (images skip the second): steps to the nearest zero along the first axis, going down and up all its lines
// abreast; then exact squared distances along the lines of the middle axis and of the last one. Most pixels of most masks
// are near a zero: on unit grids a block of pixels first looks a few columns to both sides in vector registers, and only
// what is still open then needs the corners of a convex hull (cpu/line_hull.h). Other spacings take lower envelopes
// (common/parabola.h). The time stays linear in the number of pixels.
// The steps lie in the memory of the result, which each line replaces by its distances: an image needs no memory besides,
// whose page faults would cost more than the arithmetic.
#include "cpu/distance_transform.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "common/macros.h"
#include "common/two_nearest.h"
#include "cpu/huge_pages.h"
#include "cpu/line_hull.h"
#include "cpu/line_scratch.h"

namespace uf {
namespace {

// steps <- 0 where the element is zero, else 1.
template <class T>
UF_INLINE void mark(const void* from, T significant, int64_t count, int32_t* __restrict steps) {
  const T* source = static_cast<const T*>(from);
  for (int64_t i = 0; i < count; ++i) steps[i] = (source[i] & significant) != 0;
}

UF_INLINE void mark_row(const void* from, const MaskElement& element, int64_t count, int32_t* steps) {
  const int drop = element.floating ? 1 : 0;  // the sign of a floating-point zero says nothing
  switch (element.bytes) {
    case 1: return mark<uint8_t>(from, 0xff, count, steps);
    case 2: return mark<uint16_t>(from, static_cast<uint16_t>(0xffff >> drop), count, steps);
    case 4: return mark<uint32_t>(from, 0xffffffffu >> drop, count, steps);
    case 8: return mark<uint64_t>(from, ~uint64_t{0} >> drop, count, steps);
  }
}

struct Strip {
  const char* mask;
  MaskElement element;
  int32_t* steps;
  int64_t length, stride, width;
};

UF_MULTIVERSION void scan_strip(const Strip& s, int32_t* state) {
  int32_t* __restrict near = state;
  for (int64_t i = 0; i < s.width; ++i) near[i] = kNoSteps;
  for (int64_t y = 0; y < s.length; ++y) {
    int32_t* __restrict row = s.steps + y * s.stride;
    mark_row(s.mask + y * s.stride * s.element.bytes, s.element, s.width, row);
    for (int64_t i = 0; i < s.width; ++i) row[i] = near[i] = row[i] == 0 ? 0 : near[i] + 1;
  }
  for (int64_t i = 0; i < s.width; ++i) near[i] = kNoSteps;
  for (int64_t y = s.length - 1; y >= 0; --y) {
    int32_t* __restrict row = s.steps + y * s.stride;
    for (int64_t i = 0; i < s.width; ++i) row[i] = near[i] = std::min(row[i], near[i] + 1);
  }
}

void scan_mask(const DistanceGrid& grid, int64_t images, const char* mask, const MaskElement& element, int32_t* steps,
               const Parallel& parallel) {
  const int64_t lanes = grid.lanes(), width = strip_width(grid, sizeof(int32_t));
  const int64_t strips = (lanes + width - 1) / width;
  const Pieces pieces(images * strips, parallel.threads());
  const auto states = std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(pieces.count * width));
  pieces.run(parallel, [&](int64_t piece, int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t lane = unit % strips * width, offset = unit / strips * grid.pixels() + lane;
      scan_strip({mask + offset * element.bytes, element, steps + offset, grid.scan, lanes, std::min(width, lanes - lane)},
                 states.get() + piece * width);
    }
  });
}

template <class Cost>
struct Volume : GridAxes<Cost> {
  int32_t* steps;
  Cost* cost;  // after the middle axis; null for images
};

constexpr int32_t kWindow = 32;        // columns that a block looks at, to each side
constexpr int32_t kStepsPerCheck = 4;  // columns before a block asks whether it has seen enough
constexpr int32_t kTrial = 8;          // columns after which a block gives up that still has a pixel twice the window away

static_assert(kWindow <= kMargin);

template <class Cost>
struct Scratch {
  LineScratch<Cost> line;
  HullScratch hull;  // of integer costs
};

struct Span {
  int32_t lo, hi;
};

// Distances along a line of n costs with kMargin far ones on either side; returns the span that holds all positions
// that need more than the window. Unsigned, because a far cost plus steps exceeds int32.
UF_INLINE Span look_around(const uint32_t* __restrict cost, int32_t n, uint32_t* __restrict out) {
  Span open_span{n, 0};
  for (int32_t begin = 0; begin < n; begin += kBlock) {
    const uint32_t* __restrict here = cost + begin;
    const int32_t size = std::min(kBlock, n - begin);
    uint32_t d[kBlock];
    for (int32_t i = 0; i < kBlock; ++i) d[i] = i < size ? here[i] : 0;
    for (uint32_t k = 1;;) {
      uint32_t open = 0;
      for (int32_t i = 0; i < kBlock; ++i) open = std::max(open, d[i]);
      if (k * k >= open) break;
      if (k > kWindow || (k > kTrial && open > 4 * kWindow * kWindow)) {
        open_span = {std::min(open_span.lo, begin), begin + size};
        break;
      }
      for (const uint32_t stop = k + kStepsPerCheck; k < stop; ++k) {
        const uint32_t* __restrict left = here - k;
        const uint32_t* __restrict right = here + k;
        for (int32_t i = 0; i < kBlock; ++i) {
          const uint32_t nearer = std::min(left[i], right[i]) + k * k;
          d[i] = std::min(d[i], nearer);
        }
      }
    }
    for (int32_t i = 0; i < kBlock; ++i) out[begin + i] = d[i];
  }
  return open_span;
}

// Squared distances up to 2^24 are float32 numbers. Their roots, rounded once, are those that come by way of double.
UF_INLINE bool write_short_distances(const int32_t* __restrict squared, int32_t n, float* __restrict out) {
  int32_t most = 0;
  for (int32_t i = 0; i < n; ++i) most = std::max(most, squared[i]);
  if (most > 1 << 24) return false;
  for (int32_t i = 0; i < n; ++i) out[i] = std::sqrt(static_cast<float>(squared[i]));
  return true;
}

// Into memory that holds steps: copied as bytes, since storing floats through a pointer to int32 is undefined.
template <class Cost>
UF_INLINE void store_distances(const Cost* squared, int32_t n, double scale, float* out) {
  float distances[kBlock];
  for (int32_t begin = 0; begin < n; begin += kBlock) {
    const int32_t size = std::min(kBlock, n - begin);
    bool written = false;
    if constexpr (std::is_same_v<Cost, int32_t>) {
      written = scale == 1.0 && write_short_distances(squared + begin, size, distances);
    }
    if (!written) write_distances(squared + begin, size, scale, distances);
    std::memcpy(out + begin, distances, static_cast<size_t>(size) * sizeof(float));
  }
}

// The distances along a line of n costs between their margins, into room for padded(n).
template <class Cost>
UF_INLINE void line_distances(const Axis<Cost>& axis, const Cost* cost, int32_t n, const Scratch<Cost>& s, Cost* out) {
  if constexpr (std::is_same_v<Cost, int32_t>) {
    const uint32_t* from = reinterpret_cast<const uint32_t*>(cost);
    uint32_t* to = reinterpret_cast<uint32_t*>(out);
    const Span open = look_around(from, n, to);
    if (open.lo < open.hi) hull_distances(from, n, open.lo, open.hi, s.hull, to);
  } else {
    const int32_t count = lower_envelope(axis, CostArray<Cost>{cost}, 0, n - 1, 0, n, s.line.first);
    evaluate_envelope(axis, s.line.first, count, 0, n, out);
  }
}

// Far costs for a line that is about to be written behind the first margin; returns where it begins.
template <class Cost>
UF_INLINE Cost* clear_line(int32_t n, Cost* cost) {
  for (int64_t i = 0; i < padded(n); ++i) cost[i] = Axis<Cost>::far;
  return cost + kMargin;
}

template <class Cost>
UF_INLINE void middle_lines(const Volume<Cost>& v, int64_t begin, int64_t end, const Scratch<Cost>& s) {
  const int32_t n = static_cast<int32_t>(v.middle_length);
  const int64_t stride = v.last_length;
  Cost* cost = clear_line(n, s.line.cost1);
  for (int64_t line = begin; line < end; ++line) {
    const int64_t offset = line / stride * n * stride + line % stride;
    steps_to_costs(v.scan, v.steps + offset, stride, kNoSteps, n, cost);
    line_distances(v.middle, cost, n, s, s.line.d1);
    for (int32_t i = 0; i < n; ++i) v.cost[offset + i * stride] = s.line.d1[i];
  }
}

template <class Cost>
UF_INLINE void last_lines(const Volume<Cost>& v, int64_t begin, int64_t end, const Scratch<Cost>& s, float* out) {
  const int32_t n = static_cast<int32_t>(v.last_length);
  Cost* cost = clear_line(n, s.line.cost1);
  for (int64_t line = begin; line < end; ++line) {
    const int64_t offset = line * n;
    if (v.cost) {
      std::copy_n(v.cost + offset, n, cost);
    } else {
      steps_to_costs(v.scan, v.steps + offset, 1, kNoSteps, n, cost);
    }
    line_distances(v.last, cost, n, s, s.line.d1);
    store_distances(s.line.d1, n, v.scale, out + offset);
  }
}

UF_MULTIVERSION void middle_lines_of(const Volume<int32_t>& v, int64_t b, int64_t e, const Scratch<int32_t>& s) {
  middle_lines(v, b, e, s);
}
UF_MULTIVERSION void middle_lines_of(const Volume<double>& v, int64_t b, int64_t e, const Scratch<double>& s) {
  middle_lines(v, b, e, s);
}
UF_MULTIVERSION void last_lines_of(const Volume<int32_t>& v, int64_t b, int64_t e, const Scratch<int32_t>& s, float* out) {
  last_lines(v, b, e, s, out);
}
UF_MULTIVERSION void last_lines_of(const Volume<double>& v, int64_t b, int64_t e, const Scratch<double>& s, float* out) {
  last_lines(v, b, e, s, out);
}

template <class Cost>
void run(const DistanceGrid& grid, const char* mask, const MaskElement& element, float* out, const Parallel& parallel) {
  const bool volume = grid.middle > 1;
  const int64_t at_once = images_at_once(grid), pixels = grid.pixels();
  const auto costs = fresh_array<Cost>(volume ? at_once * pixels : 0);
  Volume<Cost> v{GridAxes<Cost>(grid),
                 nullptr,
                 volume ? costs.get() : nullptr};
  const auto pieces = [&](int64_t lines) { return Pieces(lines, parallel.threads()); };
  const int64_t count = pieces(at_once * grid.scan * std::max(grid.last, grid.middle)).count;
  const int64_t longest = std::max(grid.middle, grid.last);
  const LineScratches<Cost> lines(count, padded(longest), false);
  const HullScratches hulls(count, longest);
  for (int64_t image = 0; image < grid.batch; image += at_once) {
    const int64_t images = std::min(at_once, grid.batch - image), offset = image * pixels;
    static_assert(sizeof(int32_t) == sizeof(float));
    v.steps = reinterpret_cast<int32_t*>(out + offset);
    scan_mask(grid, images, mask + offset * element.bytes, element, v.steps, parallel);
    if (volume) {
      pieces(images * grid.scan * grid.last).run(parallel, [&](int64_t p, int64_t b, int64_t e) {
        middle_lines_of(v, b, e, {lines[p], hulls[p]});
      });
    }
    pieces(images * grid.scan * grid.middle).run(parallel, [&](int64_t p, int64_t b, int64_t e) {
      last_lines_of(v, b, e, {lines[p], hulls[p]}, out + offset);
    });
  }
}

}  // namespace

void distance_transform(const DistanceGrid& grid, const void* mask, const MaskElement& element, float* out,
                        const Parallel& parallel) {
  if (grid.batch * grid.pixels() == 0) return;
  if (grid.integral()) {
    run<int32_t>(grid, static_cast<const char*>(mask), element, out, parallel);
  } else {
    run<double>(grid, static_cast<const char*>(mask), element, out, parallel);
  }
}

}  // namespace uf
