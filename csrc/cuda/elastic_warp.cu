// All images of a call in one launch: a thread finds out where its four pixels read, once (warp_tile.h), and then reads
// them from one image after the other, whatever their dtypes, channels, sizes and interpolations.
//
// Bytes moved: each output pixel is written once; each input pixel that the output shows is read once from memory, since the
// tiles are compact and what neighbouring pixels share comes out of the caches. So at least 2 elements an output pixel (10
// bytes for a float32 image with its uint8 labels) and limit = bytes / copy bandwidth. At that rate an H200 has some 100
// instructions for such a pixel, about what they take; gathers from 9 lines of the L1 cache a warp come next.
#include "cuda/elastic_warp.h"

#include "common/warp_pixel.h"
#include "cuda/warp_tile.h"

namespace uf::cuda {
namespace {

constexpr int kImages = 8;           // of one launch: parameters are at most 4 KB
constexpr int kFilterThreads = 128;  // lines of control points at a time

// One block a plane of control points: rows, then columns, each line by one thread.
__global__ void __launch_bounds__(kFilterThreads)
    prefilter_kernel(const Reals displacement, const int64_t height, const int64_t width, double* coefficients) {
  const int64_t points = height * width, first = blockIdx.x * points;
  double* plane = coefficients + first;
  for (int64_t i = threadIdx.x; i < points; i += kFilterThreads) plane[i] = displacement[first + i];
  __syncthreads();
  for (int64_t i = threadIdx.x; i < height; i += kFilterThreads) bspline_prefilter(plane + i * width, 1, width);
  __syncthreads();
  for (int64_t j = threadIdx.x; j < width; j += kFilterThreads) bspline_prefilter(plane + j, width, height);
}

struct Image {
  WarpImage is;
  warp::Range rows, columns;  // of the frame
  warp::Fill fill;
};

struct Images {
  Image image[kImages];
  int count;
};

// Four pixels of one thread, one channel after the other.
template <Interpolation Kind, class T, class A, class Offset>
struct Sampler {
  static constexpr int kTaps = tap_count(Kind);
  const Image& image;
  const WarpFrame& frame;
  const int64_t n, y, x;  // of the first pixel

  __device__ const T* input(int64_t channel) const {
    return static_cast<const T*>(image.is.input) + n * image.is.stride[0] + channel * image.is.stride[1];
  }
  __device__ T* output(int64_t channel) const {
    const int64_t plane = n * image.is.channels + channel;
    const int64_t row = plane * image.is.out_height + y - image.rows.begin;
    return static_cast<T*>(image.is.output) + row * image.is.out_width + x - image.columns.begin;
  }
  __device__ int64_t output_step() const { return kWarpRows * image.is.out_width; }
  __device__ bool wanted(int i) const { return image.rows.contains(y + i * kWarpRows); }

  // The sum of rows and columns of `value`, in an order that is the same on both ways through this class.
  static __device__ T sum(const T value[kTaps][kTaps], const A wy[kTaps], const A wx[kTaps]) {
    if constexpr (Kind == Interpolation::kNearest) {
      return value[0][0];
    } else {
      A total = 0;
#pragma unroll
      for (int v = 0; v < kTaps; ++v) {
        A along = wx[0] * warp::number_of<A>(value[v][0]);
#pragma unroll
        for (int u = 1; u < kTaps; ++u) along = warp::multiply_add(wx[u], warp::number_of<A>(value[v][u]), along);
        total = warp::multiply_add(wy[v], along, total);
      }
      return warp::pixel_of<T>(total);
    }
  }

  // Whether all taps lie inside the image: then they lie side by side, and nothing replaces them.
  static __device__ bool inside(const warp::AxisPoint<A>& point, int64_t pixels) {
    const int32_t first = warp::first_index<Kind>(point);
    return first >= 0 && first <= static_cast<int32_t>(pixels) - kTaps;
  }

