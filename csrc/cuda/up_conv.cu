// With the stride equal to the kernel no two pixels of the input meet in the image, so the convolution is one matrix
// product, 8 C_in C FLOP a pixel of the input, and a permutation. The product is cuBLAS's: its tensor core kernels for
// each architecture are beyond what could be written here by hand. The permutation takes the bias with it and writes
// straight into the concat buffer; backwards it takes the sum for the bias gradient. (The Triton kernel has the permutation
// in the epilogue of its own product.)
//
// Bytes moved per element of e bytes of the image: e read, e written. Limit: 2 e / copy bandwidth, on top of the product,
// which writes the e that are read here; below some 50 MB (a 196 x 196 input, 128 to 64 channels, bfloat16: 20 MB) it does
// so into the second-level cache of an H200.
//
// Planar: an item is 16 bytes of a line of the image, which two lines of the product interleave to (8 bytes each). A warp
// takes 256 of one channel: eight for each lane, all independent. Channels-last: a thread takes 16 bytes of the channels of
// the four pixels that one pixel of the input becomes: four independent loads. Blocks of 256 threads with at most 64
// registers keep 1,024 threads on a multiprocessor. Where 16 bytes do not divide the rows, elements are moved one by one.
#include "cuda/up_conv.h"

#include "cuda/channel_sums.h"
#include "cuda/channel_walk.h"

namespace uf::cuda {
namespace {

constexpr int64_t kWarpItems = 256;                   // planar: of one warp
constexpr int64_t kLeastSteps = 2, kMostSteps = 16;   // channels last: pixels of one thread, whose sums are single precision

// An index into something that nearly always has fewer than 2^31 elements.
struct Index {
  Divide<uint32_t> small;
  int64_t divisor;
  bool wide;

  Index(int64_t count, int64_t divisor_in)
      : small(divisor_in < (int64_t{1} << 31) ? divisor_in : 1),
        divisor(divisor_in),
        wide(count >= (int64_t{1} << 31)) {}

  __device__ int64_t over(int64_t n) const { return wide ? n / divisor : small(static_cast<uint32_t>(n)); }
};

// ---- planar

template <class T>
struct PlanarCall {
  PlaneChunks chunks;
  Index line;           // items of one line of the image
  int64_t items;        // of one plane
  int64_t channels, width, pixels, all_pixels;  // pixels: of one plane of the product; all_pixels: of all images
  ImageStride stride;
  T* product;
  T* image;
  const Wide<T>* bias;  // null: 0
  double* sums;         // null where nobody wants them
};

// N elements, at once or one by one.
template <class T, int N, bool kTogether>
__device__ Vector<T, N> load_run(const T* from) {
  if constexpr (kTogether) {
    return load_vector<T, N>(from);
  } else {
    Vector<T, N> values;
#pragma unroll
    for (int i = 0; i < N; ++i) values.values[i] = from[i];
    return values;
  }
}

template <class T, int N, bool kTogether>
__device__ void store_run(T* to, const Vector<T, N>& values) {
  if constexpr (kTogether) {
    store_vector<T, N>(to, values);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = values.values[i];
  }
}

template <bool kTogether, class T>
constexpr int kPairs = kTogether ? kVector<T> / 2 : 1;  // pixels of the input that one planar item holds

// f(2 * kPairs elements of the image, kPairs of each of the two lines of the product) for every item of a chunk.
template <class T, int V, class F>
__device__ void each_item(const PlanarCall<T>& call, const PlaneChunk& chunk, const F& f) {
  const int64_t first = chunk.chunk * kWarpItems, behind = first + kWarpItems;
  const int64_t end = !chunk.exists ? first : behind < call.items ? behind : call.items;
  T* image = call.image + chunk.image * call.stride.batch + chunk.channel * call.stride.channel;
  T* product = call.product + chunk.channel * call.all_pixels + chunk.image * call.pixels;
  const int64_t step = call.channels * call.all_pixels;  // from one (dy, dx) to the next
#pragma unroll 4
  for (int64_t item = first + chunk.lane; item < end; item += kWarp) {
    const int64_t line = call.line.over(item), x = (item - line * call.line.divisor) * V;
    T* left = product + (line & 1) * 2 * step + (line >> 1) * call.width + x;
    f(image + line * call.stride.y + 2 * x, left, left + step);
  }
}

template <class T, bool kTogether>
__global__ void __launch_bounds__(kWalkThreads, kWalkBlocks) scatter_planes_kernel(const PlanarCall<T> call) {
  constexpr int V = kPairs<kTogether, T>;
  using A = Wide<T>;
  const PlaneChunk chunk(call.chunks);
  const A bias = call.bias ? call.bias[chunk.channel] : A(0);
  each_item<T, V>(call, chunk, [&](T* __restrict__ image, const T* __restrict__ left, const T* __restrict__ right) {
    const auto a = load_run<T, V, kTogether>(left), b = load_run<T, V, kTogether>(right);
    Vector<T, 2 * V> both;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      both.values[2 * i] = narrow<T>(static_cast<A>(widen(a.values[i]) + bias));
      both.values[2 * i + 1] = narrow<T>(static_cast<A>(widen(b.values[i]) + bias));
    }
    store_run<T, 2 * V, kTogether>(image, both);
  });
}

template <class T, bool kTogether>
__global__ void __launch_bounds__(kWalkThreads, kWalkBlocks) gather_planes_kernel(const PlanarCall<T> call) {
  constexpr int V = kPairs<kTogether, T>;
  using A = Wide<T>;
  const PlaneChunk chunk(call.chunks);
  A sum = 0;
  each_item<T, V>(call, chunk, [&](const T* __restrict__ image, T* __restrict__ left, T* __restrict__ right) {
    const auto both = load_run<T, 2 * V, kTogether>(image);
    Vector<T, V> a, b;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      a.values[i] = both.values[2 * i];
      b.values[i] = both.values[2 * i + 1];
      sum += widen(a.values[i]) + widen(b.values[i]);
    }
    store_run<T, V, kTogether>(left, a);
    store_run<T, V, kTogether>(right, b);
  });
  if (call.sums && chunk.exists) chunk.write_sum(call.chunks, sum, call.sums);
}

