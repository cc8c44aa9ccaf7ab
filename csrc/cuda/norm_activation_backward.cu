// With d = x - mean, r = 1 / sqrt(var + eps), z = d r w + b and h = g f'(z), over the M numbers of a set:
//
//   grad_x = r (w h - A / M - d r^2 B / M),  A = sum w h,  B = sum w h d
//   grad_weight = sum h d r,  grad_bias = sum h,  grad_slope = sum of g z where z is not positive
//
// as in csrc/cpu/norm_activation_backward.cpp. One pass over g and x leaves three sums of each part of a channel in memory, one more
// makes the gradient of what came of them; between them a few numbers a channel. No atomics: the order of the additions never changes.
//
// Bytes an element of e bytes: 2 e for the sums, 3 e for the gradient; the limit is those bytes / copy bandwidth.
#include <cmath>

#include "cuda/block_sum.h"
#include "cuda/channel_sums.h"
#include "cuda/norm_activation.h"

namespace uf::cuda {
namespace {

constexpr int kSums = 3;                  // of h, of h d, and of g z
constexpr int64_t kPixels = 2;            // that a channels-last thread takes at once

// ---- sums of parts

template <bool kSilu, class A>
__device__ void add_gradients(A g, A x, const NormColumn<A>& column, A (&sums)[kSums]) {
  const A d = x - column.mean, z = d * column.scale + column.bias, h = g * norm_activation_slope<kSilu>(z, column.slope);
  sums[0] += h;
  sums[1] += h * d;
  if constexpr (!kSilu) sums[2] += z > 0 ? A(0) : g * z;
}

// The vectors of gradient and map that a lane of a plane works on.
template <class T, int V>
__device__ void load_vectors(const LaneOfPlane<V, kNormVectors>& lane, const T* __restrict__ grad, const T* __restrict__ x,
                             Vector<T, V> (&grads)[kNormVectors], Vector<T, V> (&values)[kNormVectors]) {
#pragma unroll
  for (int i = 0; i < kNormVectors; ++i) {
    if (lane.vector + i * kWarp >= lane.end) continue;
    grads[i] = load_vector<T, V>(grad + (lane.vector + i * kWarp) * V);
    values[i] = load_vector<T, V>(x + (lane.vector + i * kWarp) * V);
  }
}

template <class T, int V, bool kSilu>
__global__ void __launch_bounds__(kWalkThreads, kNormBlocks)
    norm_sums_planes(const PlaneChunks all, const int64_t pixels, const T* __restrict__ grad, const T* __restrict__ x,
                     const NormColumns<Wide<T>> columns, double* __restrict__ partial) {
  using A = Wide<T>;
  const PlaneChunk at(all);
  if (!at.exists) return;
  const LaneOfPlane<V, kNormVectors> lane(at, all, pixels);
  const NormColumn<A> column(columns, at.image, at.channel);
  Vector<T, V> grads[kNormVectors], values[kNormVectors];
  load_vectors(lane, grad, x, grads, values);
  A sums[kSums] = {};
  if (lane.edge >= 0) add_gradients<kSilu, A>(widen(grad[lane.edge]), widen(x[lane.edge]), column, sums);
#pragma unroll
  for (int i = 0; i < kNormVectors; ++i) {
    if (lane.vector + i * kWarp >= lane.end) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) add_gradients<kSilu, A>(widen(grads[i].values[v]), widen(values[i].values[v]), column, sums);
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) at.write_sum(all, static_cast<double>(sums[k]), partial, kSums, k);
}

// The vectors of gradient and map at pixels first, first + step, ... of a strip.
template <class T, int V>
__device__ void load_pixels(const ChannelStrip& strip, int64_t first, int64_t step, int64_t channels,
                            const T* __restrict__ grad, const T* __restrict__ x, Vector<T, V> (&grads)[kPixels],
                            Vector<T, V> (&values)[kPixels]) {
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const int64_t pixel = first + i * step;
    if (pixel >= strip.end) break;
    grads[i] = load_vector<T, V>(grad + pixel * channels);
    values[i] = load_vector<T, V>(x + pixel * channels);
  }
}

