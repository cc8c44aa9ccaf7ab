// One pass for the statistics, one for the result. The first leaves the moments of a part of a channel in memory (24 bytes for 512
// numbers or more), a block for each set puts the parts together, and the second pass applies what came of them.
//
// No moment loses its digits to a large mean. Planar: a warp holds its part in registers, takes its mean and then the squares about it.
// Channels-last: a thread adds up at most 16 pixels less the first of them, so that at most a sixteenth of the digits' worth is lost even
// where that one lies far from all others. Parts are put together as Chan, Golub, LeVeque do it (1979), in double, in an order that
// depends on nothing but the shape.
//
// Bytes an element of e bytes: e for the statistics, 2 e for the result; the limit is those bytes / copy bandwidth.
#include "cuda/norm_activation.h"

#include <cmath>

#include "cuda/block_sum.h"

namespace uf::cuda {
namespace {

constexpr int kSetThreads = 128;

struct Moments {
  double count, mean, m2;

  __device__ void add(const Moments& other) {
    if (other.count == 0) return;
    const double all = count + other.count, delta = other.mean - mean, share = other.count / all;
    mean += delta * share;
    m2 += other.m2 + delta * delta * count * share;
    count = all;
  }
};

// ---- moments of parts

template <class T, int V>
__global__ void __launch_bounds__(kWalkThreads, kNormBlocks)
    moments_planes(const PlaneChunks all, const int64_t pixels, const T* __restrict__ x, Moments* __restrict__ parts) {
  using A = Wide<T>;
  const PlaneChunk at(all);
  if (!at.exists) return;
  const LaneOfPlane<V, kNormVectors> lane(at, all, pixels);
  Vector<T, V> values[kNormVectors] = {};
  A sum = 0, edge = 0;
  int32_t count = 0;
#pragma unroll
  for (int i = 0; i < kNormVectors; ++i) {
    if (lane.vector + i * kWarp >= lane.end) continue;
    values[i] = load_vector<T, V>(x + (lane.vector + i * kWarp) * V);
    count += V;
  }
  if (lane.edge >= 0) {
    edge = widen(x[lane.edge]);
    ++count;
  }
#pragma unroll
  for (int i = 0; i < kNormVectors; ++i)
#pragma unroll
    for (int v = 0; v < V; ++v) sum += widen(values[i].values[v]);  // 0 where there is nothing
  const int32_t number = warp_sum(count);
  const A mean = warp_sum(sum + edge) / static_cast<A>(number > 0 ? number : 1);
  A shift = 0, square = 0;
#pragma unroll
  for (int i = 0; i < kNormVectors; ++i) {
    if (lane.vector + i * kWarp >= lane.end) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A d = widen(values[i].values[v]) - mean;
      shift += d;
      square += d * d;
    }
  }
  if (lane.edge >= 0) {
    shift += edge - mean;
    square += (edge - mean) * (edge - mean);
  }
  // what the rounding of the mean left
  const double left = static_cast<double>(warp_sum(shift)), n = number > 0 ? number : 1;
  const double m2 = static_cast<double>(warp_sum(square)) - left * left / n;
  if (at.lane != 0) return;
  const int64_t row = static_cast<int64_t>(at.image) * all.chunks.divisor + at.chunk;
  parts[row * all.channels.divisor + at.channel] = {static_cast<double>(number), static_cast<double>(mean) + left / n, m2};
}

template <class T, int V>
__global__ void __launch_bounds__(kWalkThreads, kNormBlocks)
    moments_pixels(const ChannelStrips all, const T* __restrict__ x, Moments* __restrict__ parts) {
  using A = Wide<T>;
  __shared__ double means[V][kWalkThreads], m2s[V][kWalkThreads], counts[kWalkThreads];
  const NormStrip at(all);
  const ChannelStrip& strip = at.strip;
  const int64_t channels = all.groups * V;
  const T* from = x + at.image * all.items * channels + strip.group * V;
  A origin[V] = {}, sum[V] = {}, square[V] = {};
  int32_t count = 0;
  if (strip.item < strip.end) {
    const auto values = load_vector<T, V>(from + strip.item * channels);
#pragma unroll
    for (int v = 0; v < V; ++v) origin[v] = widen(values.values[v]);
  }
  for (int64_t first = strip.item; first < strip.end; first += kNormPixels * all.rows) {
    Vector<T, V> values[kNormPixels];
#pragma unroll
    for (int i = 0; i < kNormPixels; ++i)
      if (first + i * all.rows < strip.end) values[i] = load_vector<T, V>(from + (first + i * all.rows) * channels);
#pragma unroll
    for (int i = 0; i < kNormPixels; ++i) {
      if (first + i * all.rows >= strip.end) break;
      ++count;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A d = widen(values[i].values[v]) - origin[v];
        sum[v] += d;
        square[v] += d * d;
      }
    }
  }
  const double n = count > 0 ? count : 1;
  counts[threadIdx.x] = count;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const double s = static_cast<double>(sum[v]);
    means[v][threadIdx.x] = static_cast<double>(origin[v]) + s / n;
    m2s[v][threadIdx.x] = static_cast<double>(square[v]) - s * s / n;
  }
  // one half of the rows adds the other, until there is one
  const int lanes = 1 << all.log_lanes;
  for (int rows = kWalkThreads / lanes / 2; rows > 0; rows /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < rows * lanes) {
      const int other = static_cast<int>(threadIdx.x) + rows * lanes;
      double all_counts = counts[threadIdx.x];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        Moments mine = {counts[threadIdx.x], means[v][threadIdx.x], m2s[v][threadIdx.x]};
        mine.add({counts[other], means[v][other], m2s[v][other]});
        means[v][threadIdx.x] = mine.mean;
        m2s[v][threadIdx.x] = mine.m2;
        all_counts = mine.count;
      }
      counts[threadIdx.x] = all_counts;
    }
  }
  if (static_cast<int>(threadIdx.x) >= lanes || strip.group >= all.groups) return;
  Moments* row = parts + (at.image * all.parts + strip.part) * channels + strip.group * V;
