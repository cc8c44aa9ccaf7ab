// The skip is copied into the joined map as a join with a crop copies it; a second kernel writes the up-sampled map beside it. Planar maps: a
// thread writes a vector of a row, 16 bytes where rows are whole vectors. Channels-last ones: a thread writes a vector of channels of one
// pixel and reads the same vector of one pixel of x, or of four. The gradient of x is gathered the same way, so that no sum has an order
// of its own and nothing is added in memory.
//
// Bytes moved: each number of the result written once, each of the two maps read once from memory (a number of x up to sixteen times, but
// from the caches); the limit is those bytes / copy bandwidth. Backward: the gradient read once from memory, that of x written once.
//
// 256 threads a block, one vector a thread: with four loads of 16 bytes in flight (bilinear) or one, and no barrier.
#include "common/upsample_concat.h"

#include "common/crop.h"
#include "common/crop_concat.h"
#include "common/fast_divide.h"
#include "common/half.h"
#include "cuda/launch.h"

namespace uf::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBackwardBlocks = 3;  // of a multiprocessor: places and weights along both axes take registers

// A dense or strided map (N, C, H, W), and the order in which threads go through it: three sizes from the second outermost to the
// innermost, which counts vectors.
template <class Index>
struct Walk {
  Index units = 0;
  Divide<Index> size[3];

  // Of `channels` channels, `height` and `width`, V numbers at a time of what is innermost.
  Walk(int64_t batch, int64_t channels, int64_t height, int64_t width, bool channels_last, int64_t vector) {
    const int64_t sizes[3] = {channels_last ? height : channels, channels_last ? width : height,
                              (channels_last ? channels : width) / vector};
    for (int d = 0; d < 3; ++d) size[d] = Divide<Index>(sizes[d]);
    units = static_cast<Index>(batch * sizes[0] * sizes[1] * sizes[2]);
  }
};

struct Place {
  int64_t n, c, y, x;
};

template <int V, bool kLast, class Index>
__device__ Place place_of(const Walk<Index>& walk, Index unit) {
  int64_t at[4];
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    const Index outer = walk.size[d](unit);
    at[d + 1] = static_cast<int64_t>(unit - outer * walk.size[d].divisor);
    unit = outer;
  }
  at[0] = static_cast<int64_t>(unit);
  if constexpr (kLast) return {at[0], at[3] * V, at[1], at[2]};
  return {at[0], at[1], at[2], at[3] * V};
}

__device__ int64_t offset(const int64_t (&stride)[4], const Place& at) {
  return at.n * stride[0] + at.c * stride[1] + at.y * stride[2] + at.x * stride[3];
}

// One axis: where the up-sampled map begins in the joined one, and how large x is.
struct Axis {
  int64_t start, size, joined;
};

struct Call {
  Axis rows, columns;
  int64_t x_stride[4], out_stride[4];
  Upsample mode;
  Border border;
};

UF_HD_INLINE int64_t factor_of(Upsample mode) { return mode == Upsample::kNone ? 1 : 2; }

// The number of the up-sampled map at this place of the joined one, and whether there is one.
__device__ bool find(const Call& call, const Axis& axis, int64_t joined, int64_t& at) {
  const int64_t last = factor_of(call.mode) * axis.size - 1;
  at = joined - axis.start;
  if (call.border == Border::kReplicate) at = at < 0 ? 0 : at > last ? last : at;
  return at >= 0 && at <= last;
}

// ---- forward

