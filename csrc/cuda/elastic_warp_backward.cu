// The transpose of elastic_warp.cu: every output pixel adds its gradient, times the weights, to the input pixels that it read.
//
// By default with atomic additions, whose order, and with it the last bits, differs from run to run. Bytes moved: each
// element of the gradient of the output is read once, each of the input's is cleared and written back by the L2 cache, where
// the additions happen. So 3 elements a pixel, limit = bytes / copy bandwidth; the 4 additions a pixel (bilinear) of a warp
// that covers 8 x 4 pixels fall on about 12 sectors each, and are likely to be the limit.
//
// The deterministic variant adds whole numbers (common/fixed_point.h), whose sum has no order, and turns them into floats in
// the end. Their unit comes from the largest gradient of each channel of a sample. Sorting the additions by target would
// take several passes over 4 or 16 keys a pixel; gathering would need the inverse of the field. This takes one more read of
// the gradient and 8 bytes an input pixel that are cleared, added to and read: 36 bytes a pixel in place of 12.
#include <cmath>

#include "common/fixed_point.h"
#include "cuda/elastic_warp.h"
#include "cuda/warp_tile.h"

namespace uf::cuda {
namespace {

constexpr int kImages = 8;  // of one launch
constexpr int kThreads = 256, kPixelsPerThread = 8;

using Sum = unsigned long long;  // of common/fixed_point.h, as atomicAdd wants it

struct Gradient {
  WarpGradientImage is;
  warp::Range rows, columns;  // of the frame
  Sum* sums;                  // (N, C, H, W)
  Sum* largest;               // (N, C): the bits of a double
  int bits;                   // see FixedPoint
};

struct Gradients {
  Gradient image[kImages];
  int count;
};

template <class A>
__device__ A gradient_at(const WarpGradientImage& image, int64_t n, int64_t channel, int64_t y, int64_t x) {
  const int64_t* stride = image.stride;
  return static_cast<const A*>(image.grad_output)[n * stride[0] + channel * stride[1] + y * stride[2] + x * stride[3]];
}

__device__ bool is_finite(double value) { return value - value == 0; }

// The bits of numbers that are not negative are in the order of the numbers.
template <class A>
__global__ void __launch_bounds__(kThreads) largest_kernel(const Gradient gradient, const int64_t blocks_of_plane) {
  const int64_t plane = blockIdx.x / blocks_of_plane, part = blockIdx.x % blocks_of_plane;
  const int64_t n = plane / gradient.is.channels, channel = plane % gradient.is.channels;
  const int64_t width = gradient.is.out_width, pixels = gradient.is.out_height * width;
  Sum largest = 0;
  for (int i = 0; i < kPixelsPerThread; ++i) {
    const int64_t pixel = (part * kPixelsPerThread + i) * kThreads + threadIdx.x;
    if (pixel >= pixels) break;
    const double value = gradient_at<A>(gradient.is, n, channel, pixel / width, pixel % width);
    const Sum bits = std::bit_cast<Sum>(std::fabs(value));
    if (is_finite(value) && bits > largest) largest = bits;
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Sum other = __shfl_xor_sync(0xffffffffu, largest, distance);
    largest = other > largest ? other : largest;
  }
  if (threadIdx.x % kWarp == 0) atomicMax(gradient.largest + plane, largest);
}

__device__ FixedPoint unit_of(const Gradient& gradient, int64_t plane) {
  return {std::bit_cast<double>(gradient.largest[plane]), gradient.bits};
}

// All output pixels may read one input pixel, and the absolute weights of a pixel add up to 1.375^2 at most (bicubic).
int bits_of_sums(const WarpGradientImage& image) {
  int bits = 1;
  while (int64_t{1} << (bits - 1) < image.out_height * image.out_width) ++bits;
  return bits;
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const Gradient gradient, const int64_t pixels, const int64_t elements) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= elements) return;
  static_cast<A*>(gradient.is.grad_input)[i] = static_cast<A>(unit_of(gradient, i / pixels).value(gradient.sums[i]));
}