#pragma unroll
  for (int v = 0; v < V; ++v) row[v] = {counts[threadIdx.x], means[v][threadIdx.x], m2s[v][threadIdx.x]};
}

// ---- from parts to numbers of channels: a block for each set

template <class A>
__global__ void __launch_bounds__(kSetThreads)
    statistics_kernel(const NormActivationShape s, const int64_t rows, const Moments* __restrict__ parts, const A* weight, A* mean,
                      A* var, A* means, A* scales) {
  __shared__ Moments found[kSetThreads];
  const int64_t set = blockIdx.x, image = s.groups == 0 ? 0 : set / s.groups;
  const int64_t width = s.groups == 0 ? 1 : s.channels / s.groups, first = s.groups == 0 ? set : set % s.groups * width;
  double center, variance;
  if (s.fixed) {
    center = static_cast<double>(mean[set]);
    variance = static_cast<double>(var[set]);
  } else {
    Moments all = {0, 0, 0};
    for (int64_t i = threadIdx.x; i < rows * width; i += kSetThreads)
      all.add(parts[(image * rows + i / width) * s.channels + first + i % width]);
    found[threadIdx.x] = all;
    for (int threads = kSetThreads / 2; threads > 0; threads /= 2) {
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < threads) found[threadIdx.x].add(found[threadIdx.x + threads]);
    }
    __syncthreads();
    center = found[0].mean;
    variance = found[0].m2 / found[0].count;
    if (threadIdx.x == 0) {
      mean[set] = static_cast<A>(center);
      var[set] = static_cast<A>(variance);
    }
  }
  const double inverse = 1.0 / sqrt(variance + s.eps);
  for (int64_t c = first + threadIdx.x; c < first + width; c += kSetThreads) {
    means[image * s.channels + c] = static_cast<A>(center);
    scales[image * s.channels + c] = static_cast<A>(weight ? static_cast<double>(weight[c]) * inverse : inverse);
  }
}

// ---- the result

template <class T, int V, bool kSilu>
__device__ void apply(Vector<T, V>& values, const NormColumn<Wide<T>>& column) {
#pragma unroll
  for (int v = 0; v < V; ++v)
    values.values[v] = narrow<T>(norm_activated<kSilu>(column.of(widen(values.values[v])), column.slope));
}

template <class T, int V, bool kSilu>
__global__ void __launch_bounds__(kWalkThreads, kNormBlocks)
    apply_planes(const PlaneChunks all, const int64_t pixels, const T* __restrict__ x, const NormColumns<Wide<T>> columns,
                 T* __restrict__ y) {
  const PlaneChunk at(all);
  if (!at.exists) return;
  const LaneOfPlane<V, kNormVectors> lane(at, all, pixels);
  const NormColumn<Wide<T>> column(columns, at.image, at.channel);
  Vector<T, V> values[kNormVectors];
#pragma unroll
  for (int i = 0; i < kNormVectors; ++i)
    if (lane.vector + i * kWarp < lane.end) values[i] = load_vector<T, V>(x + (lane.vector + i * kWarp) * V);
  if (lane.edge >= 0) {
    Vector<T, 1> edge = {{x[lane.edge]}};
    apply<T, 1, kSilu>(edge, column);
    y[lane.edge] = edge.values[0];
  }
#pragma unroll
  for (int i = 0; i < kNormVectors; ++i) {
    if (lane.vector + i * kWarp >= lane.end) continue;
    apply<T, V, kSilu>(values[i], column);
    store_vector(y + (lane.vector + i * kWarp) * V, values[i]);
  }
}

