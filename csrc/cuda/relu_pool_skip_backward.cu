// The gradient of x in one pass, written once: each pixel's comes from the pooled maximum (if the pixel was it) and
// from the skip (if the crop reaches it), and is let through where the ReLU did, all of which one byte a window says.
// The walk is that of the forward pass, and so are the conditions for vectors; rows of the skip that lie beside vectors
// are loaded in halves or element by element. The gradient of the bias is summed from the unrounded values: 64 of them
// in single precision at most, then in double, one partial sum for each warp (planar) or block (channels-last), which a
// second kernel adds up.
//
// Bytes per element of x, of e bytes: e / 4 pooled, e * (crop) skip and 1/4 code read, e written; the limit is those
// bytes / copy bandwidth. Separate kernels (gradient of the crop, zero fill, scatter by index, add, mask, sum over
// pixels) move 8 e and more.
//
// Blocks of 256 threads, with at most 85 registers (planar: 768 threads and more to a multiprocessor, each with 44
// bytes in flight) or 128 (channels-last: 512 threads and more, each with 84 bytes or more): beyond the 30 kB that hide
// an H200's latency.
#include "common/pool_window.h"
#include "cuda/channel_sums.h"
#include "cuda/pool_walk.h"
#include "cuda/relu_pool_skip.h"

