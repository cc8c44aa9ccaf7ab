// The kernels of csrc/cpu/winograd_kernels.h in vectors of kLanes floats, once for each instruction set. A file that includes
// this defines UF_WINOGRAD_NAMESPACE, UF_TARGET (the attribute of every function), kLanes, kMaxRows, kTapRows, and, for the
// channels that fill no vector, load_some and store_some; stream stores past the caches.
//
// With a tile's 6x6 input D, a kernel's 3x3 taps g and the matrices of Toom and Cook for the points of `Points`,
//     output (4x4) = A^T [ sum over channels of (G g G^T) . (B^T D B) ] A
// which takes 36 multiplications where the direct form takes 144. Between the transforms stand 36 matrix products over the
// channels, (tiles x in) (in x out), whose operands are kept so that all accesses are consecutive:
//     transformed inputs   [point][group of rows][input vector][row][lane]
//     transformed weights  [panel][point][input channel][output channel of the panel]
//     products of a panel  [point][tile][output channel]
// Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016), with the points of `Points`.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/macros.h"
#include "cpu/winograd_kernels.h"

#define UF_KERNEL UF_TARGET
#define UF_PART UF_TARGET UF_INLINE

namespace uf::winograd::UF_WINOGRAD_NAMESPACE {

constexpr int kPanel = 2 * kLanes;

UF_PART Vector load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

UF_PART void store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

constexpr float kA = Points::a, kB = Points::b, kA2 = Points::a2, kB2 = Points::b2, kA3 = Points::a2 * Points::a,
                kB3 = Points::b2 * Points::b, kAB = Points::a2 * Points::b2, kSum = Points::a2 + Points::b2;

// B^T d: six numbers of an input row to the six points.
UF_PART void input_points(const Vector d[6], Vector o[6]) {
  o[0] = d[0] * kAB + (d[4] - d[2] * kSum);
  const Vector p = d[4] - d[2] * kB2, q = d[3] - d[1] * kB2;
  o[1] = p + q * kA;
  o[2] = p - q * kA;
  const Vector r = d[4] - d[2] * kA2, s = d[3] - d[1] * kA2;
  o[3] = r + s * kB;
  o[4] = r - s * kB;
  o[5] = d[1] * kAB + (d[5] - d[3] * kSum);
}

// A^T m: products at the six points to the four numbers of an output row.
UF_PART void output_row(const Vector m[6], Vector y[4]) {
  const Vector s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
  y[0] = (m[0] + s1) + s2;
  y[1] = d1 * kA + d2 * kB;
  y[2] = s1 * kA2 + s2 * kB2;
  y[3] = (d1 * kA3 + m[5]) + d2 * kB3;
}

// A y, the transpose of output_row: a row of the output's gradient to the six points.
UF_PART void gradient_points(const Vector y[4], Vector o[6]) {
  const Vector e = y[0] + y[2] * kA2, f = y[1] * kA + y[3] * kA3;
  const Vector g = y[0] + y[2] * kB2, h = y[1] * kB + y[3] * kB3;
  o[0] = y[0];
  o[1] = e + f;
  o[2] = e - f;
  o[3] = g + h;
  o[4] = g - h;
  o[5] = y[3];
}

constexpr float kG0 = Points::at_zero, kGa = Points::at_a, kGb = Points::at_b;
constexpr float kGa1 = Points::at_a * Points::a, kGb1 = Points::at_b * Points::b, kGa2 = Points::at_a * Points::a2,
                kGb2 = Points::at_b * Points::b2;

// G g: three taps to the six points.
UF_PART void tap_points(Vector g0, Vector g1, Vector g2, Vector o[6]) {
  const Vector s = g0 * kGa + g2 * kGa2, d = g1 * kGa1, t = g0 * kGb + g2 * kGb2, e = g1 * kGb1;
  o[0] = g0 * kG0;
  o[1] = s + d;
  o[2] = s - d;
  o[3] = t + e;
  o[4] = t - e;
  o[5] = g2;
}

// G^T d, its transpose.
UF_PART void taps_of(const Vector d[6], Vector g[3]) {
  const Vector s = d[1] + d[2], t = d[3] + d[4];
  g[0] = (d[0] * kG0 + s * kGa) + t * kGb;
  g[1] = (d[1] - d[2]) * kGa1 + (d[3] - d[4]) * kGb1;
  g[2] = (s * kGa2 + d[5]) + t * kGb2;
}

UF_PART void store_lanes(float* p, Vector v, int lanes) {
  if (lanes == kLanes)
    store(p, v);
  else
    store_some(p, v, lanes);
}

UF_PART Vector load_lanes(const float* p, int lanes) { return lanes == kLanes ? load(p) : load_some(p, lanes); }

// ---- where a tile lies

struct Tile {
  int64_t image, y, x;  // its first output pixel
};

UF_PART Tile tile_at(int64_t tile, int64_t tiles_y, int64_t tiles_x) {
  return {tile / (tiles_y * tiles_x), tile / tiles_x % tiles_y * kOut, tile % tiles_x * kOut};
}

// Bits of the rows (or columns) from `start` on that are inside of [0, size).
UF_PART uint32_t inside(int64_t start, int64_t size, int count) {
  uint32_t bits = 0;
  for (int i = 0; i < count; ++i) bits |= static_cast<uint32_t>(start + i >= 0 && start + i < size) << i;
  return bits;
}

// A square of kSide x kSide pixels of a source, in any place.
template <int kSide>
struct Square {
  const float* first;  // its first pixel
  const float* mask;   // of that pixel, or null
  int64_t rows, columns;
  uint32_t in_rows, in_columns;  // the pixels that exist