template <class T, int V, bool kSilu>
__global__ void __launch_bounds__(kWalkThreads, kNormBlocks)
    norm_sums_pixels(const ChannelStrips all, const T* __restrict__ grad, const T* __restrict__ x,
                     const NormColumns<Wide<T>> columns, double* __restrict__ partial) {
  using A = Wide<T>;
  const NormStrip at(all);
  const ChannelStrip& strip = at.strip;
  const int64_t channels = all.groups * V, start = at.image * all.items * channels + strip.group * V;
  NormColumn<A> column[V];
  if (strip.item < strip.end) {
#pragma unroll
    for (int v = 0; v < V; ++v) column[v] = NormColumn<A>(columns, at.image, strip.group * V + v);
  }
  A sums[V][kSums] = {};
  for (int64_t first = strip.item; first < strip.end; first += kPixels * all.rows) {
    Vector<T, V> grads[kPixels], values[kPixels];
    load_pixels(strip, first, all.rows, channels, grad + start, x + start, grads, values);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      if (first + i * all.rows >= strip.end) break;
#pragma unroll
      for (int v = 0; v < V; ++v)
        add_gradients<kSilu, A>(widen(grads[i].values[v]), widen(values[i].values[v]), column[v], sums[v]);
    }
  }
  double* rows = partial + at.image * all.parts * channels * kSums;
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    A of_sum[V];
#pragma unroll
    for (int v = 0; v < V; ++v) of_sum[v] = sums[v][k];
    if (k > 0) __syncthreads();
    strip.write_sums(all, of_sum, rows, kSums, k);
  }
}

// ---- from sums to numbers of channels

// Mean and scale again, from the statistics that forward left.
template <class A>
__global__ void __launch_bounds__(kWalkThreads)
    norm_columns_kernel(const NormActivationShape s, const int64_t numbers, const A* weight, const A* mean, const A* var, A* means,
                        A* scales) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWalkThreads + threadIdx.x;
  if (at >= numbers) return;
  const int64_t image = at / s.channels, c = at % s.channels;
  const int64_t set = s.groups == 0 ? c : image * s.groups + c / (s.channels / s.groups);
  const double inverse = inverse_deviation(var, set, s.eps);
  means[at] = mean[set];
  scales[at] = static_cast<A>(weight ? static_cast<double>(weight[c]) * inverse : inverse);
}

// A warp for each set: what is subtracted from r w h, constant + linear d. totals (images, C, kSums).
template <class A>
__global__ void __launch_bounds__(kWalkThreads)
    subtracted_kernel(const NormActivationShape s, const double* __restrict__ totals, const A* weight, const A* var, A* constants,
                      A* linears) {
  const int64_t set = static_cast<int64_t>(blockIdx.x) * kWalkWarps + threadIdx.x / kWarp;
  if (set >= s.sets()) return;
  const int64_t image = s.groups == 0 ? 0 : set / s.groups, width = s.groups == 0 ? 1 : s.channels / s.groups;
  const int64_t first = image * s.channels + (s.groups == 0 ? set : set % s.groups * width), lane = threadIdx.x % kWarp;
  double a = 0, b = 0;
  for (int64_t i = lane; i < width; i += kWarp) {
    const double w = weight ? static_cast<double>(weight[first - image * s.channels + i]) : 1.0;
    a += w * totals[(first + i) * kSums];
    b += w * totals[(first + i) * kSums + 1];
  }
  a = warp_sum(a);
  b = warp_sum(b);
  const double r = inverse_deviation(var, set, s.eps);
  const double m = static_cast<double>(s.groups == 0 ? s.batch * s.pixels : s.pixels * width);
  for (int64_t i = lane; i < width; i += kWarp) {
    constants[first + i] = s.fixed ? A(0) : static_cast<A>(r * a / m);
    linears[first + i] = s.fixed ? A(0) : static_cast<A>(r * r * r * b / m);
  }
}

// The sums over the images; those of h d still lack the deviation of each.
template <class A>
__global__ void __launch_bounds__(kWalkThreads)
    of_channels_kernel(const NormActivationShape s, const int64_t images, const double* __restrict__ totals, const A* var,
                       A* grad_weight, A* grad_bias, A* grad_slope) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWalkThreads + threadIdx.x;
  if (c >= s.channels) return;
  double weight = 0, bias = 0, slope = 0;
  for (int64_t image = 0; image < images; ++image) {
    const double* of = totals + (image * s.channels + c) * kSums;
    const int64_t set = s.groups == 0 ? c : image * s.groups + c / (s.channels / s.groups);
    bias += of[0];
    weight += of[1] * inverse_deviation(var, set, s.eps);
    slope += of[2];
  }
  if (grad_weight) grad_weight[c] = static_cast<A>(weight);
  if (grad_bias) grad_bias[c] = static_cast<A>(bias);
  if (grad_slope) grad_slope[c] = s.activation == Activation::kLeaky ? static_cast<A>(slope) : A(0);
}