namespace uf::cuda {
namespace {

constexpr int kGroups = 4;                          // of windows, of a lane in a chunk of a plane
constexpr int64_t kWindows = 2, kMostWindows = 16;  // steps of a channels-last thread
constexpr int kPixelBlocks = 2;                     // of a multiprocessor: six vectors take more than 85 registers

template <class T>
struct Call {
  ReluPoolSkipShape shape;
  const T* pooled;  // null: 0
  const T* buffer;  // null: 0
  const uint8_t* code;
  T* x;
  ImageStride pooled_stride, buffer_stride, code_stride, x_stride;
  double* partial;  // (parts, channels), or null
};

template <class T>
__device__ Wide<T> gradient(uint8_t code, int q, T pooled, T skip) {
  return unpool<Wide<T>>(Bits<Wide<T>>(code), Bits<Wide<T>>(q), widen(pooled), widen(skip));
}

// ---- planar

// The values of columns [x, x + R) of a row, 0 outside [0, width).
template <int R, class T>
__device__ Vector<T, R> load_inside(const T* row, int64_t x, int64_t width) {
  if (R > 2 && x >= 0 && x + R <= width) {
    const T* from = row + x;
    const auto address = reinterpret_cast<uintptr_t>(from);
    if (address % (sizeof(T) * R) == 0) return load_vector<T, R>(from);
    if (address % (sizeof(T) * R / 2) == 0) {
      const Vector<T, R / 2> halves[2] = {load_vector<T, R / 2>(from), load_vector<T, R / 2>(from + R / 2)};
      Vector<T, R> values;
#pragma unroll
      for (int i = 0; i < R; ++i) values.values[i] = halves[i / (R / 2)].values[i % (R / 2)];
      return values;
    }
  }
  Vector<T, R> values;
#pragma unroll
  for (int i = 0; i < R; ++i) values.values[i] = x + i >= 0 && x + i < width ? row[x + i] : T{};
  return values;
}

template <bool kWhole, int R, class T>
__device__ void store_row(T* row, int64_t x, int64_t width, const Vector<T, R>& values) {
  if constexpr (kWhole) {
    store_vector(row + x, values);
  } else {
#pragma unroll
    for (int i = 0; i < R; ++i)
      if (x + i < width) row[x + i] = values.values[i];
  }
}

// W windows at a time. kWhole: rows are whole vectors of 2 W pixels.
template <class T, int W, bool kWhole>
__global__ void __launch_bounds__(kWalkThreads, kWalkBlocks)
    relu_pool_skip_backward_planes(const PlaneChunks all, const WindowGroups groups, const Call<T> call) {
  const ReluPoolSkipShape& s = call.shape;
  const PlaneChunk at(all);
  if (!at.exists) return;
  const int64_t n = at.image, c = at.channel;
  Wide<T> sum = 0;
#pragma unroll 1
  for (int k = 0; k < kGroups; ++k) {
    const uint32_t group = (at.chunk * kGroups + k) * kWarp + at.lane;
    if (group >= groups.count) break;
    const uint32_t j = groups.across(group);
    const int64_t y = int64_t{2} * j, window = int64_t{group - j * groups.across.divisor} * W, x = 2 * window;
    const bool pair = y + 1 < s.height;

    const auto code = load_vector<uint8_t, W>(call.code + offset(call.code_stride, n, c, j, window));
    Vector<T, W> pooled = {};
    if (call.pooled && pair && (kWhole || x + 1 < s.width))  // without kWhole, W is 1
      pooled = load_vector<T, W>(call.pooled + offset(call.pooled_stride, n, c, j, window));
    Vector<T, 2 * W> rows[2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t skip_y = y + r - s.skip_top();
      if (call.buffer && skip_y >= 0 && skip_y < s.skip_height)
        rows[r] = load_inside<2 * W>(call.buffer + offset(call.buffer_stride, n, c, skip_y, 0), x - s.skip_left(),
                                     s.skip_width);
    }

#pragma unroll
    for (int i = 0; i < 2 * W; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const Wide<T> value = gradient(code.values[i / 2], 2 * r + i % 2, pooled.values[i / 2], rows[r].values[i]);
        rows[r].values[i] = narrow<T>(value);
        sum += value;  // pixels outside the image have no bit in the code
      }
    }
    T* to = call.x + offset(call.x_stride, n, c, y, 0);
    store_row<kWhole>(to, x, s.width, rows[0]);
    if (pair) store_row<kWhole>(to + call.x_stride.y, x, s.width, rows[1]);
  }
  if (call.partial) at.write_sum(all, static_cast<double>(sum), call.partial);
}

// ---- channels-last

struct WindowStep {
  int64_t by[3];
};

template <class T, int V>
__global__ void __launch_bounds__(kWalkThreads, kPixelBlocks)
    relu_pool_skip_backward_pixels(const ChannelStrips all, const WindowStep step, const Call<T> call) {
  const ReluPoolSkipShape& s = call.shape;
  const ChannelStrip strip(all);
  const int64_t c = strip.group * V;
  Wide<T> sums[V] = {};
  WindowWalk walk(s, strip.item);
  for (int64_t item = strip.item; item < strip.end; item += all.rows, walk.next(s, step.by)) {
    const int64_t n = walk.n, y = 2 * walk.j, x = 2 * walk.i;
    const bool right = x + 1 < s.width, below = y + 1 < s.height;
    const auto code = load_vector<uint8_t, V>(call.code + offset(call.code_stride, n, c, walk.j, walk.i));
    Vector<T, V> pooled = {}, pixel[4] = {};
    if (call.pooled && right && below)
      pooled = load_vector<T, V>(call.pooled + offset(call.pooled_stride, n, c, walk.j, walk.i));
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int64_t skip_y = y + q / 2 - s.skip_top(), skip_x = x + q % 2 - s.skip_left();
      if (call.buffer && skip_y >= 0 && skip_y < s.skip_height && skip_x >= 0 && skip_x < s.skip_width)
        pixel[q] = load_vector<T, V>(call.buffer + offset(call.buffer_stride, n, c, skip_y, skip_x));
    }

    T* to = call.x + offset(call.x_stride, n, c, y, x);
    const bool inside[4] = {true, right, below, right && below};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const Wide<T> value = gradient(code.values[v], q, pooled.values[v], pixel[q].values[v]);
        pixel[q].values[v] = narrow<T>(value);
        sums[v] += value;
      }
      if (inside[q]) store_vector(to + q / 2 * call.x_stride.y + q % 2 * call.x_stride.x, pixel[q]);
    }
  }
  if (call.partial) strip.write_sums(all, sums, call.partial);
}

// ---- launches

template <int W>
PlaneChunks planes(const ReluPoolSkipShape& s) {
  return PlaneChunks(s.batch, s.channels, WindowGroups(s, W).count, kWarp * kGroups);
}

template <int V>
ChannelStrips strips(const ReluPoolSkipShape& s) {
  return ChannelStrips(s.batch * s.code_height() * s.code_width(), s.channels, V, kWindows, kMostWindows);
}

