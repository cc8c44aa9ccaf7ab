// Where a tile lies, and the transform of its input.
#pragma once

#include <algorithm>

#include "cpu/winograd/vectors.h"

namespace uf::winograd::UF_WINOGRAD_NAMESPACE {

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

// Where the mask is not above 0, slope times v; a NaN in the mask lets it pass, as it does in torch.
UF_PART Vector masked(Vector v, Vector mask, float slope) {
  const Vector low = slope == 0 ? zero() : v * slope;
  return mask <= 0 ? low : v;
}

// The compiler is not to know this number. It would work out the addresses of a whole tile before the loop over its channels,
// and keep them on the stack, which costs more than the arithmetic of the transforms.
UF_PART void hide(int64_t& number) { asm("" : "+r"(number)); }

// Channels of pixel (i, j), `at` floats behind the first of row i; 0 where there is no pixel.
template <bool kWhole, bool kMask, int kSide>
UF_PART Vector pixel(const Square<kSide>& s, int i, int j, int64_t at, int lanes, float slope) {
  if constexpr (kWhole) {
    const Vector v = load(s.first + i * s.rows + at);
    if constexpr (kMask) return masked(v, load(s.mask + i * s.rows + at), slope);
    return v;
  }
  if (!((s.in_rows >> i) & (s.in_columns >> j) & 1)) return zero();
  const Vector v = load_lanes(s.first + i * s.rows + at, lanes);
  if constexpr (kMask) return masked(v, load_lanes(s.mask + i * s.rows + at, lanes), slope);
  return v;
}

// A column of pixels. With kAhead the tile after the next is asked for in time, as the hardware follows six rows of a map badly;
// the first kSide - kOut columns of it were asked for with the one before.
template <bool kWhole, bool kMask, bool kAhead, int kSide>
UF_PART void column(const Square<kSide>& s, int j, int64_t at, int lanes, float slope, Vector d[kSide]) {
  const int64_t ahead = at + 2 * kOut * s.columns;
#pragma GCC unroll 6
  for (int i = 0; i < kSide; ++i) {
    d[i] = pixel<kWhole, kMask>(s, i, j, at, lanes, slope);
    if (kAhead && kWhole && j >= kSide - kOut) {
      __builtin_prefetch(s.first + i * s.rows + ahead);
      if constexpr (kMask) __builtin_prefetch(s.mask + i * s.rows + ahead);
    }
  }
}

// ---- the transform of a tile

// Numbers of the input (6) or of the output's gradient (4) to the six points.
template <int kSide>
UF_PART void to_points(const Vector d[kSide], Vector o[6]) {
  if constexpr (kSide == 6) {
    input_points(d, o);
  } else {
    gradient_points(d, o);
  }
}

// The transform of a tile of either to `to` [point], `step` apart; returns the sum of a gradient's pixels.
template <bool kWhole, bool kMask, bool kAhead, int kSide>
UF_PART Vector transform(const Square<kSide>& s, int64_t c, int lanes, float slope, float* to, int64_t step) {
  Vector t[6][kSide], sum = zero();
#pragma GCC unroll 6
  for (int j = 0; j < kSide; ++j, c += s.columns) {
    hide(c);
    Vector d[kSide], o[6];
    column<kWhole, kMask, kAhead>(s, j, c, lanes, slope, d);
    if constexpr (kSide == 4) sum += (d[0] + d[1]) + (d[2] + d[3]);
    to_points<kSide>(d, o);
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) t[i][j] = o[i];
  }
  int64_t at = 0;
#pragma GCC unroll 6
  for (int i = 0; i < 6; ++i, at += 6 * step) {
    hide(at);
    Vector o[6];
    to_points<kSide>(t[i], o);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) store(to + j * step + at, o[j]);
  }
  return sum;
}

UF_PART int64_t filled(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

}  // namespace uf::winograd::UF_WINOGRAD_NAMESPACE