// ---- channels last

template <class T>
struct LastCall {
  ChannelStrips strips;
  Index row, image_row;  // pixels of a row of the input; rows of an image
  int64_t channels;
  ImageStride stride;
  T* product;
  T* image;
  const Wide<T>* bias;   // null: 0
  double* sums;          // null where nobody wants them
};

// f(image, product) for V channels of the four pixels of the image that each pixel of the input becomes.
template <class T, class F>
__device__ void each_pixel(const LastCall<T>& call, const ChannelStrip& strip, int64_t channel, const F& f) {
  for (int64_t item = strip.item; item < strip.end; item += call.strips.rows) {
    const int64_t row = call.row.over(item), n = call.image_row.over(row);
    const int64_t x = item - row * call.row.divisor, y = row - n * call.image_row.divisor;
    T* product = call.product + item * 4 * call.channels + channel;
    T* image = call.image + n * call.stride.batch + 2 * y * call.stride.y + 2 * x * call.stride.x + channel;
    f(image, product);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kWalkThreads, kWalkBlocks) scatter_pixels_kernel(const LastCall<T> call) {
  using A = Wide<T>;
  const ChannelStrip strip(call.strips);
  const int64_t channel = strip.group * V;
  Vector<A, V> bias = {};
  if (call.bias && channel < call.channels) bias = load_run<A, V, false>(call.bias + channel);
  each_pixel(call, strip, channel, [&](T* __restrict__ image, const T* __restrict__ product) {
    Vector<T, V> values[4];
#pragma unroll
    for (int d = 0; d < 4; ++d) values[d] = load_vector<T, V>(product + d * call.channels);
#pragma unroll
    for (int d = 0; d < 4; ++d) {
#pragma unroll
      for (int v = 0; v < V; ++v)
        values[d].values[v] = narrow<T>(static_cast<A>(widen(values[d].values[v]) + bias.values[v]));
      store_vector<T, V>(image + d / 2 * call.stride.y + d % 2 * call.stride.x, values[d]);
    }
  });
}

template <class T, int V>
__global__ void __launch_bounds__(kWalkThreads, kWalkBlocks) gather_pixels_kernel(const LastCall<T> call) {
  using A = Wide<T>;
  const ChannelStrip strip(call.strips);
  A sums[V] = {};
  each_pixel(call, strip, strip.group * V, [&](const T* __restrict__ image, T* __restrict__ product) {
    Vector<T, V> values[4];
#pragma unroll
    for (int d = 0; d < 4; ++d)
      values[d] = load_vector<T, V>(image + d / 2 * call.stride.y + d % 2 * call.stride.x);
#pragma unroll
    for (int d = 0; d < 4; ++d) {
#pragma unroll
      for (int v = 0; v < V; ++v) sums[v] += widen(values[d].values[v]);
      store_vector<T, V>(product + d * call.channels, values[d]);
    }
  });
  if (call.sums) strip.write_sums(call.strips, sums, call.sums);
}

// ---- launches

template <class T>
bool is_whole(const UpConvShape& s, const void* image, const ImageStride& stride, const void* product) {
  constexpr int64_t kElements = kVectorBytes / sizeof(T);
  int64_t steps = used_stride(s.batch, stride.batch) | stride.y;  // rows come in pairs
  if (s.channels_last)
    steps |= s.channels | stride.x;
  else
    steps |= 2 * s.width | used_stride(s.channels, stride.channel);
  return steps % kElements == 0 && is_aligned(image, kVectorBytes) && is_aligned(product, kVectorBytes);
}

template <class T>
PlanarCall<T> planar_call(const UpConvShape& s, bool whole, T* product, T* image, const ImageStride& stride) {
  const int64_t line = s.width / (whole ? kPairs<true, T> : kPairs<false, T>), items = 2 * s.height * line;
  const int64_t pixels = s.height * s.width;
  return {PlaneChunks(s.batch, s.channels, items, kWarpItems), Index(items, line), items, s.channels, s.width, pixels,
          s.batch * pixels, stride, product, image, nullptr, nullptr};
}

template <class T>
LastCall<T> last_call(const UpConvShape& s, bool whole, T* product, T* image, const ImageStride& stride) {
  const int64_t pixels = s.batch * s.height * s.width;
  return {ChannelStrips(pixels, s.channels, whole ? kVector<T> : 1, kLeastSteps, kMostSteps), Index(pixels, s.width),
          Index(pixels, s.height), s.channels, stride, product, image, nullptr, nullptr};
}

bool is_empty(const UpConvShape& s) { return s.batch * s.channels * s.height * s.width == 0; }

template <class T>
int64_t parts_of(const UpConvShape& s, const void* image, const ImageStride& stride, const void* product) {
  if (is_empty(s)) return 0;
  const bool whole = is_whole<T>(s, image, stride, product);
  return s.channels_last ? last_call<T>(s, whole, nullptr, nullptr, stride).strips.parts
                         : planar_call<T>(s, whole, nullptr, nullptr, stride).chunks.parts();
}

template <class T>
cudaError_t scatter(const UpConvShape& s, const void* product_in, const void* bias, void* image_in,
                    const ImageStride& stride, cudaStream_t stream) {
  const bool whole = is_whole<T>(s, image_in, stride, product_in);
  T *product = static_cast<T*>(const_cast<void*>(product_in)), *image = static_cast<T*>(image_in);
  if (s.channels_last) {
    LastCall<T> call = last_call<T>(s, whole, product, image, stride);
    call.bias = static_cast<const Wide<T>*>(bias);
    return launch(whole ? scatter_pixels_kernel<T, kVector<T>> : scatter_pixels_kernel<T, 1>, call.strips.blocks(),
                  kWalkThreads, stream, call);
  }
  PlanarCall<T> call = planar_call<T>(s, whole, product, image, stride);
  call.bias = static_cast<const Wide<T>*>(bias);
  return launch(whole ? scatter_planes_kernel<T, true> : scatter_planes_kernel<T, false>, call.chunks.blocks(),
                kWalkThreads, stream, call);
}

template <class T>
cudaError_t gather(const UpConvShape& s, const void* image_in, const ImageStride& stride, void* product_in, double* sums,
                   cudaStream_t stream) {
  const bool whole = is_whole<T>(s, image_in, stride, product_in);
  T *product = static_cast<T*>(product_in), *image = static_cast<T*>(const_cast<void*>(image_in));
  if (s.channels_last) {
    LastCall<T> call = last_call<T>(s, whole, product, image, stride);
    call.sums = sums;
    return launch(whole ? gather_pixels_kernel<T, kVector<T>> : gather_pixels_kernel<T, 1>, call.strips.blocks(),
                  kWalkThreads, stream, call);
  }
  PlanarCall<T> call = planar_call<T>(s, whole, product, image, stride);
  call.sums = sums;
  return launch(whole ? gather_planes_kernel<T, true> : gather_planes_kernel<T, false>, call.chunks.blocks(),
                kWalkThreads, stream, call);
}

}  // namespace