template <class T, int W, bool kWhole>
cudaError_t launch_planes(const Call<T>& call, cudaStream_t stream) {
  const PlaneChunks all = planes<W>(call.shape);
  return launch(relu_pool_skip_backward_planes<T, W, kWhole>, all.blocks(), kWalkThreads, stream, all,
                WindowGroups(call.shape, W), call);
}

template <class T, int V>
cudaError_t launch_pixels(const Call<T>& call, cudaStream_t stream) {
  const ChannelStrips all = strips<V>(call.shape);
  WindowStep step;
  window_step(call.shape, all.rows, step.by);
  return launch(relu_pool_skip_backward_pixels<T, V>, all.blocks(), kWalkThreads, stream, all, step, call);
}

// Whether 16-byte vectors of x fit. Of planar images the pooled rows hold half of them, and those of the skip are
// loaded as they come.
template <class T>
bool is_wide(const ReluPoolSkipShape& s, const ReluPoolSkipGradients& g) {
  constexpr int kV = kVector<T>;
  const int64_t pooled[4] = {s.batch, s.channels, s.pooled_height(), s.pooled_width()};
  const int64_t skip[4] = {s.batch, s.channels, s.skip_height, s.skip_width};
  if (!is_aligned(g.x, kVectorBytes)) return false;
  if (!s.channels_last)
    return s.width % kV == 0 && is_aligned(g.code, kV / 2) &&
           vectors_are_aligned(g.pooled, g.pooled_stride, pooled, false, kV / 2, sizeof(T));
  return s.channels % kV == 0 && is_aligned(g.code, kV) &&
         vectors_are_aligned(g.pooled, g.pooled_stride, pooled, true, kV, sizeof(T)) &&
         vectors_are_aligned(g.buffer, g.buffer_stride, skip, true, kV, sizeof(T));
}

template <class T>
int64_t parts_of(const ReluPoolSkipShape& s, const ReluPoolSkipGradients& g) {
  const bool wide = is_wide<T>(s, g);
  if (s.channels_last) return wide ? strips<kVector<T>>(s).parts : strips<1>(s).parts;
  return wide ? planes<kVector<T> / 2>(s).parts() : planes<1>(s).parts();
}

int64_t parts_of(const ReluPoolSkipShape& s, DType type, const ReluPoolSkipGradients& g) {
  if (s.batch * s.channels == 0) return 0;
  return dispatch_floating(type, [&]<class T>(T) { return parts_of<T>(s, g); });
}

template <class T>
cudaError_t start(const ReluPoolSkipShape& s, const ReluPoolSkipGradients& g, double* partial, cudaStream_t stream) {
  constexpr int kV = kVector<T>;
  const bool last = s.channels_last, wide = is_wide<T>(s, g);
  const Call<T> call = {s,
                        static_cast<const T*>(g.pooled),
                        static_cast<const T*>(g.buffer),
                        g.code,
                        static_cast<T*>(g.x),
                        g.pooled_stride,
                        g.buffer_stride,
                        dense_stride(s.channels, s.code_height(), s.code_width(), last),
                        dense_stride(s.channels, s.height, s.width, last),
                        partial};
  if (last) return wide ? launch_pixels<T, kV>(call, stream) : launch_pixels<T, 1>(call, stream);
  return wide ? launch_planes<T, kV / 2, true>(call, stream) : launch_planes<T, 1, false>(call, stream);
}

}  // namespace

cudaError_t relu_pool_skip_backward(const ReluPoolSkipShape& shape, DType type, const ReluPoolSkipGradients& grad,
                                    double* workspace, cudaStream_t stream) {
  double* partial = grad.bias ? workspace : nullptr;
  cudaError_t error = cudaSuccess;
  if (shape.batch * shape.channels > 0) {
    error = dispatch_floating(type, [&]<class T>(T) { return start<T>(shape, grad, partial, stream); });
  }
  if (error != cudaSuccess || !grad.bias) return error;
  return channel_sums(partial, parts_of(shape, type, grad), shape.channels, wide(type), grad.bias, stream);
}

int64_t relu_pool_skip_workspace(const ReluPoolSkipShape& shape, DType type, const ReluPoolSkipGradients& grad) {
  return parts_of(shape, type, grad) * shape.channels;
}

}  // namespace uf::cuda
