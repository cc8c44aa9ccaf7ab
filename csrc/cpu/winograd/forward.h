// The convolution: the transforms of the input, their product with those of the weights, and the transform of the output.
#pragma once

#include "cpu/winograd/first_layer.h"
#include "cpu/winograd/thin_pixels.h"
#include "cpu/winograd/tiles.h"
#include "cpu/winograd/weights.h"

namespace uf::winograd::UF_WINOGRAD_NAMESPACE {

// Tiles next to each other, of one row of tiles.
struct Segment {
  Tile tile;  // the first
  int64_t count;
};

UF_PART Segment segment_at(const Run& run, int64_t first, int64_t end) {
  return {tile_at(first, run.tiles_y, run.tiles_x), std::min(end - first, run.tiles_x - first % run.tiles_x)};
}

// A vector of the channels of all tiles of a segment, the first of which is row `row` of its block.
template <bool kMask, bool kAsks, int kSide>
UF_PART void segment_inputs(const Run& run, const Source& source, const Segment& segment, int64_t row, int64_t c, float* to,
                            int64_t slice) {
  const Convolution& work = *run.work;
  const int64_t rows = run.blocking.rows, step = run.in_step(slice), width = work.width;
  const int lanes = static_cast<int>(std::min<int64_t>(kLanes, source.channels - c));
  int64_t x = segment.tile.x - run.lead();
  Square<kSide> s = square_of<kSide>(source, segment.tile.image, segment.tile.y - run.lead(), x, work.height, width);
  for (int64_t t = row; t < row + segment.count; ++t, x += kOut) {
    float* place = to + t / rows * rows * slice + t % rows * kLanes;
    s.in_columns = inside(x, width, kSide);
    if (s.whole() && lanes == kLanes)
      transform<true, kMask, kAsks>(s, c, lanes, work.mask_slope, place, step);
    else
      transform<false, kMask, false>(s, c, lanes, work.mask_slope, place, step);
    s.first += kOut * source.columns;
    if (kMask) s.mask += kOut * source.columns;
  }
}

// The transformed input of a block of tiles; `scratch` for the first layer, if there is one.
template <int kSide>
UF_KERNEL void inputs(const Run& run, int64_t first, int64_t count, float* to, float* scratch) {
  const int64_t rows = run.blocking.rows;
  for (int64_t t = 0; t < count;) {
    const Segment segment = segment_at(run, first + t, first + count);
    int64_t at = 0;  // the channel among those of all sources
    for (Source source : run.work->sources) {
      if (run.work->first) source = first_layer(run, segment.tile, segment.count, scratch);
      for (int64_t c = 0; c < source.channels; c += kLanes, at += kLanes) {
        const int64_t begin = at / kSlice * kSlice, slice = std::min(kSlice, run.depth - begin);
        float* place = to + run.in_floats(begin) + (at - begin) * rows;
        if (!source.mask)
          segment_inputs<false, false, kSide>(run, source, segment, t, c, place, slice);
        else if (run.blocking.asks)
          segment_inputs<true, true, kSide>(run, source, segment, t, c, place, slice);
        else
          segment_inputs<true, false, kSide>(run, source, segment, t, c, place, slice);
      }
    }
    t += segment.count;
  }
}

// Asks for the input of the next block of tiles while this one is multiplied, which leaves the memory idle: row by row, and not
// long before it is needed, as the weights stream through the same cache.
class Ahead {
 public:
  UF_PART Ahead(const Run& run, int64_t first, int64_t end, int64_t parts)
      : run_(run), next_(first), end_(run.work->first ? first : end),  // a first layer is not in memory
        side_(run.transposed ? kOut : kIn), rows_(static_cast<int64_t>(run.work->sources.size()) * 2 * side_), row_(rows_) {
    for (int64_t t = first; t < end_;) {
      const int64_t count = segment_at(run, t, end_).count;
      lines_ += side_ * (kOut * count + side_ - kOut) * run.depth / kLine;
      t += count;
    }
    for (const Source& source : run.work->sources)
      if (source.mask) lines_ += lines_ * filled(source.channels) / run.depth;
    parts_ = std::min(parts, (lines_ + kLinesAtOnce - 1) / kLinesAtOnce);
    wait_ = parts - parts_;
  }