  // Pixels whose taps all lie inside: all loads of a channel are in flight before the first is needed.
  __device__ void sample_inside(const WarpPoint<A> (&at)[kRowsPerThread]) const {
    const Offset step_y = static_cast<Offset>(image.is.stride[2]), step_x = static_cast<Offset>(image.is.stride[3]);
    Offset offset[kRowsPerThread];
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      // a row that is not wanted reads the first pixel, in vain
      offset[i] = wanted(i) ? warp::first_index<Kind>(at[i].y) * step_y + warp::first_index<Kind>(at[i].x) * step_x : 0;
    }
    for (int64_t channel = 0; channel < image.is.channels; ++channel) {
      const T* from = input(channel);
      T value[kRowsPerThread][kTaps][kTaps];
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i)
#pragma unroll
        for (int v = 0; v < kTaps; ++v)
#pragma unroll
          for (int u = 0; u < kTaps; ++u) value[i][v][u] = from[offset[i] + v * step_y + u * step_x];
      T* to = output(channel);
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        A wy[kTaps], wx[kTaps];
        warp::tap_weights<Kind>(at[i].y.rest, wy);
        warp::tap_weights<Kind>(at[i].x.rest, wx);
        if (wanted(i)) to[i * output_step()] = sum(value[i], wy, wx);
      }
    }
  }

  // One pixel anywhere.
  __device__ void sample_anywhere(const WarpPoint<A>& at, int i) const {
    const int32_t height = static_cast<int32_t>(frame.height), width = static_cast<int32_t>(frame.width);
    const int32_t first_y = warp::first_index<Kind>(at.y), first_x = warp::first_index<Kind>(at.x);
    const bool filled = frame.padding == Padding::kZeros;
    Offset row[kTaps], column[kTaps];
    uint32_t outside = 0;  // bit v: row v, bit 4 + u: column u
    A wy[kTaps], wx[kTaps];
    warp::tap_weights<Kind>(at.y.rest, wy);
    warp::tap_weights<Kind>(at.x.rest, wx);
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      row[t] = warp::tap_index(frame.padding, first_y + t, height) * static_cast<Offset>(image.is.stride[2]);
      column[t] = warp::tap_index(frame.padding, first_x + t, width) * static_cast<Offset>(image.is.stride[3]);
      if (filled && (first_y + t < 0 || first_y + t >= height)) outside |= 1u << t;
      if (filled && (first_x + t < 0 || first_x + t >= width)) outside |= 16u << t;
    }
    const T fill = fill_value();
    for (int64_t channel = 0; channel < image.is.channels; ++channel) {
      const T* from = input(channel);
      T value[kTaps][kTaps];
#pragma unroll
      for (int v = 0; v < kTaps; ++v)
#pragma unroll
        for (int u = 0; u < kTaps; ++u) {
          value[v][u] = from[row[v] + column[u]];
          if ((outside >> v | outside >> (4 + u)) & 1u) value[v][u] = fill;
        }
      output(channel)[i * output_step()] = sum(value, wy, wx);
    }
  }

  __device__ T fill_value() const {
    if constexpr (sizeof(T) == 8) return std::bit_cast<T>(image.fill.bits);
    if constexpr (sizeof(T) == 4) return std::bit_cast<T>(static_cast<uint32_t>(image.fill.bits));
    if constexpr (sizeof(T) == 2) return std::bit_cast<T>(static_cast<uint16_t>(image.fill.bits));
    if constexpr (sizeof(T) == 1) return std::bit_cast<T>(static_cast<uint8_t>(image.fill.bits));
  }

  __device__ void sample(const WarpPoint<A> (&at)[kRowsPerThread]) const {
    // 16 loads a pixel keep the memory busy: with four pixels at once there are not enough registers
    bool simple = Kind != Interpolation::kBicubic, any = false;
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      simple = simple && (!wanted(i) || (inside(at[i].y, frame.height) && inside(at[i].x, frame.width)));
      any = any || wanted(i);
    }
    if (!any) return;
    if constexpr (Kind != Interpolation::kBicubic) {
      if (simple) return sample_inside(at);
    }
#pragma unroll 1
    for (int i = 0; i < kRowsPerThread; ++i) {
      WarpPoint<A> point = at[0];  // registers cannot be indexed
#pragma unroll
      for (int other = 1; other < kRowsPerThread; ++other)
        if (i == other) point = at[other];
      if (wanted(i)) sample_anywhere(point, i);
    }
  }
};

// What differs between images is the same for a whole block, so the switches cost little.
template <Interpolation Kind, class A, class Offset>
__device__ void sample_interpolated(const Image& image, const WarpTile<A>& tile, const WarpFrame& frame,
                                    const WarpPoint<A> (&at)[kRowsPerThread]) {
  switch (image.is.type) {
    case DType::kUInt8: return Sampler<Kind, uint8_t, A, Offset>{image, frame, tile.n, tile.y, tile.x}.sample(at);
    case DType::kInt8: return Sampler<Kind, int8_t, A, Offset>{image, frame, tile.n, tile.y, tile.x}.sample(at);
    case DType::kUInt16: return Sampler<Kind, uint16_t, A, Offset>{image, frame, tile.n, tile.y, tile.x}.sample(at);
    case DType::kInt16: return Sampler<Kind, int16_t, A, Offset>{image, frame, tile.n, tile.y, tile.x}.sample(at);
    case DType::kFloat16: return Sampler<Kind, Half, A, Offset>{image, frame, tile.n, tile.y, tile.x}.sample(at);
    case DType::kBFloat16: return Sampler<Kind, BFloat16, A, Offset>{image, frame, tile.n, tile.y, tile.x}.sample(at);
    case DType::kFloat64:
      if constexpr (sizeof(A) == 8) return Sampler<Kind, double, A, Offset>{image, frame, tile.n, tile.y, tile.x}.sample(at);
      return;
    default: return Sampler<Kind, float, A, Offset>{image, frame, tile.n, tile.y, tile.x}.sample(at);
  }
}