  UF_PART bool whole() const { return (in_rows & in_columns) == (1u << kSide) - 1; }
};

template <int kSide>
UF_PART Square<kSide> square_of(const Source& source, int64_t image, int64_t y, int64_t x, int64_t height,
                                int64_t width) {
  const int64_t offset = image * source.batch + y * source.rows + x * source.columns;
  return {source.data + offset,           source.mask ? source.mask + offset : nullptr, source.rows,
          source.columns,                 inside(y, height, kSide),                     inside(x, width, kSide)};
}

UF_PART Vector zero() { return Vector{}; }

// Where the mask is not above 0, slope times v; a NaN in the mask lets it pass, as it does in torch.
UF_PART Vector masked(Vector v, Vector mask, float slope) {
  const Vector low = slope == 0 ? zero() : v * slope;
  return mask <= 0 ? low : v;
}

// Channels [c, c + lanes) of pixel (i, j); 0 where there is none.
template <bool kWhole, bool kMask, int kSide>
UF_PART Vector pixel(const Square<kSide>& s, int i, int j, int64_t c, int lanes, float slope) {
  const int64_t at = i * s.rows + j * s.columns + c;
  if constexpr (kWhole) {
    const Vector v = load(s.first + at);
    if constexpr (kMask) return masked(v, load(s.mask + at), slope);
    return v;
  }
  if (!((s.in_rows >> i) & (s.in_columns >> j) & 1)) return zero();
  const Vector v = load_lanes(s.first + at, lanes);
  if constexpr (kMask) return masked(v, load_lanes(s.mask + at, lanes), slope);
  return v;
}

// ---- the transforms of a tile

template <bool kWhole, bool kMask>
UF_PART void transform_input(const Square<6>& s, int64_t c, int lanes, float slope, float* to, int64_t step) {
  Vector t[6][6];
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) {
    Vector d[6], o[6];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) d[i] = pixel<kWhole, kMask>(s, i, j, c, lanes, slope);
    input_points(d, o);
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) t[i][j] = o[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < 6; ++i) {
    Vector o[6];
    input_points(t[i], o);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) store(to + (6 * i + j) * step, o[j]);
  }
}