template <class T, int V, bool kSilu>
__global__ void __launch_bounds__(kWalkThreads, kNormBlocks)
    apply_pixels(const ChannelStrips all, const T* __restrict__ x, const NormColumns<Wide<T>> columns, T* __restrict__ y) {
  const NormStrip at(all);
  const ChannelStrip& strip = at.strip;
  const int64_t channels = all.groups * V, start = at.image * all.items * channels + strip.group * V;
  NormColumn<Wide<T>> column[V];
  if (strip.item < strip.end) {
#pragma unroll
    for (int v = 0; v < V; ++v) column[v] = NormColumn<Wide<T>>(columns, at.image, strip.group * V + v);
  }
  for (int64_t first = strip.item; first < strip.end; first += kNormPixels * all.rows) {
    Vector<T, V> values[kNormPixels];
#pragma unroll
    for (int i = 0; i < kNormPixels; ++i)
      if (first + i * all.rows < strip.end) values[i] = load_vector<T, V>(x + start + (first + i * all.rows) * channels);
#pragma unroll
    for (int i = 0; i < kNormPixels; ++i) {
      if (first + i * all.rows >= strip.end) break;
#pragma unroll
      for (int v = 0; v < V; ++v)
        values[i].values[v] = narrow<T>(norm_activated<kSilu>(column[v].of(widen(values[i].values[v])), column[v].slope));
      store_vector(y + start + (first + i * all.rows) * channels, values[i]);
    }
  }
}

// ---- launches

template <class T, int V>
struct Forward {
  using A = Wide<T>;
  const NormActivationShape& s;
  const NormActivationChannels& channels;
  const T* x;
  A *mean, *var;
  T* y;
  double* workspace;
  cudaStream_t stream;
  const NormWalk walk = NormWalk(s, V);

  cudaError_t moments(Moments* parts) const {
    if (walk.last) return launch(moments_pixels<T, V>, walk.blocks(), kWalkThreads, stream, walk.strips, x, parts);
    return launch(moments_planes<T, V>, walk.blocks(), kWalkThreads, stream, walk.planes, s.pixels, x, parts);
  }

  template <bool kSilu>
  cudaError_t apply(const NormColumns<A>& columns) const {
    if (walk.last) return launch(apply_pixels<T, V, kSilu>, walk.blocks(), kWalkThreads, stream, walk.strips, x, columns, y);
    return launch(apply_planes<T, V, kSilu>, walk.blocks(), kWalkThreads, stream, walk.planes, s.pixels, x, columns, y);
  }

  cudaError_t run() const {
    A *means = reinterpret_cast<A*>(workspace), *scales = means + norm_numbers(walk, s, 1);
    Moments* parts = reinterpret_cast<Moments*>(workspace + norm_numbers(walk, s, 2));
    cudaError_t error = s.fixed ? cudaSuccess : moments(parts);
    if (error != cudaSuccess) return error;
    error = launch(statistics_kernel<A>, s.sets(), kSetThreads, stream, s, walk.rows_of_image, static_cast<const Moments*>(parts),
                   static_cast<const A*>(channels.weight), mean, var, means, scales);
    if (error != cudaSuccess) return error;
    const NormColumns<A> columns = norm_columns<A>(s, channels, means, scales);
    return s.activation == Activation::kSilu ? apply<true>(columns) : apply<false>(columns);
  }
};

}  // namespace

cudaError_t norm_activation(const NormActivationShape& s, DType type, const void* x, const NormActivationChannels& channels,
                            void* mean, void* var, void* y, double* workspace, cudaStream_t stream) {
  if (norm_is_empty(s)) {
    const auto bytes = static_cast<size_t>(s.sets() * element_size(wide(type)));
    for (void* statistic : {mean, var}) {
      if (s.fixed || bytes == 0) continue;
      const cudaError_t error = cudaMemsetAsync(statistic, 0, bytes, stream);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }
  return dispatch_floating(type, [&]<class T>(T) {
    using A = Wide<T>;
    const auto start = [&]<int V>() {
      return Forward<T, V>{s, channels, static_cast<const T*>(x), static_cast<A*>(mean), static_cast<A*>(var), static_cast<T*>(y),
                           workspace, stream}
          .run();
    };
    return norm_is_wide<T>(s, x, y, nullptr) ? start.template operator()<kVector<T>>() : start.template operator()<1>();
  });
}

int64_t norm_activation_workspace(const NormActivationShape& s, DType type, const void* a, const void* b, const void* c, bool backward) {
  if (norm_is_empty(s)) return 0;
  return dispatch_floating(type, [&]<class T>(T) {
    const NormWalk walk(s, norm_is_wide<T>(s, a, b, c) ? kVector<T> : 1);
    return norm_numbers(walk, s, backward ? 7 : 2) + walk.rows() * s.channels * 3;
  });
}

}  // namespace uf::cuda