  // After a part of the work.
  UF_PART void go_on() {
    if (wait_-- > 0) return;
    for (int64_t lines = lines_ / std::max<int64_t>(1, parts_) + 1; lines > 0;) {
      if (left_ <= 0 && !next_row()) return;
      const int64_t count = std::min(lines, left_);
      for (int64_t i = 0; i < count; ++i, at_ += kLine) __builtin_prefetch(at_);
      left_ -= count;
      lines -= count;
    }
  }

 private:
  static constexpr int64_t kLine = 16, kLinesAtOnce = 16;  // floats of a line of the cache

  // The next row of pixels, unless other channels than the source's lie between them; false after the last one.
  UF_PART bool next_row() {
    const Convolution& work = *run_.work;
    while (true) {
      if (row_ == rows_) {
        if (next_ >= end_) return false;
        segment_ = segment_at(run_, next_, end_);
        next_ += segment_.count;
        row_ = 0;
      }
      const Source& source = work.sources[static_cast<size_t>(row_ / (2 * side_))];
      const float* data = row_ % (2 * side_) < side_ ? source.data : source.mask;
      const int64_t y = segment_.tile.y - run_.lead() + row_++ % side_;
      if (!data || y < 0 || y >= work.height || source.columns > 2 * source.channels) continue;
      const int64_t x = std::max<int64_t>(0, segment_.tile.x - run_.lead());
      const int64_t end = std::min(work.width, segment_.tile.x - run_.lead() + kOut * segment_.count + side_ - kOut);
      at_ = data + segment_.tile.image * source.batch + y * source.rows + x * source.columns;
      left_ = ((end - x) * source.columns + kLine - 1) / kLine;
      return true;
    }
  }

  const Run& run_;
  int64_t next_, end_, side_, rows_, row_, lines_ = 0, parts_ = 0, wait_ = 0, left_ = 0;
  const float* at_ = nullptr;
  Segment segment_ = {};
};

// ---- the inner product

// product (kRows, kVectors * kLanes) = in (kRows, depth) weights (depth, kVectors * kLanes), or added to it; of a slice, in sums of
// `run_length` input channels. Vectors of input channels lie in_step apart.
template <int kVectors>
struct Product {
  template <int kRows>
  static void run(const float* in, int64_t in_step, const float* weights, float* product, int64_t depth, int64_t run_length,
                  bool adds);
};

template <int kVectors>
template <int kRows>
UF_KERNEL void Product<kVectors>::run(const float* in, int64_t in_step, const float* weights, float* product, int64_t depth,
                                       int64_t run_length, bool adds) {
  for (int64_t begin = 0; begin < depth; begin += run_length) {
    Vector sum[kRows][kVectors] = {};
    for (int64_t c = begin; c < std::min(depth, begin + run_length); c += kLanes) {
#pragma GCC unroll 16
      for (int k = 0; k < kLanes; ++k) {
        Vector w[kVectors];
#pragma GCC unroll 2
        for (int n = 0; n < kVectors; ++n) w[n] = load(weights + (k * kVectors + n) * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
          for (int n = 0; n < kVectors; ++n) sum[r][n] += w[n] * in[r * kLanes + k];
      }
      in += in_step;
      weights += kVectors * kLanes * kLanes;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) {
        float* p = product + r * kPanel + n * kLanes;
        store(p, adds ? load(p) + sum[r][n] : sum[r][n]);
      }
    adds = true;
  }
}

// ---- the output of a tile

// The products at all points, transformed along the columns: to 4 rows, or to 6 in the transposed form.
template <int kRows>
UF_PART void output_columns(const float* products, int64_t step, Vector (&t)[kRows][6]) {
  int64_t at = 0;
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j, at += step) {
    hide(at);
    Vector m[6], o[kRows];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) m[i] = load(products + 6 * i * step + at);
    output_row(m, o);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) t[i][j] = o[i];
  }
}

template <Activation kActivation>
UF_PART void transform_output(const float* products, int64_t step, Vector bias, float slope, Vector y[4][4]) {
  Vector t[4][6];
  output_columns(products, step, t);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    Vector o[4];
    output_row(t[i], o);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) y[i][j] = activated<kActivation>(o[j] + bias, slope);
  }
}

// Where the pixels of a tile's output go.
struct Place {
  float* first;
  int64_t rows, columns;
  uint32_t in_rows, in_columns;  // the pixels that are wanted
  bool streams;
};

UF_PART Place place_in(const Target& to, int64_t image, int64_t y, int64_t x, int64_t height, int64_t width, int side,
                       bool streams) {
  float* first = to.data + image * to.batch + y * to.rows + x * to.columns;
  return {first, to.rows, to.columns, inside(y, height, side), inside(x, width, side),
          streams && (reinterpret_cast<uintptr_t>(first) / sizeof(float) | to.rows | to.columns) % kLanes == 0};
}

