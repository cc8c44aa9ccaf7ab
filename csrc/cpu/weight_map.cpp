// scan_labels down the columns, then one pass over the rows that finds both distances and turns them into the weight at
// once. Where d1 + d2 exceeds kBorderReach sigma the term vanishes, so cells farther away than that are left out. The rows
// are done in one of two ways:
//   small sigma   each pixel looks at the columns to its left and right in turn, many pixels abreast in vector registers,
//                 until the next column is farther away than what the block of pixels still needs to know
//   large sigma   the lower envelopes of common/two_nearest.h, whose time does not depend on the reach
#include "cpu/weight_map.h"

#include <vector>

#include "common/border_weight.h"
#include "common/macros.h"
#include "common/two_nearest.h"
#include "cpu/huge_pages.h"
#include "cpu/label_scan.h"
#include "cpu/line_scratch.h"

namespace uf {
namespace {

struct Rows {
  LabelPlanes planes;
  int64_t height, width;
  double reach;  // pixels; no term where d1 + d2 is larger
  BorderTerm border;
  bool inside;
  const ClassWeights* weights;  // one an image
  float* out;

  // Steps from which on a cell is too far.
  int32_t limit() const { return static_cast<int32_t>(std::min(reach + 1, static_cast<double>(kNoSteps))); }
};

template <class Cost>
UF_INLINE void write_weights(const Rows& r, int64_t row, const Cost* __restrict d1, const Cost* __restrict d2, Cost far) {
  const ClassWeights weights = r.weights[row / r.height];
  const int32_t* __restrict steps1 = r.planes.steps1 + row * r.width;
  float* __restrict out = r.out + row * r.width;
  const BorderTerm border = r.border;
  const int32_t lowest = r.inside ? 0 : 1;  // steps to a cell from which on the border term counts
#pragma GCC ivdep
  for (int64_t x = 0; x < r.width; ++x) {
    const int32_t steps = steps1[x];
    const Cost squared2 = d2[x];
    const float term = border(static_cast<float>(d1[x]), static_cast<float>(squared2));
    const float near = squared2 < far ? term : 0.0f;
    const float counted = steps >= lowest ? near : 0.0f;
    out[x] = (steps == 0 ? weights.cells : weights.background) + counted;
  }
}

template <class Cost>
UF_INLINE void envelope_rows(const Rows& r, int64_t begin, int64_t end, const LineScratch<Cost>& s) {
  const int32_t n = static_cast<int32_t>(r.width);
  const Axis<Cost> axis;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t offset = row * r.width;
    steps_to_costs(axis, r.planes.steps1 + offset, 1, r.limit(), n, s.cost1);
    steps_to_costs(axis, r.planes.steps2 + offset, 1, r.limit(), n, s.cost2);
    const TwoCandidates<Cost> line{s.cost1, s.cost2, r.planes.label1 + offset, nullptr};
    two_nearest_line<false>(axis, line, n, s.first, s.second, s.d1, s.d2, static_cast<int32_t*>(nullptr),
                            static_cast<int32_t*>(nullptr));
    write_weights(r, row, s.d1, s.d2, Axis<Cost>::far);
  }
}

UF_MULTIVERSION void envelope_rows_of(const Rows& r, int64_t b, int64_t e, const LineScratch<int32_t>& s) {
  envelope_rows(r, b, e, s);
}
UF_MULTIVERSION void envelope_rows_of(const Rows& r, int64_t b, int64_t e, const LineScratch<double>& s) {
  envelope_rows(r, b, e, s);
}

constexpr int32_t kMaxWindow = 64;      // steps; beyond, envelopes are faster
constexpr int32_t kFar = 1 << 28;       // a squared distance of nothing, which stays one when steps are added
constexpr int64_t kBlock = 64;          // pixels that look abreast
constexpr int32_t kStepsPerCheck = 4;   // columns to each side before a block asks whether it has seen enough

// One row between two margins of nothing, so that looking left and right needs no care; rounded up to whole blocks.
struct Window {
  int32_t reach;  // columns to look at, to each side
  int64_t blocks;
  int32_t *cost1, *cost2, *label, *d1, *d2;

