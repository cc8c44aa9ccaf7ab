// One read of the convolution's output gives everything that the next two levels of the network need of it. Planar
// images: a lane takes a 16-byte vector in each of two rows, that is two to eight pixels by two and their windows.
// Channels-last ones: a lane keeps to one vector of channels and takes windows of four pixels, so four vectors at once.
// Sizes, strides or addresses that are no multiples of a vector take the same kernels with one window, or one channel,
// at a time. The crop may put the rows of the skip beside vectors even when those of x are on them: its stores look at
// their address and go down to half vectors and single elements.
//
// Bytes per element of x, of e bytes: e read; e / 4 pooled, e * (crop) skip and 1/4 code written; the limit is those
// bytes / copy bandwidth. Separate kernels (bias + ReLU, pool with indices, crop and copy) move e * (4.5 + 2 * crop) +
// 2.
//
// Blocks of 256 threads with at most 85 registers (128 channels-last): 512 threads and more to a multiprocessor, each
// with two (planar) or four loads of 16 bytes in flight, beyond the 30 kB that hide an H200's latency. A warp reads 512
// consecutive bytes of a row, or at least 128 of a pixel for 64 channels of bfloat16.
#include "cuda/relu_pool_skip.h"

#include "common/pool_window.h"
#include "cuda/pool_walk.h"

namespace uf::cuda {
namespace {

constexpr int64_t kWindows = 4, kMostWindows = 16;  // steps of a channels-last thread
constexpr int kPixelBlocks = 2;                     // of a multiprocessor: four vectors take more than 85 registers on some

template <class T>
struct Call {
  ReluPoolSkipShape shape;
  const T* x;
  ImageStride x_stride, pooled_stride, buffer_stride, code_stride;
  const Wide<T>* bias;  // null: 0
  Bits<T>* pooled;
  Bits<T>* buffer;
  uint8_t* code;        // null: nobody wants it
};

template <class T>
__device__ Bits<T> rectified(T x, Wide<T> bias) {
  return rectified_bits(narrow<T>(static_cast<Wide<T>>(widen(x) + bias)));
}

// ---- planar

// R pixels from column x on, rectified; those outside the image are 0.
template <class T, int R, bool kWhole>
__device__ Vector<Bits<T>, R> rectified_pixels(const T* row, int64_t x, int64_t width, Wide<T> bias) {
  Vector<Bits<T>, R> out;
  if constexpr (kWhole) {
    const Vector<T, R> in = load_vector<T, R>(row + x);
#pragma unroll
    for (int i = 0; i < R; ++i) out.values[i] = rectified(in.values[i], bias);
  } else {
#pragma unroll
    for (int i = 0; i < R; ++i) out.values[i] = x + i < width ? rectified(row[x + i], bias) : Bits<T>(0);
  }
  return out;
}

// Stores the values that fall on columns [0, width) of a row whose column `x` belongs to the first.
template <int R, class U>
__device__ void store_inside(U* row, int64_t x, int64_t width, const Vector<U, R>& values) {
  if (R > 2 && x >= 0 && x + R <= width) {
    U* to = row + x;
    const auto address = reinterpret_cast<uintptr_t>(to);
    if (address % sizeof(values) == 0) return store_vector(to, values);
    if (address % (sizeof(values) / 2) == 0) {
      Vector<U, R / 2> halves[2];
#pragma unroll
      for (int i = 0; i < R; ++i) halves[i / (R / 2)].values[i % (R / 2)] = values.values[i];
      store_vector(to, halves[0]);
      return store_vector(to + R / 2, halves[1]);
    }
  }
#pragma unroll
  for (int i = 0; i < R; ++i)
    if (x + i >= 0 && x + i < width) row[x + i] = values.values[i];
}

// W windows a lane. kWhole: rows are whole vectors of 2 W pixels.
template <class T, int W, bool kWhole>
__global__ void __launch_bounds__(kWalkThreads, kWalkBlocks)
    relu_pool_skip_planes(const PlaneChunks all, const WindowGroups groups, const Call<T> call) {
  using U = Bits<T>;
  const ReluPoolSkipShape& s = call.shape;
  const PlaneChunk at(all);
  const uint32_t group = at.chunk * kWarp + at.lane;
  if (!at.exists || group >= groups.count) return;
  const uint32_t j = groups.across(group);
  const int64_t n = at.image, c = at.channel, y = int64_t{2} * j;
  const int64_t window = int64_t{group - j * groups.across.divisor} * W, x = 2 * window;
  const bool pair = y + 1 < s.height;
  const T* from = call.x + offset(call.x_stride, n, c, y, 0);
  const Wide<T> bias = call.bias ? call.bias[c] : Wide<T>(0);

  Vector<U, 2 * W> rows[2];
  rows[0] = rectified_pixels<T, 2 * W, kWhole>(from, x, s.width, bias);
  rows[1] = pair ? rectified_pixels<T, 2 * W, kWhole>(from + call.x_stride.y, x, s.width, bias) : Vector<U, 2 * W>{};

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t skip_y = y + r - s.skip_top();
    if (skip_y < 0 || skip_y >= s.skip_height) continue;
    store_inside(call.buffer + offset(call.buffer_stride, n, c, skip_y, 0), x - s.skip_left(), s.skip_width, rows[r]);
  }