template <int kSide>
UF_PART void write(const Place& to, int64_t c, int lanes, const Vector y[kSide][kSide]) {
  constexpr uint32_t kAll = (1u << kSide) - 1;
  int64_t at = c;
  if ((to.in_rows & to.in_columns) == kAll && lanes == kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < kSide; ++i, at += to.rows) {
      hide(at);
#pragma GCC unroll 4
      for (int j = 0; j < kSide; ++j) {
        float* p = to.first + j * to.columns + at;
        if (to.streams)
          stream(p, y[i][j]);
        else
          store(p, y[i][j]);
      }
    }
  } else if (to.in_rows && to.in_columns) {
    for (int i = 0; i < kSide; ++i)
      for (int j = 0; j < kSide; ++j)
        if ((to.in_rows >> i) & (to.in_columns >> j) & 1)
          store_lanes(to.first + i * to.rows + j * to.columns + c, y[i][j], lanes);
  }
}

template <Activation kActivation>
UF_KERNEL void outputs(const Run& run, const Panel& panel, int64_t first, int64_t count, const float* products) {
  const Convolution& work = *run.work;
  const Target& target = *panel.target;
  const int64_t height = work.out_height(), width = work.out_width(), step = run.out_step(kLanes);
  for (int64_t t = 0; t < count; ++t, products += kPanel) {
    const Tile tile = tile_at(first + t, run.tiles_y, run.tiles_x);
    const Place to = place_in(target, tile.image, tile.y, tile.x, height, width, kOut, run.blocking.streams);
    for (int n = 0; n < panel.vectors; ++n) {
      const int64_t c = panel.channel + n * kLanes;
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, target.channels - c));
      Vector bias = zero();
      if (panel.bias) bias = load_lanes(panel.bias + n * kLanes, lanes);
      Vector y[4][4];
      transform_output<kActivation>(products + n * kLanes, step, bias, work.slope, y);
      write<4>(to, c, lanes, y);
    }
  }
}

// The larger one; a NaN is larger than everything.
UF_PART Vector larger(Vector a, Vector b) {
  const auto first = (a > b) | (a != a);
  return first ? a : b;
}

// After the ReLU: pooled, and the part for the skip.
UF_KERNEL inline void pooled_outputs(const Run& run, const Panel& panel, int64_t first, int64_t count,
                                     const float* products) {
  const Convolution& work = *run.work;
  const PoolTargets& to = *work.pool;
  const int64_t height = work.out_height(), width = work.out_width(), step = run.out_step(kLanes);
  for (int64_t t = 0; t < count; ++t, products += kPanel) {
    const Tile tile = tile_at(first + t, run.tiles_y, run.tiles_x);
    const Place skip = place_in(to.skip, tile.image, tile.y - to.top, tile.x - to.left,
                                std::min(to.skip_height, height - to.top), std::min(to.skip_width, width - to.left), kOut,
                                run.blocking.streams);
    const Place pooled = place_in(to.pooled, tile.image, tile.y / 2, tile.x / 2, height / 2, width / 2, kOut / 2, run.blocking.streams);
    for (int n = 0; n < panel.vectors; ++n) {
      const int64_t c = panel.channel + n * kLanes;
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, panel.target->channels - c));
      Vector bias = zero();
      if (panel.bias) bias = load_lanes(panel.bias + n * kLanes, lanes);
      Vector y[4][4], p[2][2];
      transform_output<Activation::kRelu>(products + n * kLanes, step, bias, 0, y);
      write<4>(skip, c, lanes, y);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j)
          p[i][j] = larger(larger(y[2 * i][2 * j], y[2 * i][2 * j + 1]), larger(y[2 * i + 1][2 * j], y[2 * i + 1][2 * j + 1]));
      write<2>(pooled, c, lanes, p);
    }
  }
}