// ---- the gradient

// What is subtracted, of each channel as NormColumns has mean and scale.
template <class A>
struct Subtracted {
  const A *constant, *linear;
};

template <bool kSilu, class T, class A>
__device__ T gradient_of(T g, T x, const NormColumn<A>& column, A constant, A linear) {
  const A d = widen(x) - column.mean, z = d * column.scale + column.bias;
  const A h = widen(g) * norm_activation_slope<kSilu>(z, column.slope);
  return narrow<T>(h * column.scale - (constant + linear * d));
}

template <class T, int V, bool kSilu>
__global__ void __launch_bounds__(kWalkThreads, kNormBlocks)
    norm_gradient_planes(const PlaneChunks all, const int64_t pixels, const T* __restrict__ grad, const T* __restrict__ x,
                         const NormColumns<Wide<T>> columns, const Subtracted<Wide<T>> less, T* __restrict__ grad_x) {
  using A = Wide<T>;
  const PlaneChunk at(all);
  if (!at.exists) return;
  const LaneOfPlane<V, kNormVectors> lane(at, all, pixels);
  const NormColumn<A> column(columns, at.image, at.channel);
  const A constant = less.constant[at.image * columns.image_step + at.channel];
  const A linear = less.linear[at.image * columns.image_step + at.channel];
  Vector<T, V> grads[kNormVectors], values[kNormVectors];
  load_vectors(lane, grad, x, grads, values);
  if (lane.edge >= 0) grad_x[lane.edge] = gradient_of<kSilu>(grad[lane.edge], x[lane.edge], column, constant, linear);
#pragma unroll
  for (int i = 0; i < kNormVectors; ++i) {
    if (lane.vector + i * kWarp >= lane.end) continue;
#pragma unroll
    for (int v = 0; v < V; ++v)
      grads[i].values[v] = gradient_of<kSilu>(grads[i].values[v], values[i].values[v], column, constant, linear);
    store_vector(grad_x + (lane.vector + i * kWarp) * V, grads[i]);
  }
}

template <class T, int V, bool kSilu>
__global__ void __launch_bounds__(kWalkThreads, kNormBlocks)
    norm_gradient_pixels(const ChannelStrips all, const T* __restrict__ grad, const T* __restrict__ x,
                         const NormColumns<Wide<T>> columns, const Subtracted<Wide<T>> less, T* __restrict__ grad_x) {
  using A = Wide<T>;
  const NormStrip at(all);
  const ChannelStrip& strip = at.strip;
  const int64_t channels = all.groups * V, start = at.image * all.items * channels + strip.group * V;
  NormColumn<A> column[V];
  A constant[V], linear[V];
  if (strip.item < strip.end) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int64_t channel = strip.group * V + v, number = at.image * columns.image_step + channel;
      column[v] = NormColumn<A>(columns, at.image, channel);
      constant[v] = less.constant[number];
      linear[v] = less.linear[number];
    }
  }
  for (int64_t first = strip.item; first < strip.end; first += kPixels * all.rows) {
    Vector<T, V> grads[kPixels], values[kPixels];
    load_pixels(strip, first, all.rows, channels, grad + start, x + start, grads, values);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int64_t pixel = first + i * all.rows;
      if (pixel >= strip.end) break;
#pragma unroll
      for (int v = 0; v < V; ++v)
        grads[i].values[v] = gradient_of<kSilu>(grads[i].values[v], values[i].values[v], column[v], constant[v], linear[v]);
      store_vector(grad_x + start + pixel * channels, grads[i]);
    }
  }
}

// ---- launches

struct Arguments {
  const NormActivationShape& s;
  const NormActivationChannels& channels;
  const void *grad, *x, *mean, *var;
  void *grad_x, *grad_weight, *grad_bias, *grad_slope;
  double* workspace;
  cudaStream_t stream;
};