template <Interpolation Kind, class A, bool kDeterministic>
__device__ void scatter(const Gradient& gradient, const WarpFrame& frame, int64_t n, int64_t y, int64_t x,
                        const WarpPoint<A>& at) {
  constexpr int kTaps = tap_count(Kind);
  const int32_t height = static_cast<int32_t>(frame.height), width = static_cast<int32_t>(frame.width);
  const int32_t first_y = warp::first_index<Kind>(at.y), first_x = warp::first_index<Kind>(at.x);
  const bool filled = frame.padding == Padding::kZeros;
  int64_t row[kTaps];
  int32_t column[kTaps];
  uint32_t outside = 0;  // bit v: row v, bit 4 + u: column u
  A wy[kTaps], wx[kTaps];
  warp::tap_weights<Kind>(at.y.rest, wy);
  warp::tap_weights<Kind>(at.x.rest, wx);
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
    row[t] = warp::tap_index(frame.padding, first_y + t, height) * frame.width;
    column[t] = warp::tap_index(frame.padding, first_x + t, width);
    if (filled && (first_y + t < 0 || first_y + t >= height)) outside |= 1u << t;
    if (filled && (first_x + t < 0 || first_x + t >= width)) outside |= 16u << t;
  }
  for (int64_t channel = 0; channel < gradient.is.channels; ++channel) {
    const A g = gradient_at<A>(gradient.is, n, channel, y - gradient.rows.begin, x - gradient.columns.begin);
    const int64_t plane = n * gradient.is.channels + channel, first = plane * frame.height * frame.width;
    const FixedPoint unit = kDeterministic ? unit_of(gradient, plane) : FixedPoint(0, 0);
#pragma unroll
    for (int v = 0; v < kTaps; ++v)
#pragma unroll
      for (int u = 0; u < kTaps; ++u) {
        if ((outside >> v | outside >> (4 + u)) & 1u) continue;
        const int64_t to = first + row[v] + column[u];
        const A part = g * wy[v] * wx[u];
        if constexpr (!kDeterministic) {
          atomicAdd(static_cast<A*>(gradient.is.grad_input) + to, part);
        } else if (is_finite(g)) {
          atomicAdd(gradient.sums + to, static_cast<Sum>(unit.whole(part)));
        } else {
          atomicOr(gradient.sums + to, static_cast<Sum>(FixedPoint::kLost));
        }
      }
  }
}

template <class A, bool kDeterministic>
__global__ void __launch_bounds__(kWarpThreads)
    elastic_warp_backward_kernel(const __grid_constant__ WarpGrid grid, const __grid_constant__ Gradients gradients) {
  __shared__ WarpTables<A> tables;
  const WarpTile<A> tile(grid, tables);
#pragma unroll 1
  for (int row = 0; row < kRowsPerThread; ++row) {
    const int64_t n = tile.n, y = tile.y + row * kWarpRows, x = tile.x;
    const WarpPoint<A> at = tile.point(row);
#pragma unroll 1
    for (int i = 0; i < gradients.count; ++i) {
      const Gradient& gradient = gradients.image[i];
      if (!gradient.columns.contains(x) || !gradient.rows.contains(y)) continue;
      switch (gradient.is.interpolation) {
        case Interpolation::kNearest:
          scatter<Interpolation::kNearest, A, kDeterministic>(gradient, grid.frame, n, y, x, at);
          break;
        case Interpolation::kBilinear:
          scatter<Interpolation::kBilinear, A, kDeterministic>(gradient, grid.frame, n, y, x, at);
          break;
        default: scatter<Interpolation::kBicubic, A, kDeterministic>(gradient, grid.frame, n, y, x, at);
      }
    }
  }
}

bool is_empty(const WarpGradientImage& image) {
  return image.channels == 0 || image.out_height == 0 || image.out_width == 0;
}

int64_t elements(const WarpFrame& frame, const WarpGradientImage& image) {
  return frame.batch * image.channels * frame.height * frame.width;
}

