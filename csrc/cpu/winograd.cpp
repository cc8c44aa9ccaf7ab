// Plans and parallel loops of Winograd's convolution; the arithmetic is in winograd_isa.h. Results do not depend on the number
// of threads: every sum runs over the same numbers in the same order however the work is divided.
#include "cpu/winograd.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>

#include "cpu/huge_pages.h"
#include "cpu/winograd_kernels.h"

namespace uf::winograd {
namespace {

const Kernels& kernels_of(Level level) {
  const Kernels* found = level == Level::kAvx512 ? avx512_kernels() : level == Level::kAvx2 ? avx2_kernels() : nullptr;
  return found ? *found : *plain_kernels();
}

int64_t tiles_along(int64_t pixels) { return (pixels + kOut - 1) / kOut; }

int64_t sum_of(const std::vector<int64_t>& numbers) { return std::accumulate(numbers.begin(), numbers.end(), int64_t{0}); }

int64_t filled_sum(const std::vector<int64_t>& channels, int64_t lanes) {
  return std::accumulate(channels.begin(), channels.end(), int64_t{0},
                         [&](int64_t sum, int64_t count) { return sum + up_to(count, lanes); });
}

template <class Map>
std::vector<int64_t> channels_of(const std::vector<Map>& maps) {
  std::vector<int64_t> channels;
  for (const Map& map : maps) channels.push_back(map.channels);
  return channels;
}

// Memory that a thread keeps from one call to the next: fresh pages cost more than what is computed in them.
class Kept {
 public:
  // At least so many floats, on a line of the cache.
  float* get(int64_t floats) {
    constexpr int64_t kAlign = 16;
    if (size_ < floats + kAlign) {
      memory_ = fresh_array<float>(floats + kAlign);
      size_ = floats + kAlign;
      std::fill_n(memory_.get(), size_, 0.0f);
    }
    const auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory_.get()));
    return memory_.get() + (up_to(address, 64) - address) / 4;
  }

 private:
  std::unique_ptr<float[]> memory_;
  int64_t size_ = 0;
};

// Bytes of an output that is written past the caches. Far fewer than where a copy begins to gain by it (past_caches in copy_rows.h):
// here stores are few between products, and what they leave in the caches is weights and transforms. A network of 32 channels on
// 380 x 380 pixels takes 85.4 ms, from 4 MB on 87.6, from 16 MB on 91.4, without such stores 93.7 (AMD EPYC, Zen 4, one thread).
constexpr int64_t kStreams = 1 << 19;
constexpr int64_t kMostKept = 1 << 24;  // floats of weights; more are given back
// Transformed weights of at most so many floats are made as a whole; so are larger ones that many blocks of tiles read. Others
// are made slice by slice in the cache, for blocks of so many tiles, since to read them from memory takes longer.
constexpr int64_t kMostWhole = 3 << 19, kMostWholeOfMany = 1 << 23, kManyBlocks = 2, kTilesOfMade = 112;

float* scratch(int64_t floats) {
  static thread_local Kept kept;
  return kept.get(floats);
}

// Panels of the output channels of all targets.
std::vector<PanelChannels> panels_of(const std::vector<int64_t>& out_channels, int64_t lanes) {
  std::vector<PanelChannels> panels;
  int64_t first = 0;
  for (const int64_t count : out_channels) {
    for (int64_t c = 0; c < count; c += 2 * lanes)
      panels.push_back({first + c, count - c, count - c > lanes ? 2 : 1});
    first += count;
  }
  return panels;
}

// Where the tiles of an image add to each other's pixels, one block has them all; `together` is their number, else 1.
Blocking blocking_for(const Kernels& kernels, int64_t depth, int64_t panels, int64_t tiles, int64_t together, int64_t threads,
                      int64_t out_bytes, bool makes_weights) {
  // measured: small blocks keep both transformed maps, and the next block's input, in the caches; with many channels the weights,
  // which are read or made once a block, count for more, and few tiles are divided evenly
  const int64_t short_rows = std::min(8, kernels.max_rows), most = 4 * kernels.max_rows;
  const bool few = makes_weights || (depth > 192 && depth <= 512 && tiles <= 2 * most);
  const int64_t usual = depth > 192 ? 4 * short_rows : depth > 32 ? short_rows : 2 * short_rows;
  const int64_t wished = makes_weights ? kTilesOfMade : few ? most : usual;
  const int64_t units = tiles / together, at_once = std::max<int64_t>(1, wished / together);
  int64_t blocks = (units + at_once - 1) / at_once;
  if (blocks < 4 * threads && !(makes_weights && blocks == 1)) blocks = std::min(units, up_to(blocks, threads));
  const int64_t count = (units + blocks - 1) / blocks * together;
  const int64_t longest = few ? kernels.max_rows : short_rows, groups = (count + longest - 1) / longest;
  const int64_t rows = (count + groups - 1) / groups;
  return {count, rows, out_bytes > kStreams, panels == 1};
}

