// One thread takes a few pixels next to each other, up to 16 bytes of logits a class, and holds all their logits in
// registers: loss and gradient come from one read. Kernels for two, three and four classes are instantiated separately. More classes pass through
// a running softmax, one pixel a thread: channels-last through shared memory, planar ones read a second time for the
// gradient, mostly from the caches, since a warp takes 128 bytes of a class and a block comes back to them at once.
//
// Bytes moved per pixel: K logits read, K gradients written, target (1 to 8) and weight (4 or 8) read; a mean with a
// gradient reads target and weight once more beforehand, because the first gradient already needs the divisor. The
// limit is those bytes / copy bandwidth: with two float32 classes, weights and int64 targets 28 + 12.
//
// Blocks of 256 threads keep enough loads in flight at the 50 to 100 registers that the maths takes. Each block walks
// over tiles of its pixels, writes one pair of sums to the workspace, and a last block adds those up: no atomics, the
// order of the additions never changes.
#include "cuda/weighted_cross_entropy.h"

#include <cmath>

#include "cuda/cross_entropy_pixels.h"
#include "cuda/cross_entropy_sums.h"
#include "cuda/launch.h"

namespace uf::cuda {
namespace {

constexpr int64_t kMostBlocks = 4096;       // of the loss: the pairs of sums that the last block adds up
constexpr int64_t kStageBytes = 32 * 1024;  // of shared memory for many classes: three blocks fit on any multiprocessor

// ---- losses and gradients

// The N pixels from `pixel` of image `n` on. K is 0 for "any number".
template <class T, int K, int N, Access access>
__device__ PixelSums pixels_of_thread(const LossCall& call, int64_t n, int64_t pixel, Wide<T> scale) {
  using A = Wide<T>;
  using G = Gradient<T>;
  const WeightedCrossEntropyShape& s = call.shape;
  const int64_t at = n * s.pixels + pixel;
  const T* from = static_cast<const T*>(call.arguments.logits) + n * s.batch_stride + pixel * s.pixel_stride;
  G* to = call.arguments.grad == nullptr
              ? nullptr
              : static_cast<G*>(call.arguments.grad) + n * s.classes * s.pixels + pixel * s.grad_pixel_stride;
  int32_t target[N];
  A weight[N];
  Vector<A, N> loss;
  read_targets(call, at, target);
  read_weights(call, at, weight);

  // a target outside the classes poisons its pixel, whatever the weight
  const auto poisoned = [&](int i) { return target[i] == kOutside ? A(NAN) : weight[i]; };
  if constexpr (K == 0) {
    loss.values[0] = loss_of_strided_classes<T, G, A>(from, to, s, target[0], poisoned(0) * scale) * poisoned(0);
    if (target[0] == kIgnored) loss.values[0] = A(0);
  } else {
    A x[N][K];
    load_logits<T, K, N, access>(from, s, x);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      loss.values[i] = loss_of_pixel(x[i], target[i], poisoned(i) * scale) * poisoned(i);
      if (target[i] == kIgnored) {  // whatever its logits and its weight: NaN as well
        loss.values[i] = A(0);
#pragma unroll
        for (int k = 0; k < K; ++k) x[i][k] = A(0);
      }
    }
    if (to) store_gradient<G, K, N, access>(to, s, x);
  }
  if (call.arguments.reduction == Reduction::kNone) store_vector(static_cast<A*>(call.arguments.loss) + at, loss);

  PixelSums sums = {0, 0};
#pragma unroll
  for (int i = 0; i < N; ++i) {
    sums.loss += static_cast<double>(loss.values[i]);
    sums.divisor += divisor_of(call, target[i], weight[i]);
  }
  return sums;
}

// The tiles of one block, a grid apart, as an image and the number of the tile in it.
struct TileWalk {
  int64_t n, tile;

  __device__ explicit TileWalk(const LossCall& call)
      : n(call.tiles > blockIdx.x ? 0 : blockIdx.x / static_cast<uint32_t>(call.tiles)),
        tile(blockIdx.x - n * call.tiles) {}