  static int64_t padded(int64_t width, int32_t reach) { return (width + kBlock - 1) / kBlock * kBlock + 2 * reach; }
};

UF_INLINE int32_t near_square(int32_t steps, int32_t limit) {
  const int32_t kept = steps < limit ? steps : 0;
  return steps < limit ? kept * kept : kFar;
}

UF_INLINE void load_row(const Rows& r, int64_t row, const Window& w) {
  const int64_t margin = w.reach, behind = w.blocks * kBlock + w.reach;
  const int32_t limit = r.limit();
  const int32_t* __restrict label = r.planes.label1 + row * r.width;
  const int32_t* __restrict steps1 = r.planes.steps1 + row * r.width;
  const int32_t* __restrict steps2 = r.planes.steps2 + row * r.width;
  int32_t* __restrict to_label = w.label + margin;
  int32_t* __restrict cost1 = w.cost1 + margin;
  int32_t* __restrict cost2 = w.cost2 + margin;
#pragma GCC ivdep
  for (int64_t x = 0; x < r.width; ++x) {
    to_label[x] = label[x];
    cost1[x] = near_square(steps1[x], limit);
    cost2[x] = near_square(steps2[x], limit);
  }
  for (int64_t x = -margin; x < 0; ++x) to_label[x] = 0, cost1[x] = cost2[x] = kFar;
  for (int64_t x = r.width; x < behind; ++x) to_label[x] = 0, cost1[x] = cost2[x] = kFar;
}

// The largest squared distance that could still change a weight of the block: of d2, for the pixels that matter.
UF_INLINE int32_t open_distance(const int32_t* __restrict cost1, const int32_t* __restrict d1,
                                const int32_t* __restrict d2, bool inside, int32_t nearest_limit) {
  int32_t open = 0;
  for (int64_t i = 0; i < kBlock; ++i) {
    const bool matters = (inside || cost1[i] != 0) && d1[i] <= nearest_limit;
    open = std::max(open, matters ? d2[i] : 0);
  }
  return open;
}

UF_INLINE void look_around(const Window& w, int64_t begin, bool inside, double reach) {
  const int32_t* __restrict cost1 = w.cost1 + w.reach + begin;
  const int32_t* __restrict cost2 = w.cost2 + w.reach + begin;
  const int32_t* __restrict label = w.label + w.reach + begin;
  int32_t d1[kBlock], d2[kBlock], nearest[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) d1[i] = cost1[i], d2[i] = cost2[i], nearest[i] = label[i];
  // d1 <= d2: once half the reach has been searched, pixels without a cell that near are done
  const int32_t half = static_cast<int32_t>(reach / 2);
  const int32_t half_square = static_cast<int32_t>(reach * reach / 4);
  for (int32_t k = 1; k <= w.reach;) {
    if (k * k >= open_distance(cost1, d1, d2, inside, k > half ? half_square : kFar)) break;
    for (const int32_t stop = std::min(k + kStepsPerCheck, w.reach + 1); k < stop; ++k) {
      for (int64_t i = 0; i < kBlock; ++i) {
        NearestTwo<int32_t> two{d1[i], nearest[i], d2[i]};
        two.offer(cost1[i - k] + k * k, label[i - k], cost2[i - k] + k * k);
        two.offer(cost1[i + k] + k * k, label[i + k], cost2[i + k] + k * k);
        d1[i] = two.d1;
        nearest[i] = two.label;
        d2[i] = two.d2;
      }
    }
  }
  for (int64_t i = 0; i < kBlock; ++i) w.d1[begin + i] = d1[i], w.d2[begin + i] = d2[i];
}

UF_MULTIVERSION void window_rows(const Rows& r, int64_t begin, int64_t end, const Window& w) {
  for (int64_t row = begin; row < end; ++row) {
    load_row(r, row, w);
    for (int64_t block = 0; block < w.blocks; ++block) look_around(w, block * kBlock, r.inside, r.reach);
    write_weights(r, row, w.d1, w.d2, kFar);
  }
}

UF_MULTIVERSION int64_t count_cell_pixels(const int32_t* steps, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += steps[i] == 0;
  return count;
}

// The pass over `images` images' rows.
template <class Cost>
class EnvelopePass {
 public:
  EnvelopePass(const Rows& rows, int64_t pieces) : scratch_(pieces, rows.width, false) {}
  void operator()(const Rows& rows, int64_t piece, int64_t begin, int64_t end) const {
    envelope_rows_of(rows, begin, end, scratch_[piece]);
  }