// The hardware follows six rows of a map badly: the tile after the next is asked for in time.
template <int kFirst, int kSide>
UF_PART void prefetch(const float* first, int64_t rows, int64_t columns, int64_t c) {
#pragma GCC unroll 6
  for (int i = 0; i < kSide; ++i)
#pragma GCC unroll 6
    for (int j = kFirst; j < kSide; ++j) __builtin_prefetch(first + i * rows + (j + 2 * kOut) * columns + c);
}

template <bool kMask>
UF_PART void transform_channels(const Square<6>& s, int64_t channels, float slope, float* to, int64_t vector_step,
                                int64_t step) {
  const bool whole = s.whole();
  for (int64_t c = 0; c < channels; c += kLanes, to += vector_step) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, channels - c));
    if (whole && lanes == kLanes) {
      prefetch<2, 6>(s.first, s.rows, s.columns, c);
      if constexpr (kMask) prefetch<2, 6>(s.mask, s.rows, s.columns, c);
      transform_input<true, kMask>(s, c, lanes, slope, to, step);
    } else {
      transform_input<false, kMask>(s, c, lanes, slope, to, step);
    }
  }
}

UF_PART int64_t filled(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

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

constexpr int64_t kSumDepth = 32;  // channels that one sum in registers runs over, which keeps long sums exact

// product (kRows, kVectors * kLanes) = in (kRows, depth) weights (depth, kVectors * kLanes)
template <int kRows, int kVectors>
UF_KERNEL void multiply(const float* in, const float* weights, float* product, int64_t depth) {
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

using Multiply = void (*)(const float* in, const float* weights, float* product, int64_t depth);

template <int kRows>
constexpr Multiply multiply_by_rows(int rows, int vectors) {
  if constexpr (kRows == 0) {
    return nullptr;
  } else {
    if (rows == kRows) return vectors == 2 ? &multiply<kRows, 2> : &multiply<kRows, 1>;
    return multiply_by_rows<kRows - 1>(rows, vectors);
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
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) {
    Vector m[6], o[4];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) m[i] = load(products + (6 * i + j) * step);
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

template <Activation kActivation>
UF_KERNEL void outputs(const Run& run, const Panel& panel, int64_t first, int64_t count, const float* products) {
  const Convolution& work = *run.work;
  const Target& to = *panel.target;
  const int64_t height = work.out_height(), width = work.out_width(), step = run.out_step(kLanes);
  for (int64_t t = 0; t < count; ++t, products += kPanel) {
    const Tile tile = tile_at(first + t, run.tiles_y, run.tiles_x);
    const int rows = static_cast<int>(std::min<int64_t>(kOut, height - tile.y));
    const int columns = static_cast<int>(std::min<int64_t>(kOut, width - tile.x));
    float* place = to.data + tile.image * to.batch + tile.y * to.rows + tile.x * to.columns + panel.channel;
    for (int n = 0; n < panel.vectors; ++n, place += kLanes) {
      const int64_t c = panel.channel + n * kLanes;
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, to.channels - c));
      Vector bias = zero();
      if (panel.bias) bias = load_lanes(panel.bias + n * kLanes, lanes);
      Vector y[4][4];
      transform_output<kActivation>(products + n * kLanes, step, bias, work.slope, y);
      if (rows == kOut && columns == kOut && lanes == kLanes) {
        if (run.blocking.streams && reinterpret_cast<uintptr_t>(place) % sizeof(Vector) == 0 &&
            (to.rows | to.columns) % kLanes == 0) {
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) stream(place + i * to.rows + j * to.columns, y[i][j]);
        } else {
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) store(place + i * to.rows + j * to.columns, y[i][j]);
        }
        continue;
      }
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) store_lanes(place + i * to.rows + j * to.columns, y[i][j], lanes);
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
    const uint32_t skip_rows = inside(tile.y - to.top, std::min(to.skip_height, height - to.top), kOut);
    const uint32_t skip_columns = inside(tile.x - to.left, std::min(to.skip_width, width - to.left), kOut);
    float* skip = to.skip.data + tile.image * to.skip.batch + (tile.y - to.top) * to.skip.rows +
                  (tile.x - to.left) * to.skip.columns + panel.channel;
    float* pooled = to.pooled.data + tile.image * to.pooled.batch + tile.y / 2 * to.pooled.rows +
                    tile.x / 2 * to.pooled.columns + panel.channel;
    for (int n = 0; n < panel.vectors; ++n, skip += kLanes, pooled += kLanes) {
      const int64_t c = panel.channel + n * kLanes;
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, panel.target->channels - c));
      Vector bias = zero();
      if (panel.bias) bias = load_lanes(panel.bias + n * kLanes, lanes);
      Vector y[4][4];
      transform_output<Activation::kRelu>(products + n * kLanes, step, bias, 0, y);