// T: whatever has the right size, for what is copied.
template <class T, bool kInterpolated, int V, bool kLast, class Index>
__global__ void __launch_bounds__(kThreads)
    upsample_kernel(const Call call, const Walk<Index> walk, const T* __restrict__ x, T* __restrict__ out) {
  const Index unit = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= walk.units) return;
  const Place to = place_of<V, kLast>(walk, unit);
  const T* from = x + to.n * call.x_stride[0] + to.c * call.x_stride[1];
  Vector<T, V> result = {};
  int64_t at_y;
  const bool row = find(call, call.rows, to.y, at_y);
  if constexpr (kInterpolated) {
    using A = Wide<T>;
    const UpsampleTaps<A> ys = upsample_taps<A>(call.mode, row ? at_y : 0, call.rows.size);
    const T* above = from + ys.place[0] * call.x_stride[2];
    const T* below = from + ys.place[1] * call.x_stride[2];
#pragma unroll
    for (int i = 0; i < (kLast ? 1 : V); ++i) {
      int64_t at_x;
      if (!find(call, call.columns, to.x + i, at_x) || !row) continue;
      const UpsampleTaps<A> xs = upsample_taps<A>(call.mode, at_x, call.columns.size);
      const int64_t left = xs.place[0] * call.x_stride[3], right = xs.place[1] * call.x_stride[3];
      constexpr int kChannels = kLast ? V : 1;
      const auto a = load_vector<T, kChannels>(above + left), b = load_vector<T, kChannels>(above + right);
      const auto c = load_vector<T, kChannels>(below + left), d = load_vector<T, kChannels>(below + right);
#pragma unroll
      for (int v = 0; v < kChannels; ++v) {
        const A high = widen(a.values[v]) * xs.weight[0] + widen(b.values[v]) * xs.weight[1];
        const A low = widen(c.values[v]) * xs.weight[0] + widen(d.values[v]) * xs.weight[1];
        result.values[i + v] = narrow<T>(high * ys.weight[0] + low * ys.weight[1]);
      }
    }
  } else {
    const int shift = call.mode == Upsample::kNearest ? 1 : 0;
    const T* source = from + ((row ? at_y : 0) >> shift) * call.x_stride[2];
#pragma unroll
    for (int i = 0; i < (kLast ? 1 : V); ++i) {
      int64_t at_x;
      if (!find(call, call.columns, to.x + i, at_x) || !row) continue;
      if constexpr (kLast)
        result = load_vector<T, V>(source + (at_x >> shift) * call.x_stride[3]);
      else
        result.values[i] = source[(at_x >> shift) * call.x_stride[3]];
    }
  }
  store_vector(out + offset(call.out_stride, to), result);
}

// ---- backward

// Which numbers of the joined map may take place `at` of x: [first, last].
__device__ void reach(const Call& call, const Axis& axis, int64_t at, int64_t& first, int64_t& last) {
  const int64_t factor = factor_of(call.mode), up = factor * axis.size;
  // from the formulas of upsample_taps: so many before the first number above the place, and behind it
  const int64_t before = call.mode == Upsample::kBilinear ? 1 : call.mode == Upsample::kBilinearAligned ? 2 : 0;
  const int64_t behind = call.mode == Upsample::kNone ? 0 : call.mode == Upsample::kNearest ? 1 : before + 1;
  const int64_t low = factor * at - before, high = factor * at + behind;
  first = axis.start + (low < 0 ? 0 : low);
  last = axis.start + (high > up - 1 ? up - 1 : high);
  if (call.border != Border::kReplicate) return;
  if (low <= 0) first = 0;  // the border shows the outermost number once more in each of its places
  if (high >= up - 1) last = axis.joined - 1;
}

// With which weight number `joined` of the joined map takes place `at` of x.
template <class A>
__device__ A weight_of(const Call& call, const Axis& axis, int64_t joined, int64_t at) {
  int64_t number;
  if (!find(call, axis, joined, number)) return A(0);
  const UpsampleTaps<A> taps = upsample_taps<A>(call.mode, number, axis.size);
  return (taps.place[0] == at ? taps.weight[0] : A(0)) + (taps.place[1] == at ? taps.weight[1] : A(0));
}

