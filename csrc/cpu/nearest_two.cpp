// Three steps (images skip the second): scan_labels along the first axis; lines along the middle axis, keeping labels
// with the two squared distances; lines along the last axis, whose squared distances go out as roots. The algorithm of
// the lines and why it is exact stand in common/two_nearest.h.
#include "cpu/nearest_two.h"

#include "common/macros.h"
#include "common/two_nearest.h"
#include "cpu/huge_pages.h"
#include "cpu/label_scan.h"
#include "cpu/line_scratch.h"

namespace uf {
namespace {

// What the passes along lines read and write. cost1, cost2 exist only for volumes, after the middle pass.
template <class Cost>
struct Volume : GridAxes<Cost> {
  LabelPlanes planes;
  Cost *cost1, *cost2;
};

// The lines of one (middle x last) plane along its middle axis, from steps of the scan to costs.
template <class Cost>
UF_INLINE void middle_lines(const Volume<Cost>& v, int64_t begin, int64_t end, const LineScratch<Cost>& s) {
  const int32_t n = static_cast<int32_t>(v.middle_length);
  for (int64_t line = begin; line < end; ++line) {
    const int64_t stride = v.last_length;
    const int64_t offset = line / stride * n * stride + line % stride;
    steps_to_costs(v.scan, v.planes.steps1 + offset, stride, kNoSteps, n, s.cost1);
    steps_to_costs(v.scan, v.planes.steps2 + offset, stride, kNoSteps, n, s.cost2);
    for (int32_t i = 0; i < n; ++i) {
      s.label1[i] = v.planes.label1[offset + i * stride];
      s.label2[i] = v.planes.label2[offset + i * stride];
    }
    two_nearest_line<true>(v.middle, TwoCandidates<Cost>{s.cost1, s.cost2, s.label1, s.label2}, n, s.first, s.second,
                           s.d1, s.d2, s.near1, s.near2);
    for (int32_t i = 0; i < n; ++i) {
      v.cost1[offset + i * stride] = s.d1[i];
      v.cost2[offset + i * stride] = s.d2[i];
      v.planes.label1[offset + i * stride] = s.near1[i];
      v.planes.label2[offset + i * stride] = s.near2[i];
    }
  }
}

template <class Cost>
UF_INLINE void last_lines(const Volume<Cost>& v, int64_t begin, int64_t end, const LineScratch<Cost>& s, float* d1,
                          float* d2) {
  const int32_t n = static_cast<int32_t>(v.last_length);
  for (int64_t line = begin; line < end; ++line) {
    const int64_t offset = line * n;
    TwoCandidates<Cost> candidates{s.cost1, s.cost2, v.planes.label1 + offset, nullptr};
    if (v.cost1) {
      candidates.cost1 = v.cost1 + offset;
      candidates.cost2 = v.cost2 + offset;
    } else {
      steps_to_costs(v.scan, v.planes.steps1 + offset, 1, kNoSteps, n, s.cost1);
      steps_to_costs(v.scan, v.planes.steps2 + offset, 1, kNoSteps, n, s.cost2);
    }
    two_nearest_line<false>(v.last, candidates, n, s.first, s.second, s.d1, s.d2, static_cast<int32_t*>(nullptr),
                            static_cast<int32_t*>(nullptr));
    write_distances(s.d1, n, v.scale, d1 + offset);
    write_distances(s.d2, n, v.scale, d2 + offset);
  }
}

UF_MULTIVERSION void middle_lines_of(const Volume<int32_t>& v, int64_t b, int64_t e, const LineScratch<int32_t>& s) {
  middle_lines(v, b, e, s);
}
UF_MULTIVERSION void middle_lines_of(const Volume<double>& v, int64_t b, int64_t e, const LineScratch<double>& s) {
  middle_lines(v, b, e, s);
}
UF_MULTIVERSION void last_lines_of(const Volume<int32_t>& v, int64_t b, int64_t e, const LineScratch<int32_t>& s,
                                   float* d1, float* d2) {
  last_lines(v, b, e, s, d1, d2);
}
UF_MULTIVERSION void last_lines_of(const Volume<double>& v, int64_t b, int64_t e, const LineScratch<double>& s,
                                   float* d1, float* d2) {
  last_lines(v, b, e, s, d1, d2);
}

template <class Cost>
BadLabel run(const DistanceGrid& grid, const void* labels, DType type, float* d1, float* d2, const Parallel& parallel) {
  const bool volume = grid.middle > 1;
  const int64_t at_once = images_at_once(grid), pixels = grid.pixels(), count = at_once * pixels;
  const auto planes = fresh_array<int32_t>(count * (volume ? 4 : 3));
  const auto costs = fresh_array<Cost>(volume ? 2 * count : 0);
  Volume<Cost> v{GridAxes<Cost>(grid),
                 LabelPlanes{planes.get(), planes.get() + count, planes.get() + 2 * count,
                             volume ? planes.get() + 3 * count : nullptr},
                 volume ? costs.get() : nullptr,
                 volume ? costs.get() + count : nullptr};
  const Pieces middle_pieces(volume ? at_once * grid.scan * grid.last : 0, parallel.threads());
  const Pieces last_pieces(at_once * grid.scan * grid.middle, parallel.threads());
  const LineScratches<Cost> scratch(std::max(middle_pieces.count, last_pieces.count),
                                    std::max(grid.middle, grid.last), volume);
  for (int64_t image = 0; image < grid.batch; image += at_once) {
    const int64_t images = std::min(at_once, grid.batch - image), offset = image * pixels;
    const BadLabel bad =
        scan_labels(grid, images, static_cast<const char*>(labels) + offset * element_size(type), type, v.planes, parallel);
    if (bad.found) return bad;
    if (volume) {
      Pieces(images * grid.scan * grid.last, parallel.threads()).run(parallel, [&](int64_t p, int64_t b, int64_t e) {
        middle_lines_of(v, b, e, scratch[p]);
      });
    }
    Pieces(images * grid.scan * grid.middle, parallel.threads()).run(parallel, [&](int64_t p, int64_t b, int64_t e) {
      last_lines_of(v, b, e, scratch[p], d1 + offset, d2 + offset);
    });
  }
  return {};
}

}  // namespace

BadLabel nearest_two(const DistanceGrid& grid, const void* labels, DType type, float* d1, float* d2,
                 const Parallel& parallel) {
  if (grid.batch * grid.pixels() == 0) return {};
  if (grid.integral()) {
    return run<int32_t>(grid, labels, type, d1, d2, parallel);
  }
  return run<double>(grid, labels, type, d1, d2, parallel);
}

}  // namespace uf