#pragma GCC unroll 4
      for (int i = 0; i < kOut; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kOut; ++j)
          if ((skip_rows >> i) & (skip_columns >> j) & 1) store_lanes(skip + i * to.skip.rows + j * to.skip.columns, y[i][j], lanes);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j)
          if (tile.y + 2 * i + 1 < height && tile.x + 2 * j + 1 < width)
            store_lanes(pooled + i * to.pooled.rows + j * to.pooled.columns,
                larger(larger(y[2 * i][2 * j], y[2 * i][2 * j + 1]), larger(y[2 * i + 1][2 * j], y[2 * i + 1][2 * j + 1])),
                        lanes);
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
      const Multiply multiply_rows = multiply_by_rows<kMaxRows>(static_cast<int>(by.rows), panel.vectors);
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

// ---- weights

// A panel of `vectors` vectors of output channels, from `out` on, of a group of count_out, for all inputs of a source of
// count_in channels, those that fill its last vector included (0). Several inputs at a time are made in the first-level
// cache: the 36 points lie so far apart that single lines written to them would drive each other out of it.
UF_KERNEL inline void weights(const Taps& taps, int64_t count_in, int64_t out, int64_t count_out, int vectors, float* to,
                              int64_t point_step, bool streams) {
  constexpr int kInputs = 4;
  alignas(64) float gathered[9 * kLanes] = {}, made[kPoints][kInputs * kPanel];
  const int64_t width = vectors * kLanes;
  for (int64_t first = 0; first < filled(count_in); first += kInputs) {
    for (int n = 0; n < vectors; ++n) {
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, count_out - out - n * kLanes));
      std::memset(gathered, 0, sizeof gathered);
      for (int i = 0; i < kInputs; ++i) {
        Vector g[9], t[6][3];
        if (first + i < count_in) {
          const float* p = taps.data + (out + n * kLanes) * taps.out_step + (first + i) * taps.in_step;
          for (int lane = 0; lane < lanes; ++lane, p += taps.out_step)
#pragma GCC unroll 9
            for (int k = 0; k < 9; ++k) gathered[k * kLanes + lane] = p[k / 3 * taps.y_step + k % 3 * taps.x_step];
        } else {
          std::memset(gathered, 0, sizeof gathered);
        }
#pragma GCC unroll 9
        for (int k = 0; k < 9; ++k) g[k] = load(gathered + k * kLanes);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          Vector o[6];
          tap_points(g[j], g[3 + j], g[6 + j], o);
#pragma GCC unroll 6
          for (int k = 0; k < 6; ++k) t[k][j] = o[k];
        }
#pragma GCC unroll 6
        for (int k = 0; k < 6; ++k) {
          Vector o[6];
          tap_points(t[k][0], t[k][1], t[k][2], o);
#pragma GCC unroll 6
          for (int j = 0; j < 6; ++j) store(made[6 * k + j] + i * width + n * kLanes, o[j]);
        }
      }
    }
    for (int point = 0; point < kPoints; ++point) {
      float* p = to + point * point_step + first * width;
      const bool past = streams && reinterpret_cast<uintptr_t>(p) % sizeof(Vector) == 0;
      for (int64_t at = 0; at < kInputs * width; at += kLanes) {
        if (past)
          stream(p + at, load(made[point] + at));
        else
          store(p + at, load(made[point] + at));
      }
    }
  }
}

