// scan_labels down the columns, then one pass over the rows that finds both distances (common/two_nearest.h) and turns
// them into the weight at once. Where d1 + d2 exceeds kBorderReach sigma the term vanishes, so cells farther away in
// their column than that are left out of a row.
#include "cpu/weight_map.h"

#include <vector>

#include "common/border_weight.h"
#include "common/macros.h"
#include "common/two_nearest.h"
#include "cpu/label_scan.h"
#include "cpu/line_scratch.h"

namespace uf {
namespace {

struct RowWeights {
  float background, cells;
};

struct Rows {
  LabelPlanes planes;
  int64_t height, width;
  int32_t limit;  // steps from which on a cell is too far
  BorderTerm border;
  bool inside;
  const RowWeights* weights;  // one an image
  float* out;
};

template <class Cost>
UF_INLINE void weigh_rows(const Rows& r, int64_t begin, int64_t end, const LineScratch<Cost>& s) {
  const int32_t n = static_cast<int32_t>(r.width);
  const Axis<Cost> axis;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = row * r.width;
    const int32_t* __restrict steps1 = r.planes.steps1 + offset;
    const RowWeights weights = r.weights[row / r.height];
    steps_to_costs(axis, steps1, 1, r.limit, n, s.cost1);
    steps_to_costs(axis, r.planes.steps2 + offset, 1, r.limit, n, s.cost2);
    const TwoCandidates<Cost> line{s.cost1, s.cost2, r.planes.label1 + offset, nullptr};
    two_nearest_line<false>(axis, line, n, s.first, s.second, s.d1, s.d2, static_cast<int32_t*>(nullptr),
                            static_cast<int32_t*>(nullptr));
    float* __restrict out = r.out + offset;
    const Cost* __restrict d1 = s.d1;
    const Cost* __restrict d2 = s.d2;
    for (int32_t x = 0; x < n; ++x) {
      const bool cell = steps1[x] == 0;
      const float term = r.border(static_cast<float>(d1[x]), static_cast<float>(d2[x]));
      const bool counts = (r.inside || !cell) && d2[x] < Axis<Cost>::far;
      out[x] = (cell ? weights.cells : weights.background) + (counts ? term : 0.0f);
    }
  }
}

UF_MULTIVERSION void weigh_rows_of(const Rows& r, int64_t b, int64_t e, const LineScratch<int32_t>& s) {
  weigh_rows(r, b, e, s);
}
UF_MULTIVERSION void weigh_rows_of(const Rows& r, int64_t b, int64_t e, const LineScratch<double>& s) {
  weigh_rows(r, b, e, s);
}

UF_MULTIVERSION int64_t count_cell_pixels(const int32_t* steps, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += steps[i] == 0;
  return count;
}

// Each class present weighs pixels / (classes present * its pixels), so the mean over the image is 1.
RowWeights balance(int64_t cells, int64_t pixels) {
  if (cells == 0 || cells == pixels) return {1.0f, 1.0f};
  const double half = 0.5 * static_cast<double>(pixels);
  return {static_cast<float>(half / static_cast<double>(pixels - cells)),
          static_cast<float>(half / static_cast<double>(cells))};
}

template <class Cost>
BadLabel run(const DistanceGrid& grid, const void* labels, Element type, const WeightMapOptions& options, float* out,
         const Parallel& parallel) {
  const int64_t at_once = images_at_once(grid), pixels = grid.pixels(), count = at_once * pixels;
  const auto planes = std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(3 * count));
  std::vector<RowWeights> weights(static_cast<size_t>(at_once), {options.class_weights[0], options.class_weights[1]});
  const double reach = std::min(kBorderReach * options.sigma + 1, static_cast<double>(kNoSteps));
  Rows rows{LabelPlanes{planes.get(), planes.get() + count, planes.get() + 2 * count, nullptr},
            grid.scan,
            grid.last,
            static_cast<int32_t>(reach),
            BorderTerm(options.w0, options.sigma),
            options.inside,
            weights.data(),
            nullptr};
  const LineScratches<Cost> scratch(Pieces(at_once * grid.scan, parallel.threads()).count, grid.last, false);
  for (int64_t image = 0; image < grid.batch; image += at_once) {
    const int64_t images = std::min(at_once, grid.batch - image), offset = image * pixels;
    const BadLabel bad =
        scan_labels(grid, images, static_cast<const char*>(labels) + offset * element_size(type), type, rows.planes,
                parallel);
    if (bad.found) return bad;
    if (options.balanced) {
      parallel(images, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t cells = count_cell_pixels(rows.planes.steps1 + i * pixels, pixels);
          weights[static_cast<size_t>(i)] = balance(cells, pixels);
        }
      });
    }
    rows.out = out + offset;
    Pieces(images * grid.scan, parallel.threads()).run(parallel, [&](int64_t p, int64_t b, int64_t e) {
      weigh_rows_of(rows, b, e, scratch[p]);
    });
  }
  return {};
}

}  // namespace

BadLabel weight_map(const DistanceGrid& grid, const void* labels, Element type, const WeightMapOptions& options, float* out,
                const Parallel& parallel) {
  if (grid.batch * grid.pixels() == 0) return {};
  if (grid.integral()) {
    return run<int32_t>(grid, labels, type, options, out, parallel);
  }
  return run<double>(grid, labels, type, options, out, parallel);
}

}  // namespace uf