// Of the transposed form: pixels that the tiles above and to the left have written before are added to.
UF_KERNEL inline void added_outputs(const Run& run, const Panel& panel, int64_t first, int64_t count, const float* products) {
  const Convolution& work = *run.work;
  const Target& target = *panel.target;
  const int64_t height = work.out_height(), width = work.out_width(), step = run.out_step(kLanes);
  for (int64_t k = 0; k < count; ++k, products += kPanel) {
    const Tile tile = tile_at(first + k, run.tiles_y, run.tiles_x);
    const Place to = place_in(target, tile.image, tile.y + work.padding - 2, tile.x + work.padding - 2, height, width, kIn, false);
    const uint32_t shared = (1u << (kIn - kOut)) - 1, add_rows = tile.y > 0 ? shared : 0, add_columns = tile.x > 0 ? shared : 0;
    for (int n = 0; n < panel.vectors; ++n) {
      const int64_t c = panel.channel + n * kLanes;
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, target.channels - c));
      Vector t[6][6];
      output_columns(products + n * kLanes, step, t);
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) {
        if (!((to.in_rows >> i) & 1)) continue;
        Vector o[6];
        output_row(t[i], o);
        float* p = to.first + i * to.rows + c;
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j, p += to.columns)
          if ((to.in_columns >> j) & 1)
            store_lanes(p, ((add_rows >> i) | (add_columns >> j)) & 1 ? load_lanes(p, lanes) + o[j] : o[j], lanes);
      }
    }
  }
}

using Outputs = void (*)(const Run& run, const Panel& panel, int64_t first, int64_t count, const float* products);

// The whole convolution for some tiles and some panels.
UF_KERNEL inline void convolve(const Run& run, int64_t first_tile, int64_t end_tile, int64_t first_panel,
                               int64_t end_panel, float* scratch) {
  const Blocking& by = run.blocking;
  const int64_t out_step = run.out_step(kLanes), slices = (run.depth + kSlice - 1) / kSlice;
  float* in = scratch;
  float* products = in + run.in_floats(run.depth);
  float* made = products + kPoints * out_step;
  float* first_layer = made + run.made_floats(kLanes);
  const Outputs write = run.transposed                                 ? &added_outputs
                            : run.work->pool                               ? &pooled_outputs
                            : run.work->activation == Activation::kRelu    ? &outputs<Activation::kRelu>
                            : run.work->activation == Activation::kLeaky ? &outputs<Activation::kLeaky>
                                                                         : &outputs<Activation::kNone>;
  for (int64_t tile = first_tile; tile < end_tile; tile += by.tiles) {
    const int64_t count = std::min(by.tiles, end_tile - tile), parts = (end_panel - first_panel) * slices * kPoints;
    const int64_t whole = count / by.rows * by.rows, rest = std::max<int64_t>(1, count - whole);  // of groups
    if (run.transposed)
      inputs<kOut>(run, tile, count, in, first_layer);
    else
      inputs<kIn>(run, tile, count, in, first_layer);
    Ahead ahead(run, tile + count, std::min(end_tile, tile + count + by.tiles), parts);
    for (int64_t p = first_panel; p < end_panel; ++p) {
      const Panel& panel = run.panels[p];
      const int64_t width = panel.vectors * kLanes;
      const auto multiply = [&](int64_t rows) {
        return panel.vectors == 2 ? by_rows<Product<2>>(rows) : by_rows<Product<1>>(rows);
      };
      const auto multiply_group = multiply(by.rows), multiply_rest = multiply(rest);
      for (int64_t begin = 0; begin < run.depth; begin += kSlice) {
        const int64_t slice = std::min(kSlice, run.depth - begin), in_step = run.in_step(slice);
        const float* panel_weights = panel.weights + panel_floats(begin, width);
        if (run.taps) {
          weights(*run.taps, *run.in_channels, begin, begin + slice, panel, made);
          panel_weights = made;
        }
        for (int point = 0; point < kPoints; ++point) {
          const float* x = in + run.in_floats(begin) + point * in_step;
          const float* w = panel_weights + point * weight_step(slice, width);
          float* to = products + point * out_step;
          for (int64_t t = 0; t < whole; t += by.rows)
            multiply_group(x + t * slice, by.rows * kLanes, w, to + t * kPanel, slice, run.work->sum, begin > 0);
          // a group that is not full has the layout of a full one
          if (whole < count) multiply_rest(x + whole * slice, by.rows * kLanes, w, to + whole * kPanel, slice, run.work->sum, begin > 0);
          ahead.go_on();
          if (run.taps) {
            if (begin + kSlice < run.depth)
              ask_for_taps(*run.taps, *run.in_channels, begin + kSlice, panel, point);
            else if (p + 1 < end_panel)
              ask_for_taps(*run.taps, *run.in_channels, 0, run.panels[p + 1], point);
          }
        }
      }
      write(run, panel, tile, count, products);
    }
  }
}

}  // namespace uf::winograd::UF_WINOGRAD_NAMESPACE
