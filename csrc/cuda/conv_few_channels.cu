// The first convolution of a network. It has 9 to 36 products a number that it writes, so memory bounds it: forward it
// writes the output, e bytes an element, and reads next to nothing; backward it reads gradient and output, 2 e, and writes
// next to nothing, since nobody wants the gradient of an image. cuDNN pads the channels to eight for its tensor cores, writes
// the output without the bias, and ReLU and bias are another 2 e (forward) and 3 e (backward, before the product reads e).
// Predicted for 8 x 64 x 570 x 570 in bfloat16 (333 MB) at 2.4 TB/s: 0.14 ms forward, 0.28 ms backward. Measured on an H100:
// 0.27 ms for the 0.73 of cuDNN with bias_relu, and 0.44 for 0.68; three channels take 0.50 for 0.67 forward, but would take
// 1.07 for 0.62 backward, and in float32 0.57 for 0.86 and 0.91 for 1.29. Instructions bound it, some 110 for eight numbers.
//
// Forward: a thread keeps to one vector of features and takes four pixels at once (channel_walk.h); the block's weights lie
// in shared memory in float32, and each is read once for the four. Backward: a thread keeps the sums of its features over
// the pixels of its strip in registers, 9 a channel, hence fewer features a thread where there are more channels; blocks
// write partial sums, which are added up in a fixed order.
#include "cuda/conv_few_channels.h"

#include "common/pool_window.h"
#include "cuda/channel_sums.h"
#include "cuda/channel_walk.h"

namespace uf::cuda {
namespace {

constexpr int kTaps = 9, kMostChannels = 4;
constexpr int kPixels = 4, kPixelsBackward = 2;  // of a thread at once
constexpr int64_t kMostSteps = 16, kLeastStepsBackward = 32, kMostStepsBackward = 512;
constexpr int kBlocks = 2;  // at least, of a multiprocessor: 128 registers a thread

// What the kernels know of the image. Offsets fit 31 bits (fits_few_channels).
struct ImageWalk {
  Divide<uint32_t> plane, row;  // output pixels of an image, of a row
  int32_t stride[4];
  int32_t height, width, padding;

  explicit ImageWalk(const FewChannels& s)
      : plane(s.out_height() * s.out_width()),
        row(s.out_width()),
        height(static_cast<int32_t>(s.height)),
        width(static_cast<int32_t>(s.width)),
        padding(static_cast<int32_t>(s.padding)) {
    for (int d = 0; d < 4; ++d) stride[d] = static_cast<int32_t>(s.stride[d]);
  }
};

// The 3 x 3 neighbourhood that an output pixel reads.
template <bool Padded>
struct Neighbourhood {
  int32_t first, y, x;  // the offset of its first pixel, and where that lies in the image

  Neighbourhood() = default;
  __device__ Neighbourhood(const ImageWalk& image, int64_t pixel) {
    const uint32_t n = image.plane(static_cast<uint32_t>(pixel));
    const uint32_t within = static_cast<uint32_t>(pixel) - n * image.plane.divisor, line = image.row(within);
    y = static_cast<int32_t>(line) - image.padding;
    x = static_cast<int32_t>(within - line * image.row.divisor) - image.padding;
    first = static_cast<int32_t>(n) * image.stride[0] + y * image.stride[2] + x * image.stride[3];
  }

