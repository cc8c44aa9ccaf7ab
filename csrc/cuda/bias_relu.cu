// Elementwise passes in which only the channel of an element is not obvious. A planar tensor is walked plane by plane,
// a warp to a chunk of one, with the elements before and behind the 16-byte vectors taken one by one (an odd plane
// starts in the middle of a vector); a channels-last one pixel by pixel, a thread keeping to one vector of channels and
// so its bias and its sums in registers. Where there is neither bias nor gradient of one, the tensor is one plane.
//
// Bytes per element of e bytes: 2 e forward, 3 e backward, and the partial sums: 8 for 512 elements (planar float32;
// 1024 in the 16-bit types) or for rows * steps pixels (channels-last). The limit is those bytes / copy bandwidth.
//
// Blocks of 256 threads with at most 85 registers: 768 threads and more to a multiprocessor, each with four 16-byte
// loads in flight, are beyond the 30 kB that hide an H200's latency.
#include "cuda/bias_relu.h"

#include "common/pool_window.h"
#include "cuda/channel_sums.h"
#include "cuda/channel_walk.h"

namespace uf::cuda {
namespace {

constexpr int kVectors = 4;                              // of a lane in a chunk of a plane
constexpr int kPixels = 4, kPixelsBackward = 2;          // that a channels-last thread takes at once
constexpr int64_t kMostSteps = 16, kMostStepsBackward = 64;

template <class T>
__device__ T rectified(T x, Wide<T> bias) {
  return std::bit_cast<T>(rectified_bits(narrow<T>(static_cast<Wide<T>>(widen(x) + bias))));
}

template <class T>
__device__ T let_through(T out, T grad) {
  return std::bit_cast<T>(where_on(out, grad));
}

// ---- forward; x and out may be one array, so what is loaded at once is loaded before anything is stored

template <class T, int V>
__global__ void __launch_bounds__(kWalkThreads, kWalkBlocks)
    bias_relu_planes(const PlaneChunks all, const int64_t pixels, const T* x, const Wide<T>* bias, T* out) {
  const PlaneChunk at(all);
  if (!at.exists) return;
  const LaneOfPlane<V, kVectors> lane(at, all, pixels);
  const Wide<T> b = bias ? bias[at.channel] : Wide<T>(0);
  Vector<T, V> values[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (lane.vector + i * kWarp < lane.end) values[i] = load_vector<T, V>(x + (lane.vector + i * kWarp) * V);
  if (lane.edge >= 0) out[lane.edge] = rectified(x[lane.edge], b);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (lane.vector + i * kWarp >= lane.end) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) values[i].values[v] = rectified(values[i].values[v], b);
    store_vector(out + (lane.vector + i * kWarp) * V, values[i]);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kWalkThreads, kWalkBlocks)
    bias_relu_pixels(const ChannelStrips all, const T* x, const Wide<T>* bias, T* out) {
  const ChannelStrip strip(all);
  const int64_t channels = all.groups * V;
  Wide<T> b[V] = {};
  if (strip.item < strip.end) {
#pragma unroll
    for (int v = 0; v < V; ++v) b[v] = bias[strip.group * V + v];
  }
  for (int64_t first = strip.item; first < strip.end; first += kPixels * all.rows) {
    Vector<T, V> values[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int64_t pixel = first + i * all.rows;
      if (pixel < strip.end) values[i] = load_vector<T, V>(x + pixel * channels + strip.group * V);
    }
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int64_t pixel = first + i * all.rows;
      if (pixel >= strip.end) break;
#pragma unroll
      for (int v = 0; v < V; ++v) values[i].values[v] = rectified(values[i].values[v], b[v]);
      store_vector(out + pixel * channels + strip.group * V, values[i]);
    }
  }
}

// ---- backward

template <class T, int V>
__global__ void __launch_bounds__(kWalkThreads, kWalkBlocks)
    bias_relu_backward_planes(const PlaneChunks all, const int64_t pixels, const T* __restrict__ grad,
                              const T* __restrict__ out, T* __restrict__ grad_x, double* __restrict__ partial) {
  const PlaneChunk at(all);
  if (!at.exists) return;
  const LaneOfPlane<V, kVectors> lane(at, all, pixels);
  Vector<T, V> grads[kVectors], outs[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (lane.vector + i * kWarp >= lane.end) continue;
    grads[i] = load_vector<T, V>(grad + (lane.vector + i * kWarp) * V);
    outs[i] = load_vector<T, V>(out + (lane.vector + i * kWarp) * V);
  }
  Wide<T> sum = 0;
  if (lane.edge >= 0) {
    const T value = let_through(out[lane.edge], grad[lane.edge]);
    grad_x[lane.edge] = value;
    sum += widen(value);
  }
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (lane.vector + i * kWarp >= lane.end) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      grads[i].values[v] = let_through(outs[i].values[v], grads[i].values[v]);
      sum += widen(grads[i].values[v]);
    }
    store_vector(grad_x + (lane.vector + i * kWarp) * V, grads[i]);
  }
  if (partial) at.write_sum(all, static_cast<double>(sum), partial);
}

