// 3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3), float32, channels innermost.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/parallel.h"

namespace uf::winograd {

enum class Activation : int { kNone, kRelu, kLeaky };

// Some channels of a map: element (n, y, x, c) lies at data + n * batch + y * rows + x * columns + c.
struct Source {
  const float* data;
  const float* mask;  // null, or a map with the same strides: where it is not above 0, data counts `mask_slope` times
  int64_t channels, batch, rows, columns;
};

struct Target {
  float* data;
  int64_t channels, batch, rows, columns;
};

// How the nine numbers of each pair of channels lie: (out, in, y, x) at data + out * out_step + ... A negative step with
// data at the last tap turns the kernel round, as the gradient of the input needs it.
struct Taps {
  const float* data;
  int64_t out_step, in_step, y_step, x_step;
};

// The kernel turned round by half a turn.
inline Taps turned(const Taps& taps) {
  return {taps.data + 2 * (taps.y_step + taps.x_step), taps.out_step, taps.in_step, -taps.y_step, -taps.x_step};
}

// What a ReLU's output goes to instead of one target that holds all of it: its 2x2 max-pool (whose sides are rounded down),
// and a part of it from (top, left) on.
struct PoolTargets {
  Target pooled, skip;
  int64_t top, left, skip_height, skip_width;
};

// Another convolution in front, of an image of few channels (see kThin), with a ReLU behind it. Its output is computed in the
// cache where the one behind it reads it, and never written.
struct FirstLayer {
  Source image;
  int64_t height, width, padding;  // of the image
  Taps taps;
  const float* bias;  // or null
};

// Products that are added up one after the other, in a register, before the next so many. What a sum rounds grows with the
// square root of this number, and from some 16 on it is more than all that the transforms round. Shorter ones take longer.
constexpr int64_t kLongSum = 64, kShortSum = 16;

// For the gradient of the input, of which torch rounds less than of its forward pass, and least where there are few channels.
inline int64_t gradient_sum(int64_t channels) { return channels > 2 * kShortSum ? 2 * kShortSum : kShortSum; }

// A convolution over the channels of all sources, which stand one behind the other, into those of all targets. The maps
// of the sources have height x width pixels, those of the targets height + 2 padding - 2 by width + 2 padding - 2.
struct Convolution {
  std::vector<Source> sources;
  std::vector<Target> targets;
  int64_t batch, height, width, padding;
  const float* bias;  // of all targets, or null
  Activation activation = Activation::kNone;
  float slope = 0, mask_slope = 0;
  int64_t sum = kLongSum;
  const PoolTargets* pool = nullptr;  // then there is one target, of which only the number of channels counts
  const FirstLayer* first = nullptr;  // then its output is the one source, of which only the number of channels counts

  int64_t out_height() const { return height + 2 * padding - 2; }
  int64_t out_width() const { return width + 2 * padding - 2; }
};

// The instruction sets that the kernels are written for, and the widest that the processor has and the environment allows:
// UNET_FAST_CPU_LEVEL=plain|avx2|avx512 is for tests and measurements.
enum class Level : int { kPlain, kAvx2, kAvx512 };
Level best_level();

// Floats that the transformed weights of a convolution from these groups of input channels take.
int64_t weight_floats(Level level, const std::vector<int64_t>& in_channels, const std::vector<int64_t>& out_channels);

// out must hold weight_floats(...).
void transform_weights(Level level, const Taps& taps, const std::vector<int64_t>& in_channels,
                       const std::vector<int64_t>& out_channels, float* out, const Parallel& parallel);

// `weights` are those that transform_weights made for the channels of the sources and targets at the same level.
void convolve(Level level, const Convolution& convolution, const float* weights, const Parallel& parallel);

// Whether an input has so few channels, as an image has, that they are worth no transform: a direct form computes the
// convolution then, where it starts from the taps, and the gradient of the taps.
constexpr int64_t kThin = 4;
bool is_thin(const Convolution& convolution);

// As both together, with weights that nobody keeps.
void convolve(Level level, const Convolution& convolution, const Taps& taps, const Parallel& parallel);

// The gradient of the taps (written, not added; steps as in Taps, contiguous or channels-last) from the inputs, as they
// were given to `convolve`, and the gradient of its output, whose mask is the output. bias: null, or the sums of the
// gradient over all pixels, one a channel.
struct TapGradient {
  std::vector<Source> sources;
  Source gradient;
  int64_t batch, height, width, padding;
  float mask_slope;
  float* taps;
  int64_t out_step, in_step, y_step, x_step;
  float* bias;
};
void tap_gradient(Level level, const TapGradient& work, const Parallel& parallel);

// A transposed convolution with a 2x2 kernel and stride 2 by the same vectors: pixels (y, x) of a source of height x width to
// pixels (2y, 2x) to (2y + 1, 2x + 1) of the target. weights: (in, 2, 2, out), dense.
struct UpConvolution {
  Source source;
  Target target;
  int64_t batch, height, width;
  const float* weights;
  const float* bias;  // or null
};
void up_convolve(Level level, const UpConvolution& work, const Parallel& parallel);

}  // namespace uf::winograd