 private:
  LineScratches<Cost> scratch_;
};

class WindowPass {
 public:
  WindowPass(const Rows& rows, int64_t pieces)
      : reach_(rows.limit() - 1),
        size_(Window::padded(rows.width, reach_)),
        scratch_(std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(pieces * 5 * size_))) {}
  void operator()(const Rows& rows, int64_t piece, int64_t begin, int64_t end) const {
    int32_t* s = scratch_.get() + piece * 5 * size_;
    const int64_t blocks = (rows.width + kBlock - 1) / kBlock;
    window_rows(rows, begin, end, {reach_, blocks, s, s + size_, s + 2 * size_, s + 3 * size_, s + 4 * size_});
  }

 private:
  int32_t reach_;
  int64_t size_;
  std::unique_ptr<int32_t[]> scratch_;
};

template <class RowPass>
BadLabel run(const DistanceGrid& grid, const void* labels, DType type, const WeightMapOptions& options, float* out,
             const Parallel& parallel) {
  const int64_t at_once = images_at_once(grid), pixels = grid.pixels(), count = at_once * pixels;
  const auto planes = fresh_array<int32_t>(3 * count);
  std::vector<ClassWeights> weights(static_cast<size_t>(at_once), {options.class_weights[0], options.class_weights[1]});
  Rows rows{LabelPlanes{planes.get(), planes.get() + count, planes.get() + 2 * count, nullptr},
            grid.scan,
            grid.last,
            kBorderReach * options.sigma,
            BorderTerm(options.w0, options.sigma),
            options.inside,
            weights.data(),
            nullptr};
  const RowPass pass(rows, Pieces(at_once * grid.scan, parallel.threads()).count);
  for (int64_t image = 0; image < grid.batch; image += at_once) {
    const int64_t images = std::min(at_once, grid.batch - image), offset = image * pixels;
    const void* first = static_cast<const char*>(labels) + offset * element_size(type);
    const BadLabel bad = scan_labels(grid, images, first, type, rows.planes, parallel);
    if (bad.found) return bad;
    if (options.balanced) {
      parallel(images, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t cells = count_cell_pixels(rows.planes.steps1 + i * pixels, pixels);
          weights[static_cast<size_t>(i)] = balanced_weights(cells, pixels);
        }
      });
    }
    rows.out = out + offset;
    Pieces(images * grid.scan, parallel.threads()).run(parallel, [&](int64_t p, int64_t b, int64_t e) {
      pass(rows, p, b, e);
    });
  }
  return {};
}

}  // namespace

BadLabel weight_map(const DistanceGrid& grid, const void* labels, DType type, const WeightMapOptions& options,
                    float* out, const Parallel& parallel) {
  if (grid.batch * grid.pixels() == 0) return {};
  if (kBorderReach * options.sigma < kMaxWindow) {
    return run<WindowPass>(grid, labels, type, options, out, parallel);
  }
  if (grid.integral()) return run<EnvelopePass<int32_t>>(grid, labels, type, options, out, parallel);
  return run<EnvelopePass<double>>(grid, labels, type, options, out, parallel);
}

}  // namespace uf