  Vector<U, W> pooled;
  Vector<uint8_t, W> code;
#pragma unroll
  for (int w = 0; w < W; ++w) {
    const PoolWindow<U> one = pool_window(rows[0].values[2 * w], rows[0].values[2 * w + 1], rows[1].values[2 * w],
                                          rows[1].values[2 * w + 1]);
    pooled.values[w] = one.largest;
    code.values[w] = static_cast<uint8_t>(one.code);
  }
  if (pair && (kWhole || x + 1 < s.width))  // without kWhole, W is 1
    store_vector(call.pooled + offset(call.pooled_stride, n, c, j, window), pooled);
  if (call.code) store_vector(call.code + offset(call.code_stride, n, c, j, window), code);
}

// ---- channels-last

struct WindowStep {
  int64_t by[3];
};

template <class T, int V>
__global__ void __launch_bounds__(kWalkThreads, kPixelBlocks)
    relu_pool_skip_pixels(const ChannelStrips all, const WindowStep step, const Call<T> call) {
  using U = Bits<T>;
  const ReluPoolSkipShape& s = call.shape;
  const ChannelStrip strip(all);
  if (strip.item >= strip.end) return;
  const int64_t c = strip.group * V;
  Wide<T> bias[V] = {};
  if (call.bias) {
#pragma unroll
    for (int v = 0; v < V; ++v) bias[v] = call.bias[c + v];
  }
  WindowWalk walk(s, strip.item);
  for (int64_t item = strip.item; item < strip.end; item += all.rows, walk.next(s, step.by)) {
    const int64_t n = walk.n, y = 2 * walk.j, x = 2 * walk.i;
    const bool right = x + 1 < s.width, below = y + 1 < s.height;
    const T* from = call.x + offset(call.x_stride, n, c, y, x);
    Vector<T, V> in[4] = {};
    const bool inside[4] = {true, right, below, right && below};
#pragma unroll
    for (int q = 0; q < 4; ++q)
      if (inside[q]) in[q] = load_vector<T, V>(from + q / 2 * call.x_stride.y + q % 2 * call.x_stride.x);

    Vector<U, V> pixel[4];
#pragma unroll
    for (int q = 0; q < 4; ++q) {
#pragma unroll
      for (int v = 0; v < V; ++v) pixel[q].values[v] = inside[q] ? rectified(in[q].values[v], bias[v]) : U(0);
      const int64_t skip_y = y + q / 2 - s.skip_top(), skip_x = x + q % 2 - s.skip_left();
      if (skip_y >= 0 && skip_y < s.skip_height && skip_x >= 0 && skip_x < s.skip_width)
        store_vector(call.buffer + offset(call.buffer_stride, n, c, skip_y, skip_x), pixel[q]);
    }

    Vector<U, V> pooled;
    Vector<uint8_t, V> code;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const PoolWindow<U> one =
          pool_window(pixel[0].values[v], pixel[1].values[v], pixel[2].values[v], pixel[3].values[v]);
      pooled.values[v] = one.largest;
      code.values[v] = static_cast<uint8_t>(one.code);
    }
    if (right && below) store_vector(call.pooled + offset(call.pooled_stride, n, c, walk.j, walk.i), pooled);
    if (call.code) store_vector(call.code + offset(call.code_stride, n, c, walk.j, walk.i), code);
  }
}