// x_stride: of the gradient of the joined map.
template <class T, int V, bool kLast, class Index>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    upsample_backward_kernel(const Call call, const Walk<Index> walk, const T* __restrict__ grad, T* __restrict__ grad_x) {
  using A = Wide<T>;
  const Index unit = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= walk.units) return;
  const Place to = place_of<V, kLast>(walk, unit);
  const T* from = grad + to.n * call.x_stride[0] + to.c * call.x_stride[1];
  int64_t top, bottom, left, right;
  reach(call, call.rows, to.y, top, bottom);
  reach(call, call.columns, to.x, left, right);
  A sums[V] = {};
  for (int64_t y = top; y <= bottom; ++y) {
    const A of_row = weight_of<A>(call, call.rows, y, to.y);
    if (of_row == 0) continue;
    for (int64_t x = left; x <= right; ++x) {
      const A weight = of_row * weight_of<A>(call, call.columns, x, to.x);
      if (weight == 0) continue;
      const auto values = load_vector<T, V>(from + y * call.x_stride[2] + x * call.x_stride[3]);
#pragma unroll
      for (int v = 0; v < V; ++v) sums[v] += weight * widen(values.values[v]);
    }
  }
  Vector<T, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) result.values[v] = narrow<T>(sums[v]);
  store_vector(grad_x + offset(call.out_stride, to), result);
}

// ---- launches

// The strides of a dense map (N, C, H, W) in elements.
void dense_strides(int64_t channels, int64_t height, int64_t width, bool channels_last, int64_t (&stride)[4]) {
  stride[0] = channels * height * width;
  stride[1] = channels_last ? 1 : height * width;
  stride[2] = channels_last ? channels * width : width;
  stride[3] = channels_last ? channels : 1;
}

Call call_of(const UpsampleConcatShape& s) {
  const auto axis = [&](int64_t size, int64_t joined) {
    return Axis{s.border == Border::kCrop ? 0 : crop_start(joined, s.factor() * size), size, joined};
  };
  Call call = {axis(s.height, s.out_height), axis(s.width, s.out_width), {}, {}, s.mode, s.border};
  for (int d = 0; d < 4; ++d) call.x_stride[d] = s.x_stride[d];
  return call;
}

// Whether vectors of V elements of T fit: into the innermost dimension, and between the rows of what is read and written as such.
template <class T, int V>
bool fits(const void* pointer, const int64_t (&stride)[4], int64_t innermost, int inner_dimension) {
  if (innermost % V != 0 || !is_aligned(pointer, sizeof(T) * V)) return false;
  for (int d = 0; d < 4; ++d)
    if (d != inner_dimension && stride[d] % V != 0) return false;
  return true;
}

// kernel<Index>() with the smallest integers that count all threads.
template <class Launch>
cudaError_t with_index(int64_t numbers, const Launch& launch_as) {
  return numbers < int64_t{1} << 30 ? launch_as(uint32_t{}) : launch_as(uint64_t{});
}

template <class T, bool kInterpolated, int V, bool kLast>
cudaError_t launch_forward(const UpsampleConcatShape& s, const Call& call, const T* x, T* out, cudaStream_t stream) {
  return with_index(s.batch * s.channels * s.out_height * s.out_width, [&]<class Index>(Index) {
    const Walk<Index> walk(s.batch, s.channels, s.out_height, s.out_width, kLast, V);
    return launch(upsample_kernel<T, kInterpolated, V, kLast, Index>, ceil_div(walk.units, kThreads), kThreads, stream, call, walk, x,
                  out);
  });
}