template <class T, int V>
struct Backward {
  using A = Wide<T>;
  const Arguments& a;
  const NormWalk walk = NormWalk(a.s, V);
  const T *grad = static_cast<const T*>(a.grad), *x = static_cast<const T*>(a.x);
  const A* var = static_cast<const A*>(a.var);
  const A* weight = static_cast<const A*>(a.channels.weight);

  template <bool kSilu>
  cudaError_t sums(const NormColumns<A>& columns, double* partial) const {
    if (walk.last)
      return launch(norm_sums_pixels<T, V, kSilu>, walk.blocks(), kWalkThreads, a.stream, walk.strips, grad, x, columns, partial);
    return launch(norm_sums_planes<T, V, kSilu>, walk.blocks(), kWalkThreads, a.stream, walk.planes, a.s.pixels, grad, x, columns,
                  partial);
  }

  template <bool kSilu>
  cudaError_t gradient(const NormColumns<A>& columns, const Subtracted<A>& less) const {
    T* to = static_cast<T*>(a.grad_x);
    if (walk.last)
      return launch(norm_gradient_pixels<T, V, kSilu>, walk.blocks(), kWalkThreads, a.stream, walk.strips, grad, x, columns, less, to);
    return launch(norm_gradient_planes<T, V, kSilu>, walk.blocks(), kWalkThreads, a.stream, walk.planes, a.s.pixels, grad, x, columns,
                  less, to);
  }

  cudaError_t run() const {
    const NormActivationShape& s = a.s;
    const int64_t numbers = norm_numbers(walk, s, 1);
    double *totals = a.workspace, *partial = totals + norm_numbers(walk, s, 7);
    A* means = reinterpret_cast<A*>(totals + kSums * numbers);
    A *scales = means + numbers, *constants = scales + numbers, *linears = constants + numbers;
    cudaError_t error = launch(norm_columns_kernel<A>, ceil_div(numbers, kWalkThreads), kWalkThreads, a.stream, s, numbers, weight,
                               static_cast<const A*>(a.mean), var, means, scales);
    const NormColumns<A> columns = norm_columns<A>(s, a.channels, means, scales);
    const bool silu = s.activation == Activation::kSilu;
    if (error == cudaSuccess) error = silu ? sums<true>(columns, partial) : sums<false>(columns, partial);
    if (error == cudaSuccess)
      error = channel_sums(partial, walk.rows_of_image, s.channels * kSums, DType::kFloat64, totals, a.stream, walk.images);
    if (error == cudaSuccess)
      error = launch(subtracted_kernel<A>, ceil_div(s.sets(), kWalkWarps), kWalkThreads, a.stream, s,
                     static_cast<const double*>(totals), weight, var, constants, linears);
    if (error == cudaSuccess && (a.grad_weight || a.grad_bias || a.grad_slope))
      error = launch(of_channels_kernel<A>, ceil_div(s.channels, kWalkThreads), kWalkThreads, a.stream, s, walk.images,
                     static_cast<const double*>(totals), var, static_cast<A*>(a.grad_weight), static_cast<A*>(a.grad_bias),
                     static_cast<A*>(a.grad_slope));
    if (error != cudaSuccess) return error;
    const Subtracted<A> less = {constants, linears};
    return silu ? gradient<true>(columns, less) : gradient<false>(columns, less);
  }
};

}  // namespace

cudaError_t norm_activation_backward(const NormActivationShape& s, DType type, const void* grad, const void* x,
                                     const NormActivationChannels& channels, const void* mean, const void* var, void* grad_x,
                                     void* grad_weight, void* grad_bias, void* grad_slope, double* workspace, cudaStream_t stream) {
  if (norm_is_empty(s)) {
    const auto bytes = static_cast<size_t>(s.channels * element_size(wide(type)));
    for (void* gradient : {grad_weight, grad_bias, grad_slope}) {
      if (!gradient || bytes == 0) continue;
      const cudaError_t error = cudaMemsetAsync(gradient, 0, bytes, stream);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }
  const Arguments arguments = {s, channels, grad, x, mean, var, grad_x, grad_weight, grad_bias, grad_slope, workspace, stream};
  return dispatch_floating(type, [&]<class T>(T) {
    return norm_is_wide<T>(s, grad, x, grad_x) ? Backward<T, kVector<T>>{arguments}.run() : Backward<T, 1>{arguments}.run();
  });
}

}  // namespace uf::cuda