  __device__ void next(const LossCall& call) {
    n += call.image_step;
    tile += call.tile_step;
    if (tile >= call.tiles) {
      tile -= call.tiles;
      ++n;
    }
  }
};

template <class T, int K, int N, Access access>
__global__ void __launch_bounds__(kLossThreads, 2) cross_entropy_kernel(const LossCall call) {
  const auto scale = gradient_scale<Wide<T>>(call);
  PixelSums sums = {0, 0};
  for (TileWalk walk(call); walk.n < call.shape.batch; walk.next(call)) {
    const int64_t pixel = walk.tile * call.tile_pixels + int64_t{threadIdx.x} * N;
    if (pixel >= call.shape.pixels) continue;
    const PixelSums more = pixels_of_thread<T, K, N, access>(call, walk.n, pixel, scale);
    sums.loss += more.loss;
    sums.divisor += more.divisor;
  }
  write_sums(call, sums);
}

// ---- many classes side by side

// Calls f(where in the stage, k) for the V values from `at` on of a tile whose pixels lie `pitch` apart in the stage.
template <int V, class F>
__device__ void each_value(const LossCall& call, uint32_t at, uint32_t pitch, const F& f) {
  const uint32_t classes = call.by_classes.divisor, pixel = call.by_classes(at);
  uint32_t k = at - pixel * classes, row = pixel * pitch;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    f(row + k, v);
    if (++k == classes) {
      k = 0;
      row += pitch;
    }
  }
}

// Channels-last with more classes than registers hold: the logits of a tile, which lie side by side, go through shared
// memory, V at a time, and so does their gradient. Each thread takes one pixel from there; an odd pitch keeps the
// threads of a warp on different banks.
template <class T, int V>
__global__ void __launch_bounds__(kLossThreads, 2) staged_kernel(const LossCall call) {
  using A = Wide<T>;
  using G = Gradient<T>;
  __shared__ A stage[kStageBytes / sizeof(A)];
  const WeightedCrossEntropyShape& s = call.shape;
  const WeightedCrossEntropyArguments& a = call.arguments;
  const uint32_t classes = call.by_classes.divisor, pitch = classes | 1;
  const A scale = gradient_scale<A>(call);
  PixelSums sums = {0, 0};
  for (TileWalk walk(call); walk.n < s.batch; walk.next(call)) {
    const int64_t first = walk.tile * call.tile_pixels, left = s.pixels - first;
    const auto count = static_cast<uint32_t>(left < call.tile_pixels ? left : call.tile_pixels);
    const uint32_t values = count * classes;  // a multiple of V
    const T* from = static_cast<const T*>(a.logits) + walk.n * s.batch_stride + first * s.classes;
    for (uint32_t at = threadIdx.x * V; at < values; at += kLossThreads * V) {
      const auto some = load_vector<T, V>(from + at);
      each_value<V>(call, at, pitch, [&](uint32_t where, int v) { stage[where] = widen(some.values[v]); });
    }
    __syncthreads();
    if (threadIdx.x < count) {
      int32_t target[1];
      A weight[1], *x = stage + threadIdx.x * pitch;
      const int64_t at = walk.n * s.pixels + first + threadIdx.x;
      read_targets(call, at, target);
      read_weights(call, at, weight);
      const A used = target[0] == kOutside ? A(NAN) : weight[0];
      A loss = loss_of_many_classes(
          s.classes, target[0], used * scale, a.grad != nullptr, [&](int64_t k) { return x[k]; },
          [&](int64_t k, A value) { x[k] = value; });
      loss = target[0] == kIgnored ? A(0) : loss * used;
      if (a.reduction == Reduction::kNone) static_cast<A*>(a.loss)[at] = loss;
      sums.loss += static_cast<double>(loss);
      sums.divisor += divisor_of(call, target[0], weight[0]);
    }
    __syncthreads();
    if (!a.grad) continue;
    G* to = static_cast<G*>(a.grad) + (walk.n * s.pixels + first) * s.classes;
    for (uint32_t at = threadIdx.x * V; at < values; at += kLossThreads * V) {
      Vector<G, V> some;
      each_value<V>(call, at, pitch, [&](uint32_t where, int v) { some.values[v] = narrow<G>(stage[where]); });
      store_vector(to + at, some);
    }  // no barrier: a thread loads the next tile only into what it has just stored itself
  }
  write_sums(call, sums);
}

// ---- launches

// N pixels of one class are 16 bytes, so images that are N elements or a multiple of it apart start at whole vectors.
template <class T, int K, int N>
Access access_of(const WeightedCrossEntropyShape& s, const WeightedCrossEntropyArguments& a) {
  using A = Wide<T>;
  static_assert(N * sizeof(T) == kVectorBytes);
  if (s.pixels % N != 0 || s.batch_stride % N != 0 || !pixels_are_aligned(a, N, sizeof(A))) return Access::kSingle;
  const bool last = s.grad_class_stride == 1 && s.class_stride == 1 && s.pixel_stride == K;
  const int64_t together = last ? N * K : N;
  if (!is_aligned(a.logits, vector_alignment(together * int64_t{sizeof(T)})) ||
      !is_aligned(a.grad, vector_alignment(together * int64_t{sizeof(Gradient<T>)})))
    return Access::kSingle;
  if (last) return Access::kInterleaved;
  const bool planar = s.pixel_stride == 1 && s.grad_pixel_stride == 1 && s.class_stride % N == 0;
  return planar ? Access::kPlanar : Access::kSingle;
}

