// The pixels are cut into blocks whose features fit the first-level cache. Of each block the features are read once (with
// their bias and ReLU where asked), multiplied by the weights into rows of logits, one row a class, and those rows go
// through the maths of cpu/cross_entropy_block.h, after which they hold the gradient of the logits. While the features are
// still in the cache that gradient gives those of the features, which are written, of the weights and of the biases, which
// are summed: in single precision over a block, in double over the blocks.
//   bytes per pixel: C e features read and C e gradient written, 8 target, 4 weight
// where a convolution and a loss, each with its backward, read the features twice and the logits and their gradient twice;
// with a ReLU in front, whose output would be written, read, and masked with, it is 2 C e instead of 9 C e and more.
#include "cpu/head_cross_entropy.h"

#include "common/half.h"
#include "cpu/channel_sums.h"
#include "cpu/cross_entropy_block.h"
#include "cpu/lanes.h"

namespace uf {
namespace {

constexpr int64_t kGrainValues = 1 << 14;  // less work than this is not worth waking a second thread for

template <class A>
struct Scratch {
  Scratch(const HeadCrossEntropyShape& s, int64_t most)
      // a few vectors more than a block: rows a power of two apart would fall on the same cache lines
      : pitch(most + 16),
        rows(static_cast<size_t>((s.classes + 5) * pitch)),
        features(static_cast<size_t>(s.channels * pitch)),
        sums(static_cast<size_t>(s.classes * s.channels + s.channels + s.classes)),
        integers(static_cast<size_t>(2 * pitch)) {
    std::fill_n(row(s.classes + 4), pitch, A(1));
  }
  A* row(int64_t index) { return rows.data() + index * pitch; }

  const int64_t pitch;
  std::vector<A> rows, features, sums;
  std::vector<int32_t> integers;
};

// One block, all of it in the scratch: `f` holds the features, pixel after pixel (channels last) or channel after channel.
template <class A>
struct Head {
  int64_t channels, classes, pixels, pitch;
  bool relu;
  const A* weight;
  const A* bias;          // null: 0
  const A* feature_bias;  // null: 0
  A* f;
  const Block<A>* block;
  A* grad_weight;
  A* grad_feature_bias;
  A* grad_bias;
};

// NaN passes, as through torch's.
template <class A>
UF_INLINE A rectified(A value, bool relu) {
  return relu && value <= A(0) ? A(0) : value;
}

// ---- channels last

template <class T, class A>
struct LoadPixel {
  const T* __restrict in;
  const A* __restrict bias;
  bool relu;
  A* __restrict f;

  UF_PIECE(c) {
    UF_LANES(j) f[c + j] = rectified<A>(widen(in[c + j]) + (bias ? bias[c + j] : A(0)), relu);
  }
};

template <class A>
UF_INLINE A dot(const A* __restrict a, const A* __restrict b, int64_t count) {
  constexpr int kLanes = 16;
  A lanes[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    UF_INDEPENDENT
    for (int j = 0; j < kLanes; ++j) lanes[j] += a[c + j] * b[c + j];
  }
  A rest = 0;
  for (; c < count; ++c) rest += a[c] * b[c];
  return lane_sum(lanes) + rest;
}

template <class G, class A>
struct GradientPixel {
  const Head<A>& head;
  const A* __restrict x;  // gradient of the pixel's logits, a pitch apart
  const A* __restrict f;
  G* __restrict out;

