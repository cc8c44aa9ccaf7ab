// What a thread of head_cross_entropy.cu has: its pixels and channels, the features and targets of a tile.
#pragma once

#include <bit>
#include <cmath>
#include <type_traits>

#include "cuda/channel_walk.h"
#include "cuda/cross_entropy_sums.h"
#include "cuda/head_cross_entropy.h"

namespace uf::cuda {

constexpr int kMostBlocks = 512;  // each writes a row of gradients: four for each multiprocessor of an H200 are enough
// Beyond these the operator calls a matrix product and the loss by itself (unet_fast/ops/head_cross_entropy.py).
constexpr int64_t kMostChannels = 256, kMostClasses = 8, kMostClassesOfDouble = 4;

// Channels and pixels of one thread for up to K classes.
template <class A, int K>
struct Share {
  static constexpr int kHalf = sizeof(A) / sizeof(float);  // twice the registers, half the share
  static constexpr int kChannels = 4 / kHalf, kPixels = (K <= 4 ? 4 : 2) / kHalf;
  static constexpr int kBlocks = K <= 4 / kHalf ? 2 : 1;  // of a multiprocessor, at least
  // The next tile is loaded in front of the barriers of the one before, where there are registers for it: without it
  // nothing is on its way while the losses are computed, by a few threads of each block. Else as soon as the old one is done.
  static constexpr bool kAhead = K == 2;
  // Shares of logits, each with room for the padding that keeps groups of channels on different banks; later the
  // gradients of all threads.
  static constexpr int kLogits = K * (kLossThreads * kPixels + 8 * kPixels * kPixels);
  static constexpr int kGradients = (K + 1) * kChannels * kLossThreads;
  static constexpr int kStage = kLogits > kGradients ? kLogits : kGradients;
};

enum class HeadAccess { kElements, kPixels, kChannels };  // what lies side by side in whole vectors

struct HeadCall {
  LossCall loss;  // targets, weights, divisor and sums, as of a loss by itself
  HeadCrossEntropyShape shape;
  HeadCrossEntropyArguments arguments;
  HeadAccess access;
  int log_groups;     // groups of channels, a power of two of them
  int tile_pixels;    // of a block
  int pitch;          // from group to group of the shares of the logits
  int64_t tiles;      // of one image
  double* gradients;  // a row of K C + C + K for each block
};

// Where a thread's pixels and channels begin.
struct HeadPlace {
  int slot, group, pixel;  // pixel: in the tile
  int64_t channel;

  template <int kPixels, int kChannels>
  __device__ static HeadPlace of(const HeadCall& call) {
    HeadPlace place;
    const int thread = static_cast<int>(threadIdx.x), slots = kLossThreads >> call.log_groups;
    const bool channels_first = call.shape.channels_last;
    place.group = channels_first ? thread & ((1 << call.log_groups) - 1) : thread / slots;
    place.slot = channels_first ? thread >> call.log_groups : thread % slots;
    place.pixel = place.slot * kPixels;
    place.channel = int64_t{place.group} * kChannels;
    return place;
  }
};

// Features as they lie in memory, two of 16 bits to a register, so that those of the next tile take few while they wait.
template <class T, int N>
struct Packed {
  using Word = std::conditional_t<sizeof(T) == 2, uint32_t, T>;
  static constexpr int kInWord = sizeof(Word) / sizeof(T);
  Word words[N / kInWord];

  __device__ Wide<T> operator[](int i) const {
    if constexpr (kInWord == 1) {
      return widen(words[i]);
    } else {
      return widen(std::bit_cast<T>(static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)))));
    }
  }

  // `count` elements from `first` on, all at once.
  template <int kCount>
  __device__ void load(int first, const T* from) {
    const auto run = load_vector<Word, kCount / kInWord>(reinterpret_cast<const Word*>(from));
#pragma unroll
    for (int i = 0; i < kCount / kInWord; ++i) words[first / kInWord + i] = run.values[i];
  }

  __device__ void set(int i, T value) {
    if constexpr (kInWord == 1) {
      words[i] = value;
    } else {
      words[i / 2] |= uint32_t{std::bit_cast<uint16_t>(value)} << (16 * (i % 2));
    }
  }
};

// A tile, and what this thread has of it.
template <class T, int VP, int VC>
struct HeadTile {
  int64_t n, first;  // the image, and the first pixel in it
  int count, pixels; // pixels of the tile and of this thread (below 1: none)

  __device__ HeadTile(const HeadCall& call, const HeadPlace& place, int64_t tile) {
    n = tile / call.tiles;
    first = (tile - n * call.tiles) * call.tile_pixels;
    const int64_t left = call.shape.pixels - first;
    count = left < call.tile_pixels ? static_cast<int>(left) : call.tile_pixels;
    pixels = count - place.pixel < VP ? count - place.pixel : VP;
  }

  // 0 beside the image and the channels. Pixel i, channel j is element j VP + i where pixels lie side by side, else i VC + j.
  __device__ Packed<T, VP * VC> load(const HeadCall& call, const HeadPlace& place, int channels) const {
    const int64_t pixel_stride = call.shape.pixel_stride, channel_stride = call.shape.channel_stride;
    const T* from = static_cast<const T*>(call.arguments.features) + n * call.shape.batch_stride +
                    (first + place.pixel) * pixel_stride + place.channel * channel_stride;
    Packed<T, VP * VC> f = {};
    if (call.access == HeadAccess::kPixels) {
#pragma unroll
      for (int j = 0; j < VC; ++j)
        if (pixels > 0 && j < channels) f.template load<VP>(j * VP, from + j * channel_stride);
    } else if (call.access == HeadAccess::kChannels) {
#pragma unroll
      for (int i = 0; i < VP; ++i)
        if (i < pixels && channels > 0) f.template load<VC>(i * VC, from + i * pixel_stride);
    } else {
#pragma unroll
      for (int i = 0; i < VP; ++i)
#pragma unroll
        for (int j = 0; j < VC; ++j)
          if (i < pixels && j < channels) f.set(i * VC + j, from[i * pixel_stride + j * channel_stride]);
    }
    return f;
  }
};

// Target and weight of one pixel.
template <class A>
struct HeadPixel {
  int32_t target = kIgnored;
  A weight = A(0);

  __device__ HeadPixel(const HeadCall& call, int64_t at, bool exists) {
    if (!exists) return;
    int32_t targets[1];
    A weights[1];
    read_targets(call.loss, at, targets);
    read_weights(call.loss, at, weights);
    target = targets[0];
    weight = weights[0];
  }
};

}  // namespace uf::cuda