template <class T, int V>
__global__ void __launch_bounds__(kWalkThreads, kWalkBlocks)
    bias_relu_backward_pixels(const ChannelStrips all, const T* __restrict__ grad, const T* __restrict__ out,
                              T* __restrict__ grad_x, double* __restrict__ partial) {
  const ChannelStrip strip(all);
  const int64_t channels = all.groups * V;
  Wide<T> sums[V] = {};
  for (int64_t first = strip.item; first < strip.end; first += kPixelsBackward * all.rows) {
    Vector<T, V> grads[kPixelsBackward], outs[kPixelsBackward];
#pragma unroll
    for (int i = 0; i < kPixelsBackward; ++i) {
      const int64_t pixel = first + i * all.rows;
      if (pixel >= strip.end) break;
      grads[i] = load_vector<T, V>(grad + pixel * channels + strip.group * V);
      outs[i] = load_vector<T, V>(out + pixel * channels + strip.group * V);
    }
#pragma unroll
    for (int i = 0; i < kPixelsBackward; ++i) {
      const int64_t pixel = first + i * all.rows;
      if (pixel >= strip.end) break;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        grads[i].values[v] = let_through(outs[i].values[v], grads[i].values[v]);
        sums[v] += widen(grads[i].values[v]);
      }
      store_vector(grad_x + pixel * channels + strip.group * V, grads[i]);
    }
  }
  strip.write_sums(all, sums, partial);
}

// ---- launches

PlaneChunks planes(const BiasReluShape& s, int64_t vector) {
  return PlaneChunks(s.batch, s.channels, s.pixels / vector, kWarp * kVectors);
}

// A tensor in which no channel matters.
BiasReluShape one_plane(const BiasReluShape& s) { return {1, 1, s.batch * s.channels * s.pixels, false}; }

ChannelStrips strips(const BiasReluShape& s, int64_t vector) {
  return ChannelStrips(s.batch * s.pixels, s.channels, vector, kPixels, kMostSteps);
}

ChannelStrips backward_strips(const BiasReluShape& s, int64_t vector) {
  return ChannelStrips(s.batch * s.pixels, s.channels, vector, kPixelsBackward, kMostStepsBackward);
}

template <class T, int V>
cudaError_t launch_forward(const BiasReluShape& s, const T* x, const Wide<T>* bias, T* out, cudaStream_t stream) {
  if (s.channels_last) {
    const ChannelStrips all = strips(s, V);
    return launch(bias_relu_pixels<T, V>, all.blocks(), kWalkThreads, stream, all, x, bias, out);
  }
  const PlaneChunks all = planes(s, V);
  return launch(bias_relu_planes<T, V>, all.blocks(), kWalkThreads, stream, all, s.pixels, x, bias, out);
}