// Taps (out, in, 3, 3) as panels [two vectors of output channels][tap][input channel][lane], and the bias, or zeros, in
// panels.
struct ThinWeights {
  const float *taps, *bias;
};

ThinWeights thin_weights(const Kernels& kernels, const Taps& taps, const float* bias, int64_t in, int64_t out) {
  static thread_local Kept kept;
  const int64_t panel = 2 * kernels.lanes, width = up_to(out, panel);
  float* weights = kept.get((9 * in + 1) * width);
  std::fill_n(weights, (9 * in + 1) * width, 0.0f);
  for (int64_t o = 0; o < out; ++o)
    for (int64_t tap = 0; tap < 9; ++tap)
      for (int64_t c = 0; c < in; ++c)
        weights[o / panel * 9 * in * panel + (tap * in + c) * panel + o % panel] =
            taps.data[o * taps.out_step + c * taps.in_step + tap / 3 * taps.y_step + tap % 3 * taps.x_step];
  if (bias) std::copy_n(bias, out, weights + 9 * in * width);
  return {weights, weights + 9 * in * width};
}

void convolve_thin(const Kernels& kernels, const Convolution& work, const Taps& taps, const Parallel& parallel) {
  const int64_t in = sum_of(channels_of(work.sources)), out = work.targets[0].channels;
  const int64_t rows = work.batch * work.out_height(), row = 18 * work.out_width() * in * out;  // operations
  const ThinWeights weights = thin_weights(kernels, taps, work.bias, in, out);
  const bool streams = rows * work.out_width() * out * 4 > kStreams;
  parallel(rows, (1 << 18) / (row + 1) + 1, [&](int64_t begin, int64_t end) {
    kernels.thin(work, in, weights.taps, weights.bias, begin, end, streams, scratch(3 * (work.width + 2 * work.padding) * in));
  });
}

// Each chunk of rows has sums of its own, which are added up in one order.
void thin_tap_gradient(const Kernels& kernels, const TapGradient& work, const Parallel& parallel) {
  static thread_local Kept kept;
  const int64_t in = sum_of(channels_of(work.sources)), out = work.gradient.channels, group = kernels.thin_group;
  const int64_t out_width = work.width + 2 * work.padding - 2, rows = work.batch * (work.height + 2 * work.padding - 2);
  const int64_t chunks = (rows + kThinRows - 1) / kThinRows, step = (9 * in + 1) * up_to(out, group);
  float* sums = kept.get(chunks * step);
  parallel(chunks, 1, [&](int64_t begin, int64_t end) {
    kernels.thin_taps(work, in, begin, end, sums, scratch(out_width * group + 3 * (work.width + 2 * work.padding) * in));
  });
  for (int64_t o = 0; o < out; ++o)
    for (int64_t k = 0; k <= 9 * in; ++k) {
      const float* first = sums + o / group * (9 * in + 1) * group + k * group + o % group;
      double sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += first[chunk * step];
      const int64_t tap = k / in, c = k % in;
      if (k < 9 * in)
        work.taps[o * work.out_step + c * work.in_step + tap / 3 * work.y_step + tap % 3 * work.x_step] = static_cast<float>(sum);
      else if (work.bias)
        work.bias[o] = static_cast<float>(sum);
    }
}

}  // namespace

Level best_level() {
  const char* wish = std::getenv("UNET_FAST_CPU_LEVEL");
  const bool plain = wish && std::strcmp(wish, "plain") == 0, avx2 = wish && std::strcmp(wish, "avx2") == 0;
  if (!plain && !avx2 && avx512_kernels()) return Level::kAvx512;
  return !plain && avx2_kernels() ? Level::kAvx2 : Level::kPlain;
}