template <class T, bool kInterpolated>
cudaError_t start_forward(const UpsampleConcatShape& s, const void* x_in, void* out_in, cudaStream_t stream) {
  constexpr int V = kVectorBytes / sizeof(T);
  Call call = call_of(s);
  dense_strides(s.skip_channels + s.channels, s.out_height, s.out_width, s.channels_last, call.out_stride);
  const T* x = static_cast<const T*>(x_in);
  T* out = static_cast<T*>(out_in) + (s.up_first ? 0 : s.skip_channels * call.out_stride[1]);
  if (s.channels_last) {
    const bool wide = fits<T, V>(out, call.out_stride, s.channels, 1) && fits<T, V>(x, call.x_stride, s.channels, 1);
    return (wide ? launch_forward<T, kInterpolated, V, true> : launch_forward<T, kInterpolated, 1, true>)(s, call, x, out, stream);
  }
  const bool wide = fits<T, V>(out, call.out_stride, s.out_width, 3);
  return (wide ? launch_forward<T, kInterpolated, V, false> : launch_forward<T, kInterpolated, 1, false>)(s, call, x, out, stream);
}

template <class T, int V, bool kLast>
cudaError_t launch_backward(const UpsampleConcatShape& s, const Call& call, const T* grad, T* grad_x, cudaStream_t stream) {
  return with_index(s.batch * s.channels * s.height * s.width, [&]<class Index>(Index) {
    const Walk<Index> walk(s.batch, s.channels, s.height, s.width, kLast, V);
    return launch(upsample_backward_kernel<T, V, kLast, Index>, ceil_div(walk.units, kThreads), kThreads, stream, call, walk, grad,
                  grad_x);
  });
}

// The skip, where it belongs in the joined map.
cudaError_t copy_skip(const UpsampleConcatShape& s, const void* skip, void* out, cudaStream_t stream) {
  CropConcatShape shape = {};
  shape.element = s.element;
  shape.channels_last = s.channels_last;
  const int64_t skip_size[] = {s.batch, s.skip_channels, 1, s.skip_height, s.skip_width};
  const int64_t up_size[] = {s.batch, s.channels, 1, s.out_height, s.out_width};
  const int64_t stride[] = {s.skip_stride[0], s.skip_stride[1], 0, s.skip_stride[2], s.skip_stride[3]};
  for (int d = 0; d < kDims; ++d) {
    shape.skip_size[d] = skip_size[d];
    shape.up_size[d] = up_size[d];
  }
  const int64_t behind = s.up_first ? s.channels * (s.channels_last ? 1 : s.out_height * s.out_width) * s.element : 0;
  return crop_concat(shape, skip, stride, nullptr, nullptr, static_cast<char*>(out) + behind, stream);
}

}  // namespace

cudaError_t upsample_concat(const UpsampleConcatShape& s, const void* skip, const void* x, void* out, cudaStream_t stream) {
  if (s.batch * s.out_height * s.out_width == 0) return cudaSuccess;
  if (s.skip_channels > 0) {
    const cudaError_t error = copy_skip(s, skip, out, stream);
    if (error != cudaSuccess) return error;
  }
  if (s.channels == 0) return cudaSuccess;
  if (s.mode == Upsample::kNone || s.mode == Upsample::kNearest)
    return dispatch_bytes(s.element, [&]<class U>(U) { return start_forward<U, false>(s, x, out, stream); });
  return dispatch_floating(s.type, [&]<class T>(T) { return start_forward<T, true>(s, x, out, stream); });
}

cudaError_t upsample_concat_backward(const UpsampleConcatShape& s, const void* grad, void* grad_x, cudaStream_t stream) {
  if (s.batch * s.channels * s.height * s.width == 0) return cudaSuccess;
  return dispatch_floating(s.type, [&]<class T>(T) {
    constexpr int V = kVectorBytes / sizeof(T);
    Call call = call_of(s);
    dense_strides(s.channels, s.height, s.width, s.channels_last, call.out_stride);
    const T* from = static_cast<const T*>(grad);
    T* to = static_cast<T*>(grad_x);
    if (!s.channels_last) return launch_backward<T, 1, false>(s, call, from, to, stream);
    const bool wide = fits<T, V>(from, call.x_stride, s.channels, 1) && fits<T, V>(to, call.out_stride, s.channels, 1);
    return (wide ? launch_backward<T, V, true> : launch_backward<T, 1, true>)(s, call, from, to, stream);
  });
}

}  // namespace uf::cuda