cudaError_t up_conv_scatter(const UpConvShape& shape, DType type, const void* product, const void* bias, void* image,
                            const ImageStride& stride, cudaStream_t stream) {
  if (is_empty(shape)) return cudaSuccess;
  return dispatch_floating(
      type, [&]<class T>(T) { return scatter<T>(shape, product, bias, image, stride, stream); });
}

int64_t up_conv_workspace(const UpConvShape& shape, DType type, const void* image, const ImageStride& stride,
                          const void* product) {
  return shape.channels *
         dispatch_floating(type, [&]<class T>(T) { return parts_of<T>(shape, image, stride, product); });
}

cudaError_t up_conv_gather(const UpConvShape& shape, DType type, const void* image, const ImageStride& stride,
                           void* product, void* grad_bias, double* workspace, cudaStream_t stream) {
  double* sums = grad_bias ? workspace : nullptr;
  if (!is_empty(shape)) {
    const cudaError_t error = dispatch_floating(
        type, [&]<class T>(T) { return gather<T>(shape, image, stride, product, sums, stream); });
    if (error != cudaSuccess) return error;
  }
  if (!grad_bias || shape.channels == 0) return cudaSuccess;
  const int64_t parts = up_conv_workspace(shape, type, image, stride, product) / shape.channels;
  return channel_sums(workspace, parts, shape.channels, wide(type), grad_bias, stream);
}

}  // namespace uf::cuda