template <class T, int V>
cudaError_t launch_backward(const BiasReluShape& s, const T* grad, const T* out, T* grad_x, double* partial,
                            cudaStream_t stream) {
  if (s.channels_last) {
    const ChannelStrips all = backward_strips(s, V);
    return launch(bias_relu_backward_pixels<T, V>, all.blocks(), kWalkThreads, stream, all, grad, out, grad_x, partial);
  }
  const PlaneChunks all = planes(s, V);
  return launch(bias_relu_backward_planes<T, V>, all.blocks(), kWalkThreads, stream, all, s.pixels, grad, out, grad_x,
                partial);
}

// Whether 16-byte vectors fit: with channels-last also into the channels, so that a vector has the same ones
// everywhere.
template <class T>
bool is_wide(const BiasReluShape& s, const void* a, const void* b, const void* c) {
  return (!s.channels_last || s.channels % kVector<T> == 0) && is_aligned(a, kVectorBytes) &&
         is_aligned(b, kVectorBytes) && is_aligned(c, kVectorBytes);
}

template <class T>
cudaError_t start(const BiasReluShape& shape, const void* x, const void* bias, void* out, cudaStream_t stream) {
  const BiasReluShape s = bias ? shape : one_plane(shape);
  return (is_wide<T>(s, x, out, nullptr) ? launch_forward<T, kVector<T>> : launch_forward<T, 1>)(
      s, static_cast<const T*>(x), static_cast<const Wide<T>*>(bias), static_cast<T*>(out), stream);
}

template <class T>
cudaError_t start_backward(const BiasReluShape& shape, const void* grad, const void* out, void* grad_x, double* partial,
                           cudaStream_t stream) {
  const BiasReluShape s = partial ? shape : one_plane(shape);
  return (is_wide<T>(s, grad, out, grad_x) ? launch_backward<T, kVector<T>> : launch_backward<T, 1>)(
      s, static_cast<const T*>(grad), static_cast<const T*>(out), static_cast<T*>(grad_x), partial, stream);
}

bool is_empty(const BiasReluShape& s) { return s.batch * s.channels * s.pixels == 0; }

template <class T>
int64_t parts_of(const BiasReluShape& s, const void* grad, const void* out, const void* grad_x) {
  if (is_empty(s)) return 0;
  const int64_t vector = is_wide<T>(s, grad, out, grad_x) ? kVector<T> : 1;
  return s.channels_last ? backward_strips(s, vector).parts : planes(s, vector).parts();
}

int64_t parts_of(const BiasReluShape& s, DType type, const void* grad, const void* out, const void* grad_x) {
  return dispatch_floating(type, [&]<class T>(T) { return parts_of<T>(s, grad, out, grad_x); });
}

}  // namespace

cudaError_t bias_relu(const BiasReluShape& shape, DType type, const void* x, const void* bias, void* out,
                      cudaStream_t stream) {
  if (is_empty(shape)) return cudaSuccess;
  return dispatch_floating(type, [&]<class T>(T) { return start<T>(shape, x, bias, out, stream); });
}

cudaError_t bias_relu_backward(const BiasReluShape& shape, DType type, const void* grad, const void* out,
                               void* grad_x, void* grad_bias, double* workspace, cudaStream_t stream) {
  double* partial = grad_bias ? workspace : nullptr;
  cudaError_t error = cudaSuccess;
  if (!is_empty(shape)) {
    error = dispatch_floating(type, [&]<class T>(T) { return start_backward<T>(shape, grad, out, grad_x, partial, stream); });
  }
  if (error != cudaSuccess || !grad_bias) return error;
  return channel_sums(partial, parts_of(shape, type, grad, out, grad_x), shape.channels, wide(type), grad_bias, stream);
}

int64_t bias_relu_workspace(const BiasReluShape& shape, DType type, const void* grad, const void* out,
                            const void* grad_x) {
  return parts_of(shape, type, grad, out, grad_x) * shape.channels;
}

}  // namespace uf::cuda