// ---- the gradient of the taps: G^T [ sum over tiles of (B^T D B) . (A Y A^T) ] G for the output's gradient Y

template <bool kWhole, bool kMask>
UF_PART Vector transform_gradient(const Square<4>& s, int64_t c, int lanes, float slope, float* to, int64_t step) {
  Vector t[6][4], sum = zero();
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    Vector y[4], o[6];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) y[i] = pixel<kWhole, kMask>(s, i, j, c, lanes, slope);
    sum += (y[0] + y[1]) + (y[2] + y[3]);
    gradient_points(y, o);
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) t[i][j] = o[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < 6; ++i) {
    Vector o[6];
    gradient_points(t[i], o);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) store(to + (6 * i + j) * step, o[j]);
  }
  return sum;
}

template <bool kMask>
UF_PART void gradient_channels(const Square<4>& s, int64_t channels, float slope, float* to, int64_t vector_step,
                               int64_t step, float* sums) {
  const bool whole = s.whole();
  for (int64_t c = 0; c < channels; c += kLanes, to += vector_step) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, channels - c));
    Vector sum;
    if (whole && lanes == kLanes) {
      prefetch<0, 4>(s.first, s.rows, s.columns, c);
      if constexpr (kMask) prefetch<0, 4>(s.mask, s.rows, s.columns, c);
      sum = transform_gradient<true, kMask>(s, c, lanes, slope, to, step);
    } else {
      sum = transform_gradient<false, kMask>(s, c, lanes, slope, to, step);
    }
    if (sums) store(sums + c, load(sums + c) + sum);
  }
}

UF_KERNEL inline void tap_inputs(const TapRun& run, int64_t first_chunk, int64_t end_chunk) {
  const TapGradient& work = *run.work;
  const int64_t end = std::min(run.first + run.count, end_chunk * kChunk), vector_step = run.room * kLanes;
  for (int64_t at = first_chunk * kChunk; at < end; ++at) {
    const Tile tile = tile_at(at, run.tiles_y, run.tiles_x);
    float* place = run.in + (at - run.first) * kLanes;
    for (const Source& source : work.sources) {
      const Square<6> s =
          square_of<6>(source, tile.image, tile.y - work.padding, tile.x - work.padding, work.height, work.width);
      transform_channels<false>(s, source.channels, 0, place, vector_step, run.in_step());
      place += filled(source.channels) / kLanes * vector_step;
    }
    const Square<4> s = square_of<4>(work.gradient, tile.image, tile.y, tile.x, work.height + 2 * work.padding - 2,
                                     work.width + 2 * work.padding - 2);
    float* sums = run.bias_sums ? run.bias_sums + at / kChunk * run.width : nullptr;
    place = run.out + (at - run.first) * kLanes;
    if (work.gradient.mask)
      gradient_channels<true>(s, work.gradient.channels, work.mask_slope, place, vector_step, run.out_step(), sums);
    else
      gradient_channels<false>(s, work.gradient.channels, 0, place, vector_step, run.out_step(), sums);
  }
}