cudaError_t launch_tiles(void (*kernel)(LossCall), LossCall call, int64_t tile_pixels, int64_t* blocks,
                         cudaStream_t stream) {
  call.tile_pixels = tile_pixels;
  call.tiles = ceil_div(call.shape.pixels, tile_pixels);
  const int64_t all = call.shape.batch * call.tiles;
  *blocks = all < kMostBlocks ? all : kMostBlocks;
  if (*blocks == 0) return cudaSuccess;
  call.image_step = *blocks / call.tiles;
  call.tile_step = *blocks % call.tiles;
  return launch(kernel, *blocks, kLossThreads, stream, call);
}

template <class T, int K, int N>
cudaError_t launch_few_classes(const LossCall& call, int64_t* blocks, cudaStream_t stream) {
  constexpr int64_t kTile = int64_t{kLossThreads} * N;
  switch (access_of<T, K, N>(call.shape, call.arguments)) {
    case Access::kPlanar:
      return launch_tiles(cross_entropy_kernel<T, K, N, Access::kPlanar>, call, kTile, blocks, stream);
    case Access::kInterleaved:
      return launch_tiles(cross_entropy_kernel<T, K, N, Access::kInterleaved>, call, kTile, blocks, stream);
    default: return launch_tiles(cross_entropy_kernel<T, K, 1, Access::kSingle>, call, kLossThreads, blocks, stream);
  }
}

template <class T>
cudaError_t launch_many_classes(LossCall call, int64_t* blocks, cudaStream_t stream) {
  using A = Wide<T>;
  constexpr int kVector = kVectorBytes / sizeof(T);
  const WeightedCrossEntropyShape& s = call.shape;
  const bool last = s.grad_class_stride == 1 && s.class_stride == 1 && s.pixel_stride == s.classes;
  // whole warps, so that every tile starts at a multiple of a vector
  const int64_t fit = kStageBytes / sizeof(A) / (s.classes | 1) / kWarp * kWarp;
  if (!last || fit == 0)
    return launch_tiles(cross_entropy_kernel<T, 0, 1, Access::kSingle>, call, kLossThreads, blocks, stream);
  call.by_classes = Divide<uint32_t>(s.classes);
  const bool even = s.batch_stride % kVector == 0 && s.classes * s.pixels % kVector == 0;
  const bool wide = even && is_aligned(call.arguments.logits, kVectorBytes) &&
                    is_aligned(call.arguments.grad, kVectorBytes);
  return launch_tiles(wide ? staged_kernel<T, kVector> : staged_kernel<T, 1>, call, fit < kLossThreads ? fit : kLossThreads,
                      blocks, stream);
}

template <class T>
cudaError_t launch_all(const WeightedCrossEntropyShape& shape, const WeightedCrossEntropyArguments& arguments,
                       double* workspace, cudaStream_t stream) {
  using A = Wide<T>;
  constexpr int kVector = kVectorBytes / sizeof(T);
  LossCall call = {};
  call.shape = shape;
  call.arguments = arguments;
  call.sums = workspace + kMostDivisorBlocks;
  cudaError_t error = sum_divisor<A>(call, workspace, stream);
  if (error != cudaSuccess) return error;
  int64_t blocks = 0;
  switch (shape.classes) {
    case 2: error = launch_few_classes<T, 2, kVector>(call, &blocks, stream); break;
    case 3: error = launch_few_classes<T, 3, kVector>(call, &blocks, stream); break;
    case 4: error = launch_few_classes<T, 4, kVector>(call, &blocks, stream); break;
    default: error = launch_many_classes<T>(call, &blocks, stream);
  }
  if (error != cudaSuccess || arguments.reduction == Reduction::kNone) return error;
  return sum_losses<A>(call, blocks, stream);
}

}  // namespace

int64_t weighted_cross_entropy_workspace(const WeightedCrossEntropyShape&,
                                         const WeightedCrossEntropyArguments& arguments) {
  return arguments.reduction == Reduction::kNone ? 0 : kMostDivisorBlocks + 2 * kMostBlocks;
}

cudaError_t weighted_cross_entropy(const WeightedCrossEntropyShape& shape,
                                   const WeightedCrossEntropyArguments& arguments, double* workspace,
                                   cudaStream_t stream) {
  return dispatch_floating(arguments.float_type, [&]<class T>(T) { return launch_all<T>(shape, arguments, workspace, stream); });
}

}  // namespace uf::cuda