  UF_PIECE(c) {
    A sum[L] = {};
    for (int64_t k = 0; k < head.classes; ++k) {
      const A g = x[k * head.pitch];
      const A* __restrict w = head.weight + k * head.channels + c;
      A* __restrict to = head.grad_weight + k * head.channels + c;
      UF_INDEPENDENT
      for (int j = 0; j < L; ++j) sum[j] += g * w[j];
      UF_INDEPENDENT
      for (int j = 0; j < L; ++j) to[j] += g * f[c + j];
    }
    A* __restrict total = head.grad_feature_bias + c;
    UF_LANES(j) {
      const A g = head.relu && f[c + j] == A(0) ? A(0) : sum[j];
      total[j] += g;
      out[c + j] = narrow<G>(g);
    }
  }
};

template <class T, class A>
UF_INLINE void load_pixels(const Head<A>& head, const T* in, int64_t pixel_stride) {
  for (int64_t i = 0; i < head.pixels; ++i) {
    A* f = head.f + i * head.channels;
    if (head.block->target[i] < 0)  // an ignored pixel counts for nothing, NaN included
      std::fill_n(f, head.channels, A(0));
    else
      for_lanes(head.channels, LoadPixel<T, A>{in + i * pixel_stride, head.feature_bias, head.relu, f});
  }
}

template <class A>
UF_INLINE void logits_of_pixels(const Head<A>& head) {
  for (int64_t i = 0; i < head.pixels; ++i)
    for (int64_t k = 0; k < head.classes; ++k)
      head.block->x[k * head.pitch + i] = dot(head.f + i * head.channels, head.weight + k * head.channels, head.channels) +
                                          (head.bias ? head.bias[k] : A(0));
}

template <class G, class A>
UF_INLINE void gradient_of_pixels(const Head<A>& head, G* out) {
  for (int64_t i = 0; i < head.pixels; ++i)
    for_lanes(head.channels, GradientPixel<G, A>{head, head.block->x + i, head.f + i * head.channels,
                                                 out + i * head.channels});
}

// ---- planar

template <class T, class A>
UF_INLINE void load_plane(const T* __restrict in, int64_t count, A bias, bool relu, const int32_t* __restrict target,
                          A* __restrict f) {
  for (int64_t i = 0; i < count; ++i) {
    const A value = rectified<A>(widen(in[i]) + bias, relu);
    f[i] = target[i] < 0 ? A(0) : value;
  }
}

template <class A>
UF_INLINE void add_scaled(const A* __restrict f, A weight, int64_t count, A* __restrict x) {
  for (int64_t i = 0; i < count; ++i) x[i] += weight * f[i];
}

template <class G, class A>
UF_INLINE void masked_plane(A* __restrict sum, const A* __restrict f, bool relu, int64_t count, G* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    const A g = relu && f[i] == A(0) ? A(0) : sum[i];
    sum[i] = g;
    out[i] = narrow<G>(g);
  }
}

template <class T, class A>
UF_INLINE void load_planes(const Head<A>& head, const T* in, int64_t channel_stride) {
  for (int64_t c = 0; c < head.channels; ++c)
    load_plane<T, A>(in + c * channel_stride, head.pixels, head.feature_bias ? head.feature_bias[c] : A(0), head.relu,
                     head.block->target, head.f + c * head.pitch);
}

template <class A>
UF_INLINE void logits_of_planes(const Head<A>& head) {
  for (int64_t k = 0; k < head.classes; ++k) {
    A* x = head.block->x + k * head.pitch;
    std::fill_n(x, head.pixels, head.bias ? head.bias[k] : A(0));
    for (int64_t c = 0; c < head.channels; ++c)
      add_scaled(head.f + c * head.pitch, head.weight[k * head.channels + c], head.pixels, x);
  }
}

// `sum` is a scratch row.
template <class G, class A>
UF_INLINE void gradient_of_planes(const Head<A>& head, G* out, int64_t out_stride, A* sum) {
  for (int64_t c = 0; c < head.channels; ++c) {
    const A* f = head.f + c * head.pitch;
    std::fill_n(sum, head.pixels, A(0));
    for (int64_t k = 0; k < head.classes; ++k) {
      const A* x = head.block->x + k * head.pitch;
      add_scaled(x, head.weight[k * head.channels + c], head.pixels, sum);
      head.grad_weight[k * head.channels + c] += dot(x, f, head.pixels);
    }
    masked_plane(sum, f, head.relu, head.pixels, out + c * out_stride);
    head.grad_feature_bias[c] += static_cast<A>(row_sum<A>(sum, head.pixels));
  }
}

// ---- one block

template <class T, class G, class A>
UF_INLINE double compute(const HeadCrossEntropyShape& s, const T* features, G* grad, const Head<A>& head,
                         Scratch<A>& scratch) {
  Block<A> block = *head.block;
  if (s.channels_last) {
    load_pixels(head, features, s.pixel_stride);
    logits_of_pixels(head);
  } else {
    load_planes(head, features, s.channel_stride);
    logits_of_planes(head);
  }
  A* rows[3] = {scratch.row(s.classes), scratch.row(s.classes + 1), scratch.row(s.classes + 2)};
  if (s.classes == 2)
    two_classes(block);
  else
    many_classes(block, rows[0], scratch.integers.data() + scratch.pitch, rows[1], rows[2]);
  if (block.want_grad) {
    for (int64_t k = 0; k < s.classes; ++k)
      head.grad_bias[k] += static_cast<A>(row_sum<A>(block.x + k * head.pitch, head.pixels));
    if (s.channels_last)
      gradient_of_pixels(head, grad);
    else
      gradient_of_planes(head, grad, s.pixels, rows[0]);
  }
  return sum_in_double(block.loss, block.pixels);
}

#define UF_HEAD(T, G, A)                                                                                          \
  UF_MULTIVERSION double compute_block(const HeadCrossEntropyShape& s, const T* features, G* grad, const Head<A>& head, \
                                       Scratch<A>& scratch) {                                                     \
    return compute(s, features, grad, head, scratch);                                                             \
  }

UF_HEAD(double, double, double)
UF_HEAD(float, float, float)
UF_HEAD(Half, float, float)
UF_HEAD(BFloat16, BFloat16, float)
#undef UF_HEAD

// ---- the whole

template <class T, class G, class A>
BadTarget run(const HeadCrossEntropyShape& s, const HeadCrossEntropyArguments& a, const Parallel& parallel) {
  const int64_t most = block_pixels(std::max(s.classes, s.channels)), per_image = (s.pixels + most - 1) / most;
  const int64_t blocks = s.batch * per_image, parts = std::max<int64_t>(1, std::min(blocks, kSumParts));
  const int64_t values = s.classes * s.channels + s.channels + s.classes;  // gradients summed over the pixels
  const bool want_grad = a.grad_features != nullptr;
  const A* pixel_weight = static_cast<const A*>(a.pixel_weight);
  std::vector<BlockSums> sums(static_cast<size_t>(blocks));
  std::vector<double> gradients(static_cast<size_t>(want_grad ? (parts + 1) * values : 0));
  const int64_t grain = kGrainValues * parts / (s.batch * s.pixels * std::max(s.channels, s.classes) + 1) + 1;

  const auto read = [&](int64_t unit, int32_t* target) {
    const int64_t start = unit % per_image * most, at = unit / per_image * s.pixels + start;
    const int64_t count = std::min(most, s.pixels - start);
    BlockSums read = read_targets(a.class_type, a.target, at, count, s.classes, a.ignore_index, target);
    if (a.reduction == Reduction::kWeightMean)
      read.weight = pixel_weight ? sum_weights(pixel_weight + at, target, count) : static_cast<double>(read.counted);
    return read;
  };
  const auto for_blocks = [&](auto&& f) {
    parallel(parts, grain, [&](int64_t begin, int64_t end) {
      Scratch<A> scratch(s, most);
      for (int64_t part = begin; part < end; ++part) f(part, scratch);
    });
  };

  double scale = 1;
  if (want_grad && a.reduction != Reduction::kSum) {  // the divisor comes before the first gradient is written
    for_blocks([&](int64_t part, Scratch<A>& scratch) {
      for (int64_t unit = blocks * part / parts; unit < blocks * (part + 1) / parts; ++unit)
        sums[unit] = read(unit, scratch.integers.data());
    });
    const BlockSums all = total(sums);
    if (all.bad.found) return all.bad;
    scale = 1 / divisor(all, a.reduction);
  }

  for_blocks([&](int64_t part, Scratch<A>& scratch) {
    for (int64_t unit = blocks * part / parts; unit < blocks * (part + 1) / parts; ++unit) {
      const int64_t n = unit / per_image, start = unit % per_image * most, at = n * s.pixels + start;
      int32_t* target = scratch.integers.data();
      sums[unit] = read(unit, target);
      std::fill(scratch.sums.begin(), scratch.sums.end(), A(0));
      const Block<A> block = {std::min(most, s.pixels - start),
                              s.classes,
                              scratch.pitch,
                              scratch.row(0),
                              target,
                              pixel_weight ? pixel_weight + at : scratch.row(s.classes + 4),
                              scratch.row(s.classes + 3),
                              static_cast<A>(scale),
                              want_grad};
      A* gradient = scratch.sums.data();
      const Head<A> head = {s.channels,
                            s.classes,
                            block.pixels,
                            scratch.pitch,
                            a.relu,
                            static_cast<const A*>(a.weight),
                            static_cast<const A*>(a.bias),
                            static_cast<const A*>(a.feature_bias),
                            scratch.features.data(),
                            &block,
                            gradient,
                            gradient + s.classes * s.channels,
                            gradient + s.classes * s.channels + s.channels};
      const T* features = static_cast<const T*>(a.features) + n * s.batch_stride + start * s.pixel_stride;
      G* grad = want_grad ? static_cast<G*>(a.grad_features) + n * s.channels * s.pixels +
                                start * (s.channels_last ? s.channels : 1)
                          : nullptr;
      sums[unit].loss = compute_block(s, features, grad, head, scratch);
      if (!want_grad) continue;
      double* row = gradients.data() + (part + 1) * values;
      for (int64_t v = 0; v < values; ++v) row[v] += gradient[v];
    }
  });
  const BlockSums all = total(sums);
  *static_cast<A*>(a.loss) = static_cast<A>(all.loss / divisor(all, a.reduction));
  if (want_grad) {
    double* summed = gradients.data();
    add_rows(summed + values, parts, values, summed);
    std::copy_n(summed, s.classes * s.channels, a.grad_weight);
    std::copy_n(summed + s.classes * s.channels, s.channels, a.grad_feature_bias);
    std::copy_n(summed + s.classes * s.channels + s.channels, s.classes, a.grad_bias);
  }
  return all.bad;
}

}  // namespace

BadTarget head_cross_entropy(const HeadCrossEntropyShape& shape, const HeadCrossEntropyArguments& arguments,
                             const Parallel& parallel) {
  return dispatch_floating(arguments.float_type, [&]<class T>(T) {
    return run<T, GradientOf<T>, Wide<T>>(shape, arguments, parallel);
  });
}

}  // namespace uf
