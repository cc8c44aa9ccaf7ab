// What an instruction set offers to csrc/cpu/winograd.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/winograd.h"

namespace uf::winograd {

constexpr int kOut = 4, kIn = 6, kPoints = kIn * kIn;  // pixels along a side of a tile: of the output, of the input

constexpr int64_t up_to(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

constexpr int64_t kSlice = 64;  // input channels whose products are computed at once

// Up to two vectors of output channels of one target, which are computed together.
struct PanelChannels {
  int64_t first, count;  // among the output channels of all targets; those of this target from there on
  int vectors;
};

struct Panel : PanelChannels {
  const Target* target;
  int64_t channel;       // the first, of the target
  const float* weights;  // transformed, or null: they are made on the way
  const float* bias;     // null: 0
};

// Floats from one of the 36 points of a panel's weights for a slice of input channels to the next: a line of the cache more than
// there are, since powers of two share a set of the cache.
inline int64_t weight_step(int64_t depth, int64_t width) { return depth * width + 16; }

// Floats of a panel's weights for slices up to `depth` input channels.
inline int64_t panel_floats(int64_t depth, int64_t width) {
  return kPoints * (depth * width + (depth + kSlice - 1) / kSlice * 16);
}

// A block of tiles is transformed, multiplied with one panel after the other, and transformed back, all in the second-level
// cache. Rows are tiles that the inner product keeps in registers.
struct Blocking {
  int64_t tiles, rows;
  bool streams;  // past the caches, as the output is larger than they are
  bool asks;     // for the tile after the next of a masked input, as the products of a single panel leave little time for it before
};

struct Run {
  const Convolution* work;
  const Panel* panels;
  Blocking blocking;
  int64_t depth;  // input channels, each source's filled up to whole vectors
  int64_t tiles_y, tiles_x;
  const Taps* taps;                         // null where every panel has its weights
  const std::vector<int64_t>* in_channels;  // of the sources
  const float *first_weights, *first_bias;  // of work->first, in panels: see thin_weights in winograd.cpp
  bool transposed;  // tiles are of the input then: see winograd_isa.h

  int64_t lead() const { return transposed ? 0 : work->padding; }  // pixels from a tile's first input back to its place
  int64_t padded_tiles() const { return (blocking.tiles + blocking.rows - 1) / blocking.rows * blocking.rows; }
  // floats from one of the 36 points to the next; not a multiple of 4096 bytes, so that they share no cache set
  int64_t in_step(int64_t slice) const { return padded_tiles() * slice + 16; }
  int64_t in_floats(int64_t channels) const {  // of the slices in front of this channel, and of all at the end
    return kPoints * (padded_tiles() * channels + (channels + kSlice - 1) / kSlice * 16);
  }
  int64_t out_step(int lanes) const { return padded_tiles() * 2 * lanes + 16; }
  int64_t made_floats(int lanes) const { return taps ? panel_floats(kSlice, 2 * lanes) : 0; }
  // of the first layer for a row of tiles: the rows of its image, and the pixels of its output, in whole panels
  int64_t first_columns() const { return kOut * std::min(blocking.tiles, tiles_x) + kIn - kOut; }
  int64_t first_image_floats() const {
    return work->first ? up_to((kIn + 2) * (first_columns() + 2) * work->first->image.channels, 16) : 0;
  }
  int64_t first_floats(int lanes) const {
    return work->first ? kIn * first_columns() * up_to(work->sources[0].channels, 2 * lanes) : 0;
  }
  int64_t scratch(int lanes) const {
    return in_floats(depth) + kPoints * out_step(lanes) + made_floats(lanes) + first_image_floats() + first_floats(lanes);
  }
};

// A part of the gradient of the taps, which is computed in blocks of `tap_rows` output channels times a panel of two vectors of
// input channels, in whose order the taps of most networks lie: see tap_gradient in winograd.cpp.
struct TapRun {
  const TapGradient* work;
  int64_t depth, width;  // input and output channels, filled up to whole vectors
  int64_t tiles_y, tiles_x;
  int64_t first, count, room;  // tiles whose transforms lie in `in` and `out`, and how many there is room for
  float *in, *out;
  float* sums;       // kPoints sums for each block, or null: one part is all there is
  int64_t segments, segment_step;  // for `tap_results`: as many of all these sums, one behind the other
  float* bias_sums;  // null, or `width` sums for each chunk of the work
  bool adds;         // to the sums of earlier parts

  int64_t in_step() const { return room * depth + 16; }
  int64_t out_step() const { return room * width + 16; }
};
constexpr int64_t kThinRows = 16;  // rows that one sum runs over where the input is thin
constexpr int64_t kChunk = 32;  // tiles that are divided among threads; always the same ones, so that sums are too

struct Kernels {
  int lanes;     // floats of a vector
  int max_rows;  // tiles of the inner product
  int64_t tap_rows;
  // the transformed weights of a panel for the filled input channels [begin, end): [point][input channel][output channel]
  void (*weights)(const Taps& taps, const std::vector<int64_t>& in_channels, int64_t begin, int64_t end,
                  const PanelChannels& out, float* to);
  void (*convolve)(const Run& run, int64_t first_tile, int64_t end_tile, int64_t first_panel, int64_t end_panel,
                   float* scratch);
  // transforms the tiles of these chunks
  void (*tap_inputs)(const TapRun& run, int64_t first_chunk, int64_t end_chunk);
  // products at these points; of units that are blocks where run.sums is null, else thirds of their points
  void (*tap_products)(const TapRun& run, int64_t first_unit, int64_t end_unit);
  void (*tap_results)(const TapRun& run, int64_t first_block, int64_t end_block);
  // see thin.h; rows of the output, of all images, and scratch for three rows of the padded input
  void (*thin)(const Convolution& work, int64_t channels, const float* weights, const float* bias, int64_t first_row,
               int64_t end_row, bool streams, float* scratch);
  // chunks of kThinRows rows; scratch for a row of the gradient with whole groups of channels, and as above
  void (*thin_taps)(const TapGradient& work, int64_t channels, int64_t first_chunk, int64_t end_chunk, float* sums,
                    float* scratch);
  int64_t thin_group;  // channels of the gradient that are summed together
  // for input channels [begin, end): the weights in panels of 2 * lanes output channels, 4 * all input channels * panel floats
  void (*up_weights)(const UpConvolution& work, int64_t begin, int64_t end, float* panels);
  // rows of the source, of all images
  void (*up_convolve)(const UpConvolution& work, const float* panels, int64_t first_row, int64_t end_row);
};

const Kernels* plain_kernels();
const Kernels* avx2_kernels();    // null where the processor lacks AVX2 and FMA
const Kernels* avx512_kernels();  // null where the processor lacks AVX-512

// The points 0, 5/8, -5/8, 3/2, -3/2 and infinity, at which the polynomials of a tile and of a kernel are multiplied. The
// largest error is a quarter of that of the usual 0, 1, -1, 2, -2. G evaluates the three taps of a kernel's row there, and
// divides by what the interpolation needs: g(p) / prod(p - q) over the other finite points q.
struct Points {
  static constexpr double a = 0.625, b = 1.5, a2 = a * a, b2 = b * b;
  static constexpr double at_zero = 1 / (a2 * b2);
  static constexpr double at_a = 1 / (2 * a2 * (a2 - b2)), at_b = 1 / (2 * b2 * (b2 - a2));
};

}  // namespace uf::winograd
