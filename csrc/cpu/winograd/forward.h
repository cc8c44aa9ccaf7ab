// The convolution: the transforms of the input, their product with those of the weights, and the transform of the output.
#pragma once

#include "cpu/winograd/tiles.h"

namespace uf::winograd::UF_WINOGRAD_NAMESPACE {

// The transformed input of `count` tiles.
UF_KERNEL inline void inputs(const Run& run, int64_t first, int64_t count, float* to) {
  const Convolution& work = *run.work;
  const int64_t rows = run.blocking.rows;
  for (int64_t t = 0; t < count; ++t) {
    const Tile tile = tile_at(first + t, run.tiles_y, run.tiles_x);
    float* place = to + t / rows * rows * run.depth + t % rows * kLanes;
    for (const Source& source : work.sources) {
      const Square<6> s =
          square_of<6>(source, tile.image, tile.y - work.padding, tile.x - work.padding, work.height, work.width);
      if (source.mask)
        transform_channels<true>(s, source.channels, work.mask_slope, place, rows * kLanes, run.in_step());
      else
        transform_channels<false>(s, source.channels, 0, place, rows * kLanes, run.in_step());
      place += filled(source.channels) * rows;
    }
  }
}

// ---- the inner product

constexpr int64_t kSumDepth = 64;  // channels that one sum in registers runs over, which keeps long sums exact

// product (kRows, kVectors * kLanes) = in (kRows, depth) weights (depth, kVectors * kLanes)
template <int kVectors>
struct Product {
  template <int kRows>
  static void run(const float* in, const float* weights, float* product, int64_t depth);
};

template <int kVectors>
template <int kRows>
UF_KERNEL void Product<kVectors>::run(const float* in, const float* weights, float* product, int64_t depth) {
  for (int64_t first = 0; first < depth; first += kSumDepth) {
    Vector sum[kRows][kVectors] = {};
    for (int64_t c = first; c < std::min(depth, first + kSumDepth); c += kLanes) {
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
      in += kRows * kLanes;
      weights += kVectors * kLanes * kLanes;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) {
        float* p = product + r * kPanel + n * kLanes;
        store(p, first ? load(p) + sum[r][n] : sum[r][n]);
      }
  }
}

// ---- the output of a tile

template <Activation kActivation>
UF_PART Vector activated(Vector v, float slope) {
  if constexpr (kActivation == Activation::kRelu) return v < 0 ? zero() : v;  // NaN stays
  if constexpr (kActivation == Activation::kLeaky) return v < 0 ? v * slope : v;
  return v;
}

template <Activation kActivation>
UF_PART void transform_output(const float* products, int64_t step, Vector bias, float slope, Vector y[4][4]) {
  Vector t[4][6];
  int64_t at = 0;
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j, at += step) {
    hide(at);
    Vector m[6], o[4];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) m[i] = load(products + 6 * i * step + at);
    output_row(m, o);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) t[i][j] = o[i];
  }
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

using Outputs = void (*)(const Run& run, const Panel& panel, int64_t first, int64_t count, const float* products);

// The whole convolution for some tiles and some panels.
UF_KERNEL inline void convolve(const Run& run, int64_t first_tile, int64_t end_tile, int64_t first_panel,
                               int64_t end_panel, float* scratch) {
  const Blocking& by = run.blocking;
  const int64_t in_step = run.in_step(), out_step = run.out_step(kLanes);
  float *in = scratch, *products = scratch + kPoints * in_step;
  const Outputs write = run.work->pool                                 ? &pooled_outputs
                        : run.work->activation == Activation::kRelu    ? &outputs<Activation::kRelu>
                        : run.work->activation == Activation::kLeaky ? &outputs<Activation::kLeaky>
                                                                     : &outputs<Activation::kNone>;
  for (int64_t tile = first_tile; tile < end_tile; tile += by.tiles) {
    const int64_t count = std::min(by.tiles, end_tile - tile);
    inputs(run, tile, count, in);
    for (int64_t p = first_panel; p < end_panel; ++p) {
      const Panel& panel = run.panels[p];
      const auto multiply_rows = panel.vectors == 2 ? by_rows<Product<2>>(by.rows) : by_rows<Product<1>>(by.rows);
      for (int point = 0; point < kPoints; ++point) {
        const float* panel_weights = panel.weights + point * run.depth * panel.vectors * kLanes;
        // a group that is not full has the layout of a full one, and its last rows are left from earlier blocks
        for (int64_t t = 0; t < count; t += by.rows)
          multiply_rows(in + point * in_step + t * run.depth, panel_weights, products + point * out_step + t * kPanel,
                        run.depth);
      }
      write(run, panel, tile, count, products);
    }
  }
}

}  // namespace uf::winograd::UF_WINOGRAD_NAMESPACE