template <class A, class Offset>
__device__ void sample_image(const Image& image, const WarpTile<A>& tile, const WarpFrame& frame,
                             const WarpPoint<A> (&at)[kRowsPerThread]) {
  constexpr Interpolation kNearest = Interpolation::kNearest;
  switch (image.is.interpolation) {
    case Interpolation::kBilinear: return sample_interpolated<Interpolation::kBilinear, A, Offset>(image, tile, frame, at);
    case Interpolation::kBicubic: return sample_interpolated<Interpolation::kBicubic, A, Offset>(image, tile, frame, at);
    default: break;
  }
  switch (image.is.element_size) {
    case 1: return Sampler<kNearest, uint8_t, A, Offset>{image, frame, tile.n, tile.y, tile.x}.sample(at);
    case 2: return Sampler<kNearest, uint16_t, A, Offset>{image, frame, tile.n, tile.y, tile.x}.sample(at);
    case 4: return Sampler<kNearest, uint32_t, A, Offset>{image, frame, tile.n, tile.y, tile.x}.sample(at);
    default: return Sampler<kNearest, uint64_t, A, Offset>{image, frame, tile.n, tile.y, tile.x}.sample(at);
  }
}

template <class A, class Offset>
__global__ void __launch_bounds__(kWarpThreads)
    elastic_warp_kernel(const __grid_constant__ WarpGrid grid, const __grid_constant__ Images images) {
  __shared__ WarpTables<A> tables;
  const WarpTile<A> tile(grid, tables);
  WarpPoint<A> at[kRowsPerThread];
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) at[i] = tile.point(i);
#pragma unroll 1
  for (int i = 0; i < images.count; ++i) {
    const Image& image = images.image[i];
    if (image.columns.contains(tile.x)) sample_image<A, Offset>(image, tile, grid.frame, at);
  }
}

}  // namespace

cudaError_t prefilter_control_points(WarpFrame& frame, void* coefficients, cudaStream_t stream) {
  if (frame.field != Field::kBSpline) return cudaSuccess;
  const Reals samples = frame.displacement;
  frame.displacement = {coefficients, true};
  return launch(prefilter_kernel, 2 * frame.batch, kFilterThreads, stream, samples, frame.grid_height, frame.grid_width,
                static_cast<double*>(coefficients));
}

int64_t elastic_warp_workspace(const WarpFrame& frame) {
  if (frame.field != Field::kBSpline) return 0;
  return frame.batch * 2 * frame.grid_height * frame.grid_width * static_cast<int64_t>(sizeof(double));
}

cudaError_t elastic_warp(const WarpFrame& given, const WarpImage* all, int count, void* workspace, cudaStream_t stream) {
  WarpFrame frame = given;
  cudaError_t error = prefilter_control_points(frame, workspace, stream);
  for (int begin = 0; begin < count && error == cudaSuccess;) {
    Images images = {};
    warp::Range rows = {0, 0}, columns = {0, 0};
    bool narrow = true;
    for (; begin < count && images.count < kImages; ++begin) {
      const WarpImage& is = all[begin];
      if (is.channels == 0 || is.out_height == 0 || is.out_width == 0) continue;
      Image& image = images.image[images.count];
      image = {is, warp::Range::centred(frame.height, is.out_height), warp::Range::centred(frame.width, is.out_width),
               warp::make_fill(is.type, is.fill)};
      rows = images.count ? rows.join(image.rows) : image.rows;
      columns = images.count ? columns.join(image.columns) : image.columns;
      ++images.count;
      narrow = narrow && (frame.height - 1) * is.stride[2] + (frame.width - 1) * is.stride[3] <= INT32_MAX;
    }
    if (images.count == 0) break;
    const WarpGrid grid(frame, rows, columns);
    const auto kernel = frame.wide ? elastic_warp_kernel<double, int64_t>
                        : narrow   ? elastic_warp_kernel<float, int32_t>
                                   : elastic_warp_kernel<float, int64_t>;
    error = launch(kernel, grid.tiles(), kWarpThreads, stream, grid, images);
  }
  return error;
}

}  // namespace uf::cuda
