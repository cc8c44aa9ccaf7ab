// A batch of images or volumes as the distance kernels of every device see it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common/dtype.h"

namespace uf {

// How a mask is stored: the bytes of an element, and whether it is a floating-point number (whose -0 is a zero too).
struct MaskElement {
  int64_t bytes;
  bool floating;
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

}  // namespace uf
