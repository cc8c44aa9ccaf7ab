// What forward and backward of the normalisation share: how a map is given to the threads, and the numbers of its channels.
#pragma once

#include "common/norm_activation.h"
#include "cuda/channel_walk.h"

namespace uf::cuda {

constexpr int kNormBlocks = 2;  // of a multiprocessor: channels-last threads hold four to six numbers of each channel of a vector
constexpr int kNormVectors = 4;                      // of a lane in a chunk of a plane
constexpr int64_t kNormPixels = 4, kNormSteps = 16;  // of a channels-last thread: at once, and at most

// Either layout of a map. A row of partial numbers, a few of each channel, comes from each chunk of the planes of an image, or from
// each strip of pixels: of an image, or of all together where a set is one channel of the batch.
struct NormWalk {
  PlaneChunks planes;
  ChannelStrips strips;
  bool last;
  int64_t walked;          // images that are walked one after the other, as far as strips go
  int64_t images;          // that have statistics of their own
  int64_t rows_of_image;   // of these

  NormWalk(const NormActivationShape& s, int64_t vector)
      : planes(s.batch, s.channels, s.pixels / vector, kWarp * kNormVectors),
        strips(s.groups == 0 ? s.batch * s.pixels : s.pixels, s.channels, s.channels_last ? vector : 1, kNormPixels, kNormSteps),
        last(s.channels_last),
        walked(s.groups == 0 ? 1 : s.batch),
        images(walked),
        rows_of_image(last ? strips.parts : s.groups == 0 ? planes.parts() : planes.chunks.divisor) {}

  int64_t rows() const { return rows_of_image * images; }
  int64_t blocks() const { return last ? walked * strips.blocks() : planes.blocks(); }
};

// The strip of this block, its image, and where the image starts.
struct NormStrip {
  int64_t image;
  ChannelStrip strip;

  __device__ explicit NormStrip(const ChannelStrips& all)
      : image(blockIdx.x / static_cast<uint32_t>(all.blocks())),
        strip(all, blockIdx.x - static_cast<uint32_t>(image * all.blocks())) {}
};

// Of each channel, wide: mean and scale once, or for each image, `image_step` apart; bias and slope null for 0 and `negative`.
template <class A>
struct NormColumns {
  const A *mean, *scale, *bias, *slope;
  int64_t image_step;
  A negative;

  __device__ A bias_of(int64_t channel) const { return bias ? bias[channel] : A(0); }
  __device__ A slope_of(int64_t channel) const { return slope ? slope[channel] : negative; }
};

template <class A>
NormColumns<A> norm_columns(const NormActivationShape& s, const NormActivationChannels& channels, const A* mean, const A* scale) {
  // no activation and a ReLU are leaky ones
  const double negative = s.activation == Activation::kNone ? 1 : s.activation == Activation::kRelu ? 0 : s.slope;
  const A* slope = s.activation == Activation::kLeaky ? static_cast<const A*>(channels.slope) : nullptr;
  return {mean, scale, static_cast<const A*>(channels.bias), slope, s.groups == 0 ? 0 : s.channels,
          static_cast<A>(negative)};
}

// Of one channel.
template <class A>
struct NormColumn {
  A mean, scale, bias, slope;

  __device__ NormColumn() {}
  __device__ NormColumn(const NormColumns<A>& all, int64_t image, int64_t channel)
      : mean(all.mean[image * all.image_step + channel]),
        scale(all.scale[image * all.image_step + channel]),
        bias(all.bias_of(channel)),
        slope(all.slope_of(channel)) {}

  __device__ A of(A x) const { return (x - mean) * scale + bias; }
};

// The activation and the factor of its gradient: SiLU, or a factor of negative numbers, whose 0 a ReLU's is for infinite ones as well.
template <bool kSilu, class A>
__device__ A norm_activated(A z, A slope) {
  if constexpr (kSilu) return activated<Activation::kSilu>(z, slope);
  return z < 0 && slope == 0 ? A(0) : activated<Activation::kLeaky>(z, slope);
}

template <bool kSilu, class A>
__device__ A norm_activation_slope(A z, A slope) {
  return activation_slope<kSilu ? Activation::kSilu : Activation::kLeaky>(z, slope);
}

// Whether a map can be accessed in 16-byte vectors: with channels-last also of the same channels everywhere.
template <class T>
bool norm_is_wide(const NormActivationShape& s, const void* a, const void* b, const void* c) {
  return (!s.channels_last || s.channels % kVector<T> == 0) && is_aligned(a, kVectorBytes) && is_aligned(b, kVectorBytes) &&
         is_aligned(c, kVectorBytes);
}

inline bool norm_is_empty(const NormActivationShape& s) { return s.batch * s.channels * s.pixels == 0; }

// The numbers of `count` places of each channel of each image that has statistics.
inline int64_t norm_numbers(const NormWalk& walk, const NormActivationShape& s, int64_t count) {
  return walk.images * s.channels * count;
}

// 1 / sqrt(var + eps)
template <class A>
__device__ double inverse_deviation(const A* var, int64_t set, double eps) {
  return 1.0 / sqrt(static_cast<double>(var[set]) + eps);
}

}  // namespace uf::cuda
