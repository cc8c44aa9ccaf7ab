// What the distance kernels share: the grid of one call and how its work and workspace are divided.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/parabola.h"
#include "cpu/parallel.h"

namespace uf {

enum class Element { kUInt8, kInt8, kUInt16, kInt16, kInt32, kInt64 };

inline int64_t element_size(Element type) {
  switch (type) {
    case Element::kUInt8:
    case Element::kInt8: return 1;
    case Element::kUInt16:
    case Element::kInt16: return 2;
    case Element::kInt32: return 4;
    case Element::kInt64: return 8;
  }
  return 0;
}

// Labels are positive int32 numbers; what else was found, if anything.
struct BadLabel {
  bool found = false;
  int64_t value = 0;
};

// A batch of images (height x width) or volumes (depth x height x width), C-contiguous. The first axis is scanned up
// and down, all its lines abreast; the other axes are done line by line. Images have depth = 1 and are scanned along
// their height; volumes are scanned along their depth.
struct DistanceGrid {
  int64_t batch;
  int64_t scan, middle, last;  // lengths of the axes in the order of the passes; middle is 1 for images
  double scan_spacing, middle_spacing, last_spacing;

  int64_t pixels() const { return scan * middle * last; }
  int64_t lanes() const { return middle * last; }  // lines of the scan

  // The coarsest spacing, taken out of all distances and put back at the end: equal spacings leave a unit grid.
  double scale() const {
    double s = 0;
    if (scan > 1) s = std::max(s, scan_spacing);
    if (middle > 1) s = std::max(s, middle_spacing);
    if (last > 1) s = std::max(s, last_spacing);
    return s > 0 ? s : 1.0;
  }

  double weight(int64_t length, double spacing) const {
    const double ratio = length > 1 ? spacing / scale() : 1.0;
    return ratio * ratio;
  }
  double scan_weight() const { return weight(scan, scan_spacing); }
  double middle_weight() const { return weight(middle, middle_spacing); }
  double last_weight() const { return weight(last, last_spacing); }

  // Whether squared distances are integers below 2^31 - 1 (every image up to 32768 x 32768 with equal spacings).
  bool integral() const {
    if (scan_weight() != 1.0 || middle_weight() != 1.0 || last_weight() != 1.0) return false;
    const double a = static_cast<double>(scan - 1), b = static_cast<double>(middle - 1), c = static_cast<double>(last - 1);
    return a * a + b * b + c * c < std::numeric_limits<int32_t>::max();
  }
};

inline DistanceGrid image_grid(int64_t batch, int64_t height, int64_t width, double y_spacing = 1.0,
                               double x_spacing = 1.0) {
  return {batch, height, 1, width, y_spacing, 1.0, x_spacing};
}

// The longest side: positions are int32, and a missing neighbour counts as 2^30 steps away.
inline constexpr int64_t kMaxSide = (int64_t{1} << 30) - 1;

// Images that share one workspace: many small ones keep all threads busy, one large one bounds the memory.
inline int64_t images_at_once(const DistanceGrid& grid) {
  constexpr int64_t kPixels = int64_t{1} << 20;
  return std::clamp<int64_t>(kPixels / std::max<int64_t>(grid.pixels(), 1), 1, std::max<int64_t>(grid.batch, 1));
}

// The lines of a scan are cut into strips whose workspace stays in a core's cache between the way down and the way up.
inline int64_t strip_width(const DistanceGrid& grid, int64_t bytes_per_pixel) {
  constexpr int64_t kBytes = int64_t{1} << 20, kStep = 64;
  const int64_t width = kBytes / (grid.scan * bytes_per_pixel) / kStep * kStep;
  return std::min(std::clamp<int64_t>(width, kStep, 1024), grid.lanes());
}

// A loop cut beforehand into few pieces, so that each can own a part of one scratch allocation made by the caller.
struct Pieces {
  int64_t count, total;

  Pieces(int64_t total, int threads) : count(std::min<int64_t>(total, threads > 1 ? 4 * threads : 1)), total(total) {}

  template <class F>  // f(piece, begin, end)
  void run(const Parallel& parallel, F&& f) const {
    parallel(count, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) f(p, total * p / count, total * (p + 1) / count);
    });
  }
};

}  // namespace uf