// Clears what the kernels add to, and finds the units of the fixed-point sums.
template <class A>
cudaError_t prepare(const WarpFrame& frame, const Gradient& gradient, bool deterministic, cudaStream_t stream) {
  const auto count = static_cast<size_t>(elements(frame, gradient.is));
  if (!deterministic || is_empty(gradient.is)) return cudaMemsetAsync(gradient.is.grad_input, 0, count * sizeof(A), stream);
  const int64_t planes = frame.batch * gradient.is.channels;
  cudaError_t error = cudaMemsetAsync(gradient.sums, FixedPoint::kFirstByte, count * sizeof(Sum), stream);
  if (error != cudaSuccess) return error;
  error = cudaMemsetAsync(gradient.largest, 0, static_cast<size_t>(planes) * sizeof(Sum), stream);
  if (error != cudaSuccess) return error;
  const int64_t blocks = ceil_div(gradient.is.out_height * gradient.is.out_width, kThreads * kPixelsPerThread);
  return launch(largest_kernel<A>, planes * blocks, kThreads, stream, gradient, blocks);
}

template <class A>
cudaError_t backward(WarpFrame frame, const WarpGradientImage* all, int count, bool deterministic, void* workspace,
                     cudaStream_t stream) {
  cudaError_t error = prefilter_control_points(frame, workspace, stream);
  Sum* next = static_cast<Sum*>(workspace) + elastic_warp_workspace(frame) / static_cast<int64_t>(sizeof(Sum));
  for (int begin = 0; begin < count && error == cudaSuccess;) {
    Gradients gradients = {};
    warp::Range rows = {0, 0}, columns = {0, 0};
    for (; begin < count && gradients.count < kImages && error == cudaSuccess; ++begin) {
      const WarpGradientImage& is = all[begin];
      if (elements(frame, is) == 0) continue;
      Gradient& gradient = gradients.image[gradients.count];
      gradient = {is, warp::Range::centred(frame.height, is.out_height),
                  warp::Range::centred(frame.width, is.out_width), nullptr, nullptr, bits_of_sums(is)};
      if (deterministic) {
        gradient.sums = next;
        gradient.largest = next + elements(frame, is);
        next = gradient.largest + frame.batch * is.channels;
      }
      error = prepare<A>(frame, gradient, deterministic, stream);
      if (is_empty(is)) continue;
      rows = gradients.count ? rows.join(gradient.rows) : gradient.rows;
      columns = gradients.count ? columns.join(gradient.columns) : gradient.columns;
      ++gradients.count;
    }
    if (error != cudaSuccess || gradients.count == 0) break;
    const WarpGrid grid(frame, rows, columns);
    const auto kernel = deterministic ? elastic_warp_backward_kernel<A, true> : elastic_warp_backward_kernel<A, false>;
    error = launch(kernel, grid.tiles(), kWarpThreads, stream, grid, gradients);
    for (int i = 0; i < gradients.count && deterministic && error == cudaSuccess; ++i) {
      const int64_t size = elements(frame, gradients.image[i].is);
      error = launch(finish_kernel<A>, ceil_div(size, kThreads), kThreads, stream, gradients.image[i],
                     frame.height * frame.width, size);
    }
  }
  return error;
}

}  // namespace

int64_t elastic_warp_backward_workspace(const WarpFrame& frame, const WarpGradientImage* images, int count,
                                        bool deterministic) {
  int64_t bytes = elastic_warp_workspace(frame);
  for (int i = 0; i < count && deterministic; ++i) {
    bytes += (elements(frame, images[i]) + frame.batch * images[i].channels) * static_cast<int64_t>(sizeof(Sum));
  }
  return bytes;
}

cudaError_t elastic_warp_backward(const WarpFrame& frame, const WarpGradientImage* images, int count, bool deterministic,
                                  void* workspace, cudaStream_t stream) {
  return frame.wide ? backward<double>(frame, images, count, deterministic, workspace, stream)
                    : backward<float>(frame, images, count, deterministic, workspace, stream);
}

}  // namespace uf::cuda
