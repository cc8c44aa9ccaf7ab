// The gradient of the taps: G^T [ sum over tiles of (B^T D B) . (A Y A^T) ] G for the output's gradient Y.
#pragma once

#include "cpu/winograd/tiles.h"

namespace uf::winograd::UF_WINOGRAD_NAMESPACE {

UF_PART void transform_channels(const Square<6>& s, int64_t channels, float* to, int64_t vector_step, int64_t step) {
  const bool whole = s.whole();
  for (int64_t c = 0; c < channels; c += kLanes, to += vector_step) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, channels - c));
    if (whole && lanes == kLanes)
      transform<true, false, true>(s, c, lanes, 0, to, step);
    else
      transform<false, false, true>(s, c, lanes, 0, to, step);
  }
}

template <bool kMask>
UF_PART void gradient_channels(const Square<4>& s, int64_t channels, float slope, float* to, int64_t vector_step,
                               int64_t step, float* sums) {
  const bool whole = s.whole();
  for (int64_t c = 0; c < channels; c += kLanes, to += vector_step) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, channels - c));
    Vector sum;
    if (whole && lanes == kLanes)
      sum = transform<true, kMask, true>(s, c, lanes, slope, to, step);
    else
      sum = transform<false, kMask, true>(s, c, lanes, slope, to, step);
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
      transform_channels(s, source.channels, place, vector_step, run.in_step());
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

// sums (kTapRows, kVectors * kLanes), to which it adds or which it sets, of products over the `count` tiles of a chunk: of the
// output's gradient, from a channel on, and vectors of the input
template <int kVectors>
UF_KERNEL void multiply_tiles(const float* in, const float* out, int64_t vector_step, int64_t count, bool adds,
                              float* sums) {
  static_assert(kChunk == 2 * kShortSum);
  Vector first[kTapRows][kVectors];
  for (int64_t begin = 0; begin < count; begin += kShortSum) {
    const int64_t end = std::min(count, begin + kShortSum);
    Vector sum[kTapRows][kVectors] = {};
#pragma GCC unroll 2
    for (int64_t t = begin; t < end; ++t, in += kLanes, out += kLanes) {
      Vector x[kVectors];
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) x[n] = load(in + n * vector_step);
#pragma GCC unroll 8
      for (int r = 0; r < kTapRows; ++r)
#pragma GCC unroll 2
        for (int n = 0; n < kVectors; ++n) sum[r][n] += x[n] * out[r];
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTapRows; ++r)
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) {
        if (end < count) {
          first[r][n] = sum[r][n];
          continue;
        }
        if (begin > 0) sum[r][n] += first[r][n];
        float* p = sums + r * kPanel + n * kLanes;
        store(p, adds ? load(p) + sum[r][n] : sum[r][n]);
      }
  }
}

constexpr int64_t kBlockSums = kTapRows * kPanel;  // of a block at one point

struct TapBlock {
  int64_t in, out;  // first channels
  int vectors;      // of input channels
};

UF_PART TapBlock tap_block(const TapRun& run, int64_t block) {
  const int64_t groups = run.width / kTapRows, in = block / groups * kPanel;
  return {in, block % groups * kTapRows, run.depth - in > kLanes ? 2 : 1};
}

UF_PART void tap_points_of_block(const TapRun& run, int64_t block, int first_point, int end_point, float* sums) {
  const TapBlock b = tap_block(run, block);
  const int64_t vector_step = run.room * kLanes;
  for (int point = first_point; point < end_point; ++point) {
    const float* in = run.in + point * run.in_step() + b.in / kLanes * vector_step;
    const float* out = run.out + point * run.out_step() + b.out / kLanes * vector_step + b.out % kLanes;
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

// The nine taps of a vector of input channels, the first of which is `to`.
UF_PART void write_taps(const TapGradient& work, const Vector g[9], int lanes, float* to) {
  if (work.in_step == 1) {
#pragma GCC unroll 9
    for (int k = 0; k < 9; ++k) store_lanes(to + k / 3 * work.y_step + k % 3 * work.x_step, g[k], lanes);
    return;
  }
  alignas(64) float taps[9 * kLanes];
#pragma GCC unroll 9
  for (int k = 0; k < 9; ++k) store(taps + k * kLanes, g[k]);
  for (int lane = 0; lane < lanes; ++lane, to += work.in_step)
#pragma GCC unroll 9
    for (int k = 0; k < 9; ++k) to[k / 3 * work.y_step + k % 3 * work.x_step] = taps[k * kLanes + lane];
}

// The gradient of the taps of a block from its sums, those of all segments.
UF_PART void tap_result(const TapRun& run, int64_t block, const float* sums, int64_t segments) {
  const TapGradient& work = *run.work;
  const TapBlock b = tap_block(run, block);
  const int64_t rows = std::min<int64_t>(kTapRows, work.gradient.channels - b.out);
  int64_t first = 0, channel = 0;  // of the source, as they are filled up and as they are
  size_t source = 0;
  for (int n = 0; n < b.vectors; ++n) {
    const int64_t in = b.in + n * kLanes;
    while (in >= first + filled(work.sources[source].channels)) {
      first += filled(work.sources[source].channels);
      channel += work.sources[source++].channels;
    }
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, work.sources[source].channels - (in - first)));
    float* to = work.taps + b.out * work.out_step + (channel + in - first) * work.in_step;
    for (int64_t r = 0; r < rows; ++r, to += work.out_step) {
      const float* p = sums + r * kPanel + n * kLanes;
      Vector t[3][6], g[9];
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
        Vector d[6], o[3];
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) d[i] = load(p + (6 * i + j) * kBlockSums);
        for (int64_t s = 1; s < segments; ++s)
#pragma GCC unroll 6
          for (int i = 0; i < 6; ++i) d[i] += load(p + s * run.segment_step + (6 * i + j) * kBlockSums);
        taps_of(d, o);
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) t[i][j] = o[i];
      }
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) taps_of(t[i], g + 3 * i);
      write_taps(work, g, lanes, to);
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
      tap_result(run, unit, local, 1);
    }
  }
}

UF_KERNEL inline void tap_results(const TapRun& run, int64_t first_block, int64_t end_block) {
  for (int64_t block = first_block; block < end_block; ++block)
    tap_result(run, block, run.sums + block * kPoints * kBlockSums, run.segments);
}

}  // namespace uf::winograd::UF_WINOGRAD_NAMESPACE