// ---- launches

template <class T, int W, bool kWhole>
cudaError_t launch_planes(const Call<T>& call, cudaStream_t stream) {
  const WindowGroups groups(call.shape, W);
  const PlaneChunks all(call.shape.batch, call.shape.channels, groups.count, kWarp);
  return launch(relu_pool_skip_planes<T, W, kWhole>, all.blocks(), kWalkThreads, stream, all, groups, call);
}

template <class T, int V>
cudaError_t launch_pixels(const Call<T>& call, cudaStream_t stream) {
  const ReluPoolSkipShape& s = call.shape;
  const ChannelStrips all(s.batch * s.code_height() * s.code_width(), s.channels, V, kWindows, kMostWindows);
  WindowStep step;
  window_step(s, all.rows, step.by);
  return launch(relu_pool_skip_pixels<T, V>, all.blocks(), kWalkThreads, stream, all, step, call);
}

template <class T>
cudaError_t start(const ReluPoolSkipShape& s, const void* x, const ImageStride& x_stride, const void* bias,
                  void* pooled, void* buffer, uint8_t* code, cudaStream_t stream) {
  constexpr int kV = kVector<T>;
  const bool last = s.channels_last;
  const Call<T> call = {s,
                        static_cast<const T*>(x),
                        x_stride,
                        dense_stride(s.channels, s.pooled_height(), s.pooled_width(), last),
                        dense_stride(s.buffer_channels, s.skip_height, s.skip_width, last),
                        dense_stride(s.channels, s.code_height(), s.code_width(), last),
                        static_cast<const Wide<T>*>(bias),
                        static_cast<Bits<T>*>(pooled),
                        static_cast<Bits<T>*>(buffer),
                        code};
  const int64_t size[4] = {s.batch, s.channels, s.height, s.width};
  const bool x_aligned = vectors_are_aligned(x, x_stride, size, last, kV, sizeof(T));
  if (last) {
    const bool wide = x_aligned && s.channels % kV == 0 && s.buffer_channels % kV == 0 &&
                      is_aligned(pooled, kVectorBytes) && is_aligned(buffer, kVectorBytes) && is_aligned(code, kV);
    return wide ? launch_pixels<T, kV>(call, stream) : launch_pixels<T, 1>(call, stream);
  }
  const bool wide = x_aligned && s.width % kV == 0 && is_aligned(pooled, kVectorBytes / 2) && is_aligned(code, kV / 2);
  return wide ? launch_planes<T, kV / 2, true>(call, stream) : launch_planes<T, 1, false>(call, stream);
}

}  // namespace

cudaError_t relu_pool_skip(const ReluPoolSkipShape& shape, DType type, const void* x, const ImageStride& x_stride,
                           const void* bias, void* pooled, void* buffer, uint8_t* code, cudaStream_t stream) {
  if (shape.batch * shape.channels == 0) return cudaSuccess;
  return dispatch_floating(type, [&]<class T>(T) { return start<T>(shape, x, x_stride, bias, pooled, buffer, code, stream); });
}

}  // namespace uf::cuda