// sums (kTapRows, kVectors * kLanes), to which it adds or which it sets, of products over `count` tiles
template <int kVectors>
UF_KERNEL void multiply_tiles(const float* in, const float* out, int64_t vector_step, int64_t count, bool adds,
                              float* sums) {
  Vector sum[kTapRows][kVectors] = {};
#pragma GCC unroll 2
  for (int64_t t = 0; t < count; ++t, in += kLanes, out += kLanes) {
    Vector z[kVectors];
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) z[n] = load(out + n * vector_step);
#pragma GCC unroll 8
    for (int r = 0; r < kTapRows; ++r)
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) sum[r][n] += z[n] * in[r];
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTapRows; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) {
      float* p = sums + r * kPanel + n * kLanes;
      store(p, adds ? load(p) + sum[r][n] : sum[r][n]);
    }
}

constexpr int64_t kBlockSums = kTapRows * kPanel;  // of a block at one point

struct TapBlock {
  int64_t in, out;  // first channels
  int vectors;      // of output channels
};

UF_PART TapBlock tap_block(const TapRun& run, int64_t block) {
  const int64_t groups = run.depth / kTapRows, out = block / groups * kPanel;
  return {block % groups * kTapRows, out, run.width - out > kLanes ? 2 : 1};
}

UF_PART void tap_points_of_block(const TapRun& run, int64_t block, int first_point, int end_point, float* sums) {
  const TapBlock b = tap_block(run, block);
  const int64_t vector_step = run.room * kLanes;
  for (int point = first_point; point < end_point; ++point) {
    const float* in = run.in + point * run.in_step() + b.in / kLanes * vector_step + b.in % kLanes;
    const float* out = run.out + point * run.out_step() + b.out / kLanes * vector_step;
    bool adds = run.adds;
    for (int64_t t = 0; t < run.count; t += kChunk, adds = true) {
      const int64_t count = std::min(kChunk, run.count - t);
      float* to = sums + point * kBlockSums;
      if (b.vectors == 2)
        multiply_tiles<2>(in + t * kLanes, out + t * kLanes, vector_step, count, adds, to);
      else
        multiply_tiles<1>(in + t * kLanes, out + t * kLanes, vector_step, count, adds, to);
    }
  }
}

// The gradient of the taps of a block from its sums.
UF_PART void tap_result(const TapRun& run, int64_t block, const float* sums) {
  const TapGradient& work = *run.work;
  const TapBlock b = tap_block(run, block);
  int64_t first = 0, channel = 0;  // of the source, as they are filled up and as they are
  size_t source = 0;
  while (b.in >= first + filled(work.sources[source].channels)) {
    first += filled(work.sources[source].channels);
    channel += work.sources[source++].channels;
  }
  for (int r = 0; r < kTapRows; ++r) {
    const int64_t in = b.in + r - first;
    if (in >= work.sources[source].channels) return;
    for (int n = 0; n < b.vectors; ++n) {
      const float* p = sums + r * kPanel + n * kLanes;
      Vector t[3][6], g[9];
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
        Vector d[6], o[3];
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) d[i] = load(p + (6 * i + j) * kBlockSums);
        taps_of(d, o);
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) t[i][j] = o[i];
      }
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) taps_of(t[i], g + 3 * i);
      alignas(64) float taps[9 * kLanes];
#pragma GCC unroll 9
      for (int k = 0; k < 9; ++k) store(taps + k * kLanes, g[k]);
      const int64_t out = b.out + n * kLanes, lanes = std::min<int64_t>(kLanes, work.gradient.channels - out);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        float* to = work.taps + (out + lane) * work.out_step + (channel + in) * work.in_step;
#pragma GCC unroll 9
        for (int k = 0; k < 9; ++k) to[k / 3 * work.y_step + k % 3 * work.x_step] = taps[k * kLanes + lane];
      }
    }
  }
}

UF_KERNEL inline void tap_products(const TapRun& run, int64_t first_unit, int64_t end_unit) {
  alignas(64) float local[kPoints * kBlockSums];
  for (int64_t unit = first_unit; unit < end_unit; ++unit) {
    if (run.sums) {
      const int part = static_cast<int>(unit % 3) * kPoints / 3;
      tap_points_of_block(run, unit / 3, part, part + kPoints / 3, run.sums + unit / 3 * kPoints * kBlockSums);
    } else {
      tap_points_of_block(run, unit, 0, kPoints, local);
      tap_result(run, unit, local);
    }
  }
}

