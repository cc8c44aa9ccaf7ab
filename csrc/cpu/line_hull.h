// Exact squared distances along one line of integer costs, d(x) = min over sites j of cost[j] + (x - j)^2, on the CPU.
// As d(x) = x^2 + min (f(j) - 2 x j) with f(j) = cost[j] + j^2, the sites that are nearest to anything are the corners of the
// lower convex hull of the points (j, f(j)): the envelope of common/parabola.h, seen from the other side. Two things are
// gained. Most points can be thrown out abreast in vector registers, before the scan that finds the corners one by one: a
// point on or above the chord of two others is no corner, and any two will do. And that scan compares slopes with products
// instead of quotients, which wait until only the corners are left.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "common/macros.h"
#include "common/parabola.h"
#include "cpu/lanes.h"

namespace uf {

constexpr int32_t kMargin = 32;  // far costs that stand before and behind every line
constexpr int32_t kBlock = 64;   // positions that are worked on abreast

// The room for a line of n costs: whole blocks between two margins.
inline int64_t padded(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock + 2 * kMargin; }

// The buffers of one thread, each of padded(n) elements.
struct HullScratch {
  double* height;  // f of the corners
  uint32_t* half;
  int32_t *site, *start;
};

class HullScratches {
 public:
  HullScratches(int64_t pieces, int64_t n)
      : size_(padded(n)),
        heights_(std::make_unique_for_overwrite<double[]>(static_cast<size_t>(pieces * size_))),
        numbers_(std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(pieces * 3 * size_))) {}

  HullScratch operator[](int64_t piece) const {
    int32_t* numbers = numbers_.get() + piece * 3 * size_;
    return {heights_.get() + piece * size_, reinterpret_cast<uint32_t*>(numbers), numbers + size_, numbers + 2 * size_};
  }

 private:
  int64_t size_;
  std::unique_ptr<double[]> heights_;
  std::unique_ptr<int32_t[]> numbers_;
};

// The sites that lie below all chords from w positions to the left to w to the right, w = 1, 2, 4 ... kMargin.
UF_INLINE int32_t below_chords(const uint32_t* __restrict cost, int32_t n, const HullScratch& s) {
  constexpr uint32_t kFar = static_cast<uint32_t>(Axis<int32_t>::far);
  uint32_t* __restrict half = s.half + kMargin;  // of the cost, rounded up; of a far one so much that its chords are too high
  for (int64_t i = -kMargin; i < padded(n) - kMargin; ++i) half[i] = cost[i] == kFar ? kFar : (cost[i] + 1) / 2;
  int32_t count = 0;
  for (int32_t begin = 0; begin < n; begin += kBlock) {
    const uint32_t* __restrict here = cost + begin;
    uint32_t keep[kBlock];
    for (int32_t i = 0; i < kBlock; ++i) keep[i] = here[i] != kFar;
    for (int32_t w = 1; w <= kMargin; w *= 2) {
      const uint32_t above = static_cast<uint32_t>(w * w);  // f of the chord's middle: the mean of both costs and this
      const uint32_t* __restrict left = half + begin - w;
      const uint32_t* __restrict right = half + begin + w;
      for (int32_t i = 0; i < kBlock; ++i) {
        const uint32_t mean = std::min(left[i] + right[i], kFar);
        keep[i] &= mean + above > here[i];
      }
    }
    const int32_t size = std::min(kBlock, n - begin);
    for (int32_t i = 0; i < size; ++i) {
      s.site[count] = begin + i;
      count += static_cast<int32_t>(keep[i]);
    }
  }
  return count;
}

// Keeps the corners among the sites; returns their number. The products are integers below 2^49, so doubles hold them.
UF_INLINE int32_t hull_corners(const uint32_t* __restrict cost, int32_t count, const HullScratch& s) {
  int32_t top = -1;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t j = s.site[i];
    const double x = j, height = cost[j] + x * x;
    for (; top > 0; --top) {
      const double here = s.site[top], before = s.site[top - 1];
      if ((s.height[top] - s.height[top - 1]) * (x - here) < (height - s.height[top]) * (here - before)) break;
    }
    ++top;
    s.site[top] = j;
    s.height[top] = height;
  }
  return top + 1;
}

// out[x] <- min(out[x], d(x)) for lo <= x < hi, and maybe d of a site for some x behind. `cost` has its margins, `out` the
// room of padded(n).
UF_INLINE void hull_distances(const uint32_t* __restrict cost, int32_t n, int32_t lo, int32_t hi, const HullScratch& s,
                              uint32_t* __restrict out) {
  constexpr uint32_t kLanes = 16;
  const int32_t count = hull_corners(cost, below_chords(cost, n, s), s);
  // From here on a corner is nearer than the one before; see Axis<int32_t>::crossing for the rounding.
  const double low = lo - 1, high = hi - 1;
  for (int32_t k = 1; k < count; ++k) {
    const double crossing = (s.height[k] - s.height[k - 1]) / (2.0 * (s.site[k] - s.site[k - 1]));
    s.start[k] = static_cast<int32_t>(std::min(std::max(crossing, low), high) + 1.0);
  }
  if (count > 0) s.start[0] = lo;
  for (int32_t k = 0; k < count; ++k) {
    const int32_t end = k + 1 < count ? s.start[k + 1] : hi, site = s.site[k];
    const uint32_t least = cost[site];
    for (int32_t x = s.start[k]; x < end; x += static_cast<int32_t>(kLanes)) {
      uint32_t* __restrict to = out + x;
      const uint32_t from = static_cast<uint32_t>(x - site);
      UF_INDEPENDENT
      for (uint32_t i = 0; i < kLanes; ++i) to[i] = std::min(to[i], least + (from + i) * (from + i));
    }
  }
}

}  // namespace uf