int64_t weight_floats(Level level, const std::vector<int64_t>& in_channels, const std::vector<int64_t>& out_channels) {
  const int64_t lanes = kernels_of(level).lanes, depth = filled_sum(in_channels, lanes);
  int64_t floats = 0;
  for (const PanelChannels& panel : panels_of(out_channels, lanes)) floats += panel_floats(depth, panel.vectors * lanes);
  return floats;
}

void transform_weights(Level level, const Taps& taps, const std::vector<int64_t>& in_channels,
                       const std::vector<int64_t>& out_channels, float* out, const Parallel& parallel) {
  const Kernels& kernels = kernels_of(level);
  const int64_t lanes = kernels.lanes, depth = filled_sum(in_channels, lanes);
  const std::vector<PanelChannels> panels = panels_of(out_channels, lanes);
  parallel(static_cast<int64_t>(panels.size()), std::max<int64_t>(1, 256 / (depth + 1)), [&](int64_t begin, int64_t end) {
    // all panels in front of it have two vectors, or are the last of their target
    float* to = out;
    for (int64_t p = 0; p < end; ++p) {
      const PanelChannels& panel = panels[static_cast<size_t>(p)];
      const int64_t width = panel.vectors * lanes;
      for (int64_t first = 0; p >= begin && first < depth; first += kSlice)
        kernels.weights(taps, in_channels, first, std::min(depth, first + kSlice), panel, to + panel_floats(first, width));
      to += panel_floats(depth, width);
    }
  });
}

namespace {

struct Tiling {
  bool transposed;
  int64_t y, x;

  int64_t of_image() const { return y * x; }
};

Tiling tiles_of(const Convolution& work, bool transposed) {
  return {transposed, tiles_along(transposed ? work.height : work.out_height()),
          tiles_along(transposed ? work.width : work.out_width())};
}

// The transposed form where it has fewer tiles. Those of an image are one block, so they must not be many; and where the output
// is larger than the input, nothing comes behind it.
Tiling best_tiling(const Convolution& work) {
  const Tiling forward = tiles_of(work, false), transposed = tiles_of(work, true);
  const bool fits = work.padding == 2 && !work.bias && work.activation == Activation::kNone && !work.pool && !work.first;
  return fits && transposed.of_image() < forward.of_image() && transposed.of_image() <= kTilesOfMade ? transposed : forward;
}

// `weights` are transformed, or null: then they are made of the taps for each block of tiles. The taps are turned where the form
// is the transposed one.
void convolve(const Kernels& kernels, const Convolution& work, const Tiling& tiling, const float* weights, const Taps* taps,
              const Parallel& parallel) {
  const std::vector<int64_t> in_channels = channels_of(work.sources), out_channels = channels_of(work.targets);
  const int64_t lanes = kernels.lanes, depth = filled_sum(in_channels, lanes), channels = sum_of(out_channels);
  Run run = {&work, nullptr, {}, depth, tiling.y, tiling.x, weights ? nullptr : taps, &in_channels, nullptr, nullptr,
             tiling.transposed};
  if (const FirstLayer* first = work.first) {
    const ThinWeights thin = thin_weights(kernels, first->taps, first->bias, first->image.channels, in_channels[0]);
    run.first_weights = thin.taps;
    run.first_bias = thin.bias;
  }
  const int64_t tiles = work.batch * tiling.of_image();
  std::vector<Panel> panels;
  auto target = work.targets.begin();
  int64_t before = 0;  // channels of the targets in front of this one
  for (const PanelChannels& panel : panels_of(out_channels, lanes)) {
    for (; panel.first >= before + target->channels; ++target) before += target->channels;
    panels.push_back({panel, &*target, panel.first - before, weights, work.bias ? work.bias + panel.first : nullptr});
    if (weights) weights += panel_floats(depth, panel.vectors * lanes);
  }
  if (tiles == 0 || panels.empty()) return;
  run.panels = panels.data();
  const auto count = static_cast<int64_t>(panels.size());
  run.blocking = blocking_for(kernels, depth, count, tiles, tiling.transposed ? tiling.of_image() : 1, parallel.threads(),
                              work.batch * channels * work.out_height() * work.out_width() * 4, run.taps);
  // where there are fewer blocks than threads, several threads share one, each with panels of its own
  const int64_t blocks = (tiles + run.blocking.tiles - 1) / run.blocking.tiles;
  const int64_t shares = std::clamp<int64_t>(parallel.threads() / blocks, 1, count);
  parallel(blocks * shares, 1, [&](int64_t begin, int64_t end) {
    float* memory = scratch(run.scratch(kernels.lanes));
    if (shares == 1) {
      kernels.convolve(run, begin * run.blocking.tiles, std::min(tiles, end * run.blocking.tiles), 0, count, memory);
      return;
    }
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t block = unit / shares, share = unit % shares;
      kernels.convolve(run, block * run.blocking.tiles, std::min(tiles, (block + 1) * run.blocking.tiles),
                       count * share / shares, count * (share + 1) / shares, memory);
    }
  });
}

}  // namespace