UF_KERNEL inline void tap_results(const TapRun& run, int64_t first_block, int64_t end_block) {
  for (int64_t block = first_block; block < end_block; ++block)
    tap_result(run, block, run.sums + block * kPoints * kBlockSums);
}

// ---- the up-convolution: a product (pixels, in) (in, 4 out), whose rows are four pixels of the image

// product (kRows, kPanel) of pixels that lie x_step apart, to pixels that lie to_step apart
template <int kRows>
UF_PART void up_convolve_pixels(const float* x, int64_t x_step, const float* weights, int64_t depth, Vector bias0,
                                Vector bias1, float* to, int64_t to_step, int lanes0, int lanes1) {
  Vector sum[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = bias0;
    sum[r][1] = bias1;
  }
  for (int64_t k = 0; k < depth; ++k, weights += kPanel) {
    const Vector w0 = load(weights), w1 = load(weights + kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      sum[r][0] += w0 * x[r * x_step + k];
      sum[r][1] += w1 * x[r * x_step + k];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    store_lanes(to + r * to_step, sum[r][0], lanes0);
    if (lanes1) store_lanes(to + r * to_step + kLanes, sum[r][1], lanes1);
  }
}

UF_KERNEL inline void up_convolve(const UpConvolution& work, int64_t first_row, int64_t end_row, float* scratch) {
  constexpr int kRows = std::min(8, kMaxRows);
  for (int64_t tap = 0; tap < 4; ++tap) {
    for (int64_t c = 0; c < work.target.channels; c += kPanel) {
      const int lanes0 = static_cast<int>(std::min<int64_t>(kLanes, work.target.channels - c));
      const int lanes1 = static_cast<int>(std::clamp<int64_t>(work.target.channels - c - kLanes, 0, kLanes));
      // the panel's weights, one after the other
      for (int64_t k = 0; k < work.source.channels; ++k) {
        const float* w = work.weights + (4 * k + tap) * work.target.channels + c;
        store(scratch + k * kPanel, load_lanes(w, lanes0));
        store(scratch + k * kPanel + kLanes, lanes1 ? load_lanes(w + kLanes, lanes1) : zero());
      }
      Vector bias0 = zero(), bias1 = zero();
      if (work.bias) bias0 = load_lanes(work.bias + c, lanes0);
      if (work.bias && lanes1) bias1 = load_lanes(work.bias + c + kLanes, lanes1);
      for (int64_t row = first_row; row < end_row; ++row) {
        const int64_t n = row / work.height, y = row % work.height;
        const float* x = work.source.data + n * work.source.batch + y * work.source.rows;
        float* to = work.target.data + n * work.target.batch + (2 * y + tap / 2) * work.target.rows +
                    tap % 2 * work.target.columns + c;
        int64_t at = 0;
        for (; at + kRows <= work.width; at += kRows)
          up_convolve_pixels<kRows>(x + at * work.source.columns, work.source.columns, scratch, work.source.channels,
                                    bias0, bias1, to + 2 * at * work.target.columns, 2 * work.target.columns, lanes0,
                                    lanes1);
        for (; at < work.width; ++at)
          up_convolve_pixels<1>(x + at * work.source.columns, work.source.columns, scratch, work.source.channels, bias0,
                                bias1, to + 2 * at * work.target.columns, 2 * work.target.columns, lanes0, lanes1);
      }
    }
  }
}

constexpr Kernels kKernels = {kLanes, kMaxRows, kTapRows, &weights, &convolve, &tap_inputs, &tap_products, &tap_results,
                              &up_convolve};

}  // namespace uf::winograd::UF_WINOGRAD_NAMESPACE