  template <class T>
  __device__ float read(const ImageWalk& image, const T* from, int channel, int dy, int dx) const {
    if constexpr (Padded) {
      if (static_cast<uint32_t>(y + dy) >= static_cast<uint32_t>(image.height)) return 0;
      if (static_cast<uint32_t>(x + dx) >= static_cast<uint32_t>(image.width)) return 0;
    }
    return widen(from[first + channel * image.stride[1] + dy * image.stride[2] + dx * image.stride[3]]);
  }
};

struct WeightStride {
  int64_t of[4];
};

template <class T, int Channels, bool Padded>
__global__ void __launch_bounds__(kWalkThreads, kBlocks)
    conv_few_channels_kernel(const ImageWalk image, const ChannelStrips all, const WeightStride stride,
                             const T* __restrict__ x, const T* __restrict__ weight, const float* __restrict__ bias,
                             T* __restrict__ out) {
  constexpr int V = kVector<T>, kBatch = 4;
  __shared__ Vector<float, kBatch> taps[kTaps * Channels][kWarp * V / kBatch];
  const ChannelStrip strip(all);
  const int lanes = 1 << all.log_lanes, lane = threadIdx.x & (lanes - 1);
  const int64_t features = all.groups * V, first_feature = (strip.group - lane) * V;
  for (int i = threadIdx.x; i < kTaps * Channels * lanes * V; i += kWalkThreads) {
    const int tap = i / (lanes * V), column = i - tap * (lanes * V), channel = tap / kTaps, at = tap % kTaps;
    const int64_t feature = first_feature + column;
    const int64_t offset = feature * stride.of[0] + channel * stride.of[1] + at / 3 * stride.of[2] + at % 3 * stride.of[3];
    taps[tap][column / kBatch].values[column % kBatch] = feature < features ? static_cast<float>(widen(weight[offset])) : 0.0f;
  }
  float b[V] = {};
  if (bias && strip.group < all.groups) {
#pragma unroll
    for (int v = 0; v < V; ++v) b[v] = bias[strip.group * V + v];
  }
  __syncthreads();
  for (int64_t begin = strip.item; begin < strip.end; begin += kPixels * all.rows) {
    float sum[kPixels][V];
    Neighbourhood<Padded> at[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      // a pixel behind the strip stands for the first: it is computed, and not written
      const int64_t pixel = begin + i * all.rows;
      at[i] = Neighbourhood<Padded>(image, pixel < strip.end ? pixel : begin);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[i][v] = b[v];
    }
    // three taps at a time: all of them loaded at once would not fit the registers
#pragma unroll 1
    for (int line = 0; line < 3 * Channels; ++line) {
      const int channel = line / 3, dy = line % 3;
#pragma unroll
      for (int dx = 0; dx < 3; ++dx) {
        float w[V];
#pragma unroll
        for (int part = 0; part < V; part += kBatch) {
          const Vector<float, kBatch> four = taps[3 * line + dx][(lane * V + part) / kBatch];
#pragma unroll
          for (int v = 0; v < kBatch; ++v) w[part + v] = four.values[v];
        }
#pragma unroll
        for (int i = 0; i < kPixels; ++i) {
          const float value = at[i].read(image, x, channel, dy, dx);
#pragma unroll
          for (int v = 0; v < V; ++v) sum[i][v] = w[v] * value + sum[i][v];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int64_t pixel = begin + i * all.rows;
      if (pixel >= strip.end) break;
      Vector<T, V> result;
#pragma unroll
      for (int v = 0; v < V; ++v) result.values[v] = std::bit_cast<T>(rectified_bits(narrow<T>(sum[i][v])));
      store_vector(out + pixel * features + strip.group * V, result);
    }
  }
}

// The features of one thread: 36 to 72 sums.
template <int Channels>
constexpr int kFeatures = Channels == 1 ? 4 : 2;

// For sm_100 the compiler does not get the 72 sums of four channels into 128 registers without spilling.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <int Channels>
constexpr int kBlocksBackward = Channels < kMostChannels ? kBlocks : 1;
#else
template <int Channels>
constexpr int kBlocksBackward = kBlocks;
#endif

// partial (parts, features, 9, channels), partial_bias (parts, features) or null.
template <class T, int Channels, bool Padded>
__global__ void __launch_bounds__(kWalkThreads, kBlocksBackward<Channels>)
    conv_few_channels_backward_kernel(const ImageWalk image, const ChannelStrips all, const T* __restrict__ grad,
                                      const T* __restrict__ out, const T* __restrict__ x, double* __restrict__ partial,
                                      double* __restrict__ partial_bias) {
  constexpr int V = kFeatures<Channels>, kSums = kTaps * Channels;
  const ChannelStrip strip(all);
  const int64_t features = all.groups * V;
  float sums[kSums][V] = {}, bias_sums[V] = {};
  for (int64_t begin = strip.item; begin < strip.end; begin += kPixelsBackward * all.rows) {
    Vector<T, V> grads[kPixelsBackward], outs[kPixelsBackward];
#pragma unroll
    for (int i = 0; i < kPixelsBackward; ++i) {
      const int64_t pixel = begin + i * all.rows;
      if (pixel >= strip.end) break;
      grads[i] = load_vector<T, V>(grad + pixel * features + strip.group * V);
      outs[i] = load_vector<T, V>(out + pixel * features + strip.group * V);
    }
#pragma unroll
    for (int i = 0; i < kPixelsBackward; ++i) {
      const int64_t pixel = begin + i * all.rows;
      if (pixel >= strip.end) break;
      const Neighbourhood<Padded> at(image, pixel);
      float g[V];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        g[v] = widen(std::bit_cast<T>(where_on(outs[i].values[v], grads[i].values[v])));
        bias_sums[v] += g[v];
      }
#pragma unroll
      for (int sum = 0; sum < kSums; ++sum) {
        const int tap = sum / Channels, channel = sum % Channels;
        const float value = at.read(image, x, channel, tap / 3, tap % 3);
#pragma unroll
        for (int v = 0; v < V; ++v) sums[sum][v] = g[v] * value + sums[sum][v];
      }
    }
  }
#pragma unroll
  for (int sum = 0; sum < kSums; ++sum) {
    strip.write_sums(all, sums[sum], partial, kSums, sum);
    __syncthreads();
  }
  if (partial_bias) strip.write_sums(all, bias_sums, partial_bias);
}

template <class T>
ChannelStrips forward_strips(const FewChannels& s) {
  return ChannelStrips(s.pixels(), s.features, kVector<T>, kPixels, kMostSteps);
}

template <int Channels>
ChannelStrips backward_strips(const FewChannels& s) {
  return ChannelStrips(s.pixels(), s.features, kFeatures<Channels>, kLeastStepsBackward, kMostStepsBackward);
}

// f.template operator()<Channels>().
template <class F>
auto dispatch_channels(int64_t channels, const F& f) {
  if (channels == 1) return f.template operator()<1>();
  if (channels == 2) return f.template operator()<2>();
  if (channels == 3) return f.template operator()<3>();
  return f.template operator()<kMostChannels>();
}

// The same for what the backward kernel takes, see fits_few_channels_backward.
template <class T, class F>
auto dispatch_channels_backward(int64_t channels, const F& f) {
  if constexpr (sizeof(T) == 2)
    return f.template operator()<1>();
  else  // so that no kernel is compiled that nothing calls
    return dispatch_channels(channels, f);
}

// f(T{}) for the dtypes that the kernels take.
template <class F>
auto dispatch_summed_in_float(DType type, const F& f) {
  return dispatch<Half, BFloat16, float>(type, f);
}

}  // namespace

bool fits_few_channels(const FewChannels& s, DType type) {
  constexpr int64_t kLargest = INT32_MAX / 2;
  if (s.channels < 1 || s.channels > kMostChannels || type == DType::kFloat64 || s.pixels() > kLargest) return false;
  int64_t last = 0;  // offset within the image
  const int64_t size[4] = {s.batch, s.channels, s.height + 2 * s.padding, s.width + 2 * s.padding};
  for (int d = 0; d < 4; ++d) last += (size[d] - 1) * s.stride[d];
  return last <= kLargest && s.features % (kVectorBytes / element_size(type)) == 0;
}

bool fits_few_channels_backward(const FewChannels& shape, DType type) {
  return fits_few_channels(shape, type) && (shape.channels == 1 || type == DType::kFloat32);
}

cudaError_t conv_few_channels(const FewChannels& shape, DType type, const void* x, const void* weight,
                              const int64_t weight_stride[4], const void* bias, void* out, cudaStream_t stream) {
  if (shape.pixels() == 0 || shape.features == 0) return cudaSuccess;
  const WeightStride stride = {{weight_stride[0], weight_stride[1], weight_stride[2], weight_stride[3]}};
  return dispatch_summed_in_float(type, [&]<class T>(T) {
    return dispatch_channels(shape.channels, [&]<int Channels>() {
      const auto kernel = shape.padding ? conv_few_channels_kernel<T, Channels, true>
                                        : conv_few_channels_kernel<T, Channels, false>;
      const ChannelStrips all = forward_strips<T>(shape);
      return launch(kernel, all.blocks(), kWalkThreads, stream, ImageWalk(shape), all, stride, static_cast<const T*>(x),
                    static_cast<const T*>(weight), static_cast<const float*>(bias), static_cast<T*>(out));
    });
  });
}

cudaError_t conv_few_channels_backward(const FewChannels& shape, DType type, const void* grad, const void* out,
                                       const void* x, void* grad_weight, void* grad_bias, double* workspace,
                                       cudaStream_t stream) {
  return dispatch_summed_in_float(type, [&]<class T>(T) {
    return dispatch_channels_backward<T>(shape.channels, [&]<int Channels>() {
      const ChannelStrips all = backward_strips<Channels>(shape);
      const int64_t weights = kTaps * Channels * shape.features;
      double* partial_bias = grad_bias ? workspace + all.parts * weights : nullptr;
      const auto kernel = shape.padding ? conv_few_channels_backward_kernel<T, Channels, true>
                                        : conv_few_channels_backward_kernel<T, Channels, false>;
      cudaError_t error = launch(kernel, all.blocks(), kWalkThreads, stream, ImageWalk(shape), all,
                                 static_cast<const T*>(grad), static_cast<const T*>(out), static_cast<const T*>(x),
                                 workspace, partial_bias);
      if (error == cudaSuccess) error = channel_sums(workspace, all.parts, weights, type, grad_weight, stream);
      if (error != cudaSuccess || !grad_bias) return error;
      return channel_sums(partial_bias, all.parts, shape.features, DType::kFloat32, grad_bias, stream);
    });
  });
}

int64_t conv_few_channels_workspace(const FewChannels& shape, DType type) {
  return dispatch_summed_in_float(type, [&]<class T>(T) {
    return dispatch_channels_backward<T>(shape.channels, [&]<int Channels>() {
      return backward_strips<Channels>(shape).parts * shape.features * (kTaps * Channels + 1);
    });
  });
}

}  // namespace uf::cuda