void convolve(Level level, const Convolution& work, const float* weights, const Parallel& parallel) {
  convolve(kernels_of(level), work, tiles_of(work, false), weights, nullptr, parallel);
}

bool is_thin(const Convolution& work) {
  bool masked = false;
  for (const Source& source : work.sources) masked = masked || source.mask;
  return !masked && !work.pool && work.targets.size() == 1 && sum_of(channels_of(work.sources)) <= kThin;
}

void convolve(Level level, const Convolution& work, const Taps& taps, const Parallel& parallel) {
  if (is_thin(work)) {
    convolve_thin(kernels_of(level), work, taps, parallel);
    return;
  }
  const std::vector<int64_t> in_channels = channels_of(work.sources), out_channels = channels_of(work.targets);
  const Tiling tiling = best_tiling(work);
  const Taps used = tiling.transposed ? turned(taps) : taps;
  const int64_t floats = weight_floats(level, in_channels, out_channels), tiles = work.batch * tiling.of_image();
  if (floats > (tiles > kManyBlocks * kTilesOfMade ? kMostWholeOfMany : kMostWhole)) {
    convolve(kernels_of(level), work, tiling, nullptr, &used, parallel);
    return;
  }
  static thread_local Kept kept;
  Kept once;
  float* weights = (floats > kMostWhole ? once : kept).get(floats);
  transform_weights(level, used, in_channels, out_channels, weights, parallel);
  convolve(kernels_of(level), work, tiling, weights, nullptr, parallel);
}

namespace {

// The sums over tiles [first, end), in parts of run.room tiles: first all threads transform the tiles of a part, then each
// takes some blocks of taps and adds up their products.
void sum_tiles(const Kernels& kernels, TapRun run, int64_t first, int64_t end, int64_t units, const Parallel& parallel) {
  for (run.first = first; run.first < end; run.first += run.room) {
    run.count = std::min(run.room, end - run.first);
    run.adds = run.first > first;
    const int64_t chunk = run.first / kChunk;
    parallel((run.count + kChunk - 1) / kChunk, 1,
             [&](int64_t b, int64_t e) { kernels.tap_inputs(run, chunk + b, chunk + e); });
    parallel(units, 1, [&](int64_t b, int64_t e) { kernels.tap_products(run, b, e); });
  }
}

}  // namespace

