// What the distance kernels of the CPU share: how the work and the workspace of one call are divided.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/distance_grid.h"
#include "common/parabola.h"
#include "cpu/parallel.h"

namespace uf {

// Labels are positive int32 numbers; what else was found, if anything.
struct BadLabel {
  bool found = false;
  int64_t value = 0;
};

// Images that share one workspace: many small ones keep all threads busy, one large one bounds the memory.
inline int64_t images_at_once(const DistanceGrid& grid) {
  constexpr int64_t kPixels = int64_t{1} << 20;
  return std::clamp<int64_t>(kPixels / std::max<int64_t>(grid.pixels(), 1), 1, std::max<int64_t>(grid.batch, 1));
}

// The lines of a scan are cut into strips whose workspace stays in a core's cache between the way down and the way up. Where
// the lines are too long for that, strips are wide enough to stream: narrow ones of an image whose rows are a power of two
// apart would fall into a few sets of the cache, and each of their rows into a page of its own.
inline int64_t strip_width(const DistanceGrid& grid, int64_t bytes_per_pixel) {
  constexpr int64_t kBytes = int64_t{1} << 20, kStep = 64, kStreamed = 256;
  const int64_t width = kBytes / (grid.scan * bytes_per_pixel) / kStep * kStep;
  return std::min(width < kStep ? kStreamed : std::min<int64_t>(width, 1024), grid.lanes());
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