// The tiles are divided into segments with sums of their own, which are added up at the end. Where there are enough for all
// threads each takes whole segments: what one thread transforms never has to reach another's cache, and none waits for
// another. Where there are not, the threads share each part of a segment. A part is as many tiles as the second-level cache
// holds the transforms of. Where the whole work is one part, as at the deep levels of a network, no sums are kept at all.
void tap_gradient(Level level, const TapGradient& work, const Parallel& parallel) {
  const Kernels& kernels = kernels_of(level);
  const int64_t lanes = kernels.lanes, out_height = work.height + 2 * work.padding - 2,
                out_width = work.width + 2 * work.padding - 2;
  TapRun run = {};
  run.work = &work;
  run.depth = filled_sum(channels_of(work.sources), lanes);
  run.width = up_to(work.gradient.channels, lanes);
  run.tiles_y = tiles_along(out_height);
  run.tiles_x = tiles_along(out_width);
  const int64_t tiles = work.batch * run.tiles_y * run.tiles_x, chunks = (tiles + kChunk - 1) / kChunk;
  if (tiles == 0) {
    // the gradient of nothing; steps of a dense tensor, so its numbers are one after the other
    std::fill_n(work.taps, 9 * sum_of(channels_of(work.sources)) * work.gradient.channels, 0.0f);
    if (work.bias) std::fill_n(work.bias, work.gradient.channels, 0.0f);
    return;
  }
  if (const int64_t in = sum_of(channels_of(work.sources)); in > 0 && in <= kThin) {
    thin_tap_gradient(kernels, work, parallel);
    return;
  }
  const int64_t blocks = run.width / kernels.tap_rows * ((run.depth + 2 * lanes - 1) / (2 * lanes));
  const int64_t block_floats = kPoints * kernels.tap_rows * 2 * lanes, sum_floats = blocks * block_floats;

  constexpr int64_t kPart = 1 << 17, kWhole = 3 << 20, kAllSums = 1 << 20;  // floats
  constexpr int64_t kSegments = 8, kSegmentChunks = 8;                     // most segments, and fewest chunks of one
  // of the shape alone, as the order of the sums depends on it
  int64_t wished = kSegments;
  while (wished > 1 && (wished * kSegmentChunks > chunks || wished * sum_floats > kAllSums)) wished /= 2;
  const int64_t segment = (chunks + wished - 1) / wished;  // in chunks
  const int64_t segments = (chunks + segment - 1) / segment, threads = parallel.threads();
  const int64_t turns = (segments + threads - 1) / threads;  // of each thread, if it takes whole segments
  const bool apart = segments > 1 && 7 * turns * threads <= 8 * segments;

  const int64_t floats = kPoints * (run.depth + run.width) * kChunk;  // of a chunk
  const bool whole = segments == 1 && floats * chunks <= kWhole && blocks >= 3 * threads && sum_floats > kPart;
  const int64_t in_cache = std::clamp<int64_t>(kPart / floats, 1, chunks) * (apart ? 1 : threads);
  const int64_t part = whole ? chunks : std::min(in_cache, segment);
  const bool one = part >= chunks;
  run.room = part * kChunk;
  run.segments = segments;
  run.segment_step = sum_floats;
  const int64_t in_floats = kPoints * run.in_step(), out_floats = kPoints * run.out_step();
  static thread_local Kept kept;
  float* sums = kept.get((one ? 0 : segments * sum_floats) + (work.bias ? chunks * run.width : 0));
  if (work.bias) {
    run.bias_sums = sums + (one ? 0 : segments * sum_floats);
    std::fill_n(run.bias_sums, chunks * run.width, 0.0f);
  }
  const auto sum_segments = [&](int64_t begin, int64_t end, const Parallel& inside) {
    TapRun part_run = run;
    part_run.in = scratch(in_floats + out_floats);
    part_run.out = part_run.in + in_floats;
    for (int64_t s = begin; s < end; ++s) {
      part_run.sums = one ? nullptr : sums + s * sum_floats;
      sum_tiles(kernels, part_run, s * segment * kChunk, std::min(tiles, (s + 1) * segment * kChunk), blocks * (one ? 1 : 3),
                inside);
    }
  };
  if (apart) {
    const Parallel alone(nullptr, 1);
    parallel(segments, 1, [&](int64_t begin, int64_t end) { sum_segments(begin, end, alone); });
  } else {
    sum_segments(0, segments, parallel);
  }
  if (!one) {
    run.sums = sums;
    parallel(blocks, 1, [&](int64_t begin, int64_t end) { kernels.tap_results(run, begin, end); });
  }
  if (work.bias)
    for (int64_t c = 0; c < work.gradient.channels; ++c) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += run.bias_sums[chunk * run.width + c];
      work.bias[c] = static_cast<float>(sum);
    }
}

void up_convolve(Level level, const UpConvolution& work, const Parallel& parallel) {
  const Kernels& kernels = kernels_of(level);
  const int64_t depth = work.source.channels, width = up_to(work.target.channels, 2 * kernels.lanes);
  const int64_t floats = 4 * depth * width;
  Kept once;
  float* panels = floats > kMostKept ? once.get(floats) : scratch(floats);  // which nobody else needs meanwhile
  parallel(depth, (1 << 14) / (width + 1) + 1,
           [&](int64_t begin, int64_t end) { kernels.up_weights(work, begin, end, panels); });
  const int64_t row = 8 * work.width * depth * width;  // operations
  parallel(work.batch * work.height, (1 << 18) / (row + 1) + 1,
           [&](int64_t begin, int64_t end) { kernels.up_convolve(work, panels, begin, end); });
}

}  // namespace uf::winograd
