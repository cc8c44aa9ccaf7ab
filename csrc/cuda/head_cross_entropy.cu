// A block takes tiles of pixels and all their channels. Each thread holds a few pixels times a few channels of the features
// in registers, and the weights of its channels for all classes. It multiplies them to its share of the logits; the shares
// are added up in shared memory by one thread a pixel, which makes them loss and gradient of the logits; with these each
// thread turns to its features, which it still has, for their gradient (written) and those of the weights and of the bias in
// front of the ReLU (added up in registers until the block is done). The logits never reach memory.
//
// Bytes moved per pixel: C e features read and C e gradient written, target (1 to 8) and weight (4); 8 (K C + K + C) written
// and read for each block, and with a mean the targets and weights once more beforehand. FLOP: 6 K C. Limit: the bytes / copy
// bandwidth for few classes (64 channels and two classes in bfloat16: 268 bytes and 768 FLOP, some 1,200 instructions, a
// third less than what an H200 issues in the time of those bytes); from some 8 classes on the FLOP.
//
// Threads along pixels (planar) or channels (channels last) lie side by side, so that a warp reads whole sectors, 8 or 16
// bytes a thread where shapes and addresses allow. Pixels times channels of a thread: as many as leave the weights, their
// gradient and the features below 128 registers (two blocks of 256 threads on a multiprocessor), fewer from 5 classes on,
// where one block has all registers.
#include "cuda/head_cross_entropy.h"

#include "cuda/head_tile.h"

namespace uf::cuda {
namespace {

template <class G, int VP, int VC, class A>
__device__ void store_features(const HeadCall& call, G* to, int pixels, int channels, const A (&f)[VP][VC]) {
  const bool last = call.shape.channels_last;
  const int64_t pixel_stride = last ? call.shape.channels : 1, channel_stride = last ? 1 : call.shape.pixels;
  if (call.access == HeadAccess::kPixels) {
#pragma unroll
    for (int j = 0; j < VC; ++j) {
      Vector<G, VP> run;
#pragma unroll
      for (int i = 0; i < VP; ++i) run.values[i] = narrow<G>(f[i][j]);
      if (pixels > 0 && j < channels) store_vector<G, VP>(to + j * channel_stride, run);
    }
  } else if (call.access == HeadAccess::kChannels) {
#pragma unroll
    for (int i = 0; i < VP; ++i) {
      Vector<G, VC> run;
#pragma unroll
      for (int j = 0; j < VC; ++j) run.values[j] = narrow<G>(f[i][j]);
      if (i < pixels && channels > 0) store_vector<G, VC>(to + i * pixel_stride, run);
    }
  } else {
#pragma unroll
    for (int i = 0; i < VP; ++i)
#pragma unroll
      for (int j = 0; j < VC; ++j)
        if (i < pixels && j < channels) to[i * pixel_stride + j * channel_stride] = narrow<G>(f[i][j]);
  }
}

// Adds up the logits of the pixels of a tile, which become their gradient, and marks what is ignored. `pixel` is the first
// one of this thread.
template <class A, int K>
__device__ PixelSums losses_of_tile(const HeadCall& call, int64_t at, int count, HeadPixel<A> pixel, A scale, A* stage,
                                    uint8_t* ignored, A (&grad_bias)[K]) {
  const int groups = 1 << call.log_groups, classes = static_cast<int>(call.shape.classes), pitch = call.pitch;
  const A* bias = static_cast<const A*>(call.arguments.bias);
  PixelSums sums = {0, 0};
  for (int p = static_cast<int>(threadIdx.x); p < call.tile_pixels; p += kLossThreads) {
    if (p >= kLossThreads) pixel = HeadPixel<A>(call, at + p, p < count);
    A x[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      x[k] = k < classes ? (bias ? bias[k] : A(0)) : A(-INFINITY);  // a class that is not there has probability 0
      for (int group = 0; k < classes && group < groups; ++group) x[k] += stage[(k * groups + group) * pitch + p];
    }
    const A used = pixel.target == kOutside ? A(NAN) : pixel.weight;
    const A loss = loss_of_pixel(x, pixel.target, used * scale);
    const bool skip = pixel.target == kIgnored;  // whatever its features and its weight
    ignored[p] = skip;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const A g = skip ? A(0) : x[k];
      if (k < classes) stage[k * groups * pitch + p] = g;
      grad_bias[k] += g;
    }
    sums.loss += skip ? 0.0 : static_cast<double>(loss * used);
    sums.divisor += divisor_of(call.loss, pixel.target, pixel.weight);
  }
  return sums;
}

// One row of the workspace: what all threads of the block have added up, in the order of the pixels.
template <class A, int K, int VC>
__device__ void write_gradients(const HeadCall& call, const HeadPlace& place, const A (&grad_weight)[K][VC],
                                const A (&grad_feature_bias)[VC], const A (&grad_bias)[K], A* stage) {
  __shared__ double scratch[2][kLossWarps];
  const int groups = 1 << call.log_groups, slots = kLossThreads >> call.log_groups;
  const int64_t classes = call.shape.classes, channels = call.shape.channels;
  double* row = call.gradients + blockIdx.x * (classes * channels + channels + classes);
  const int mine = place.slot * groups + place.group;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < VC; ++j) {
#pragma unroll
    for (int k = 0; k < K; ++k) stage[(k * VC + j) * kLossThreads + mine] = grad_weight[k][j];
    stage[(K * VC + j) * kLossThreads + mine] = grad_feature_bias[j];
  }
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < (K + 1) * VC * groups; at += kLossThreads) {
    const int value = at >> call.log_groups, group = at & (groups - 1), k = value / VC;
    const int64_t channel = int64_t{group} * VC + value % VC;
    if (channel >= channels || (k >= classes && k < K)) continue;
    double sum = 0;
    for (int slot = 0; slot < slots; ++slot) sum += stage[value * kLossThreads + slot * groups + group];
    row[(k < K ? k : classes) * channels + channel] = sum;
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (k >= classes) continue;
    const double sum = block_sum<kLossThreads>(grad_bias[k], scratch[k % 2]);  // barriers enough between two uses
    if (threadIdx.x == 0) row[classes * channels + channels + k] = sum;
  }
}

template <class T, int K>
__global__ void __launch_bounds__(kLossThreads, Share<Wide<T>, K>::kBlocks) head_kernel(const HeadCall call) {
  using A = Wide<T>;
  using G = Gradient<T>;
  using S = Share<A, K>;
  constexpr int VP = S::kPixels, VC = S::kChannels;
  alignas(kVectorBytes) __shared__ A stage[S::kStage];
  __shared__ uint8_t ignored[kLossThreads * VP];
  const HeadCrossEntropyShape& s = call.shape;
  const HeadPlace place = HeadPlace::of<VP, VC>(call);
  const int groups = 1 << call.log_groups, classes = static_cast<int>(s.classes);
  const int64_t beyond = s.channels - place.channel;
  const int channels = beyond < VC ? (beyond < 0 ? 0 : static_cast<int>(beyond)) : VC;
  const bool want_grad = call.arguments.grad_features != nullptr, relu = call.arguments.relu;
  const A* all_weights = static_cast<const A*>(call.arguments.weight) + place.channel;
  const A* all_biases = static_cast<const A*>(call.arguments.feature_bias);
  const A scale = gradient_scale<A>(call.loss);
  A weight[K][VC], grad_weight[K][VC] = {}, grad_feature_bias[VC] = {}, grad_bias[K] = {};
#pragma unroll
  for (int j = 0; j < VC; ++j) {
#pragma unroll
    for (int k = 0; k < K; ++k) weight[k][j] = k < classes && j < channels ? all_weights[k * s.channels + j] : A(0);
  }

  PixelSums sums = {0, 0};
  const int64_t tiles = s.batch * call.tiles;
  const int own = static_cast<int>(threadIdx.x);  // the pixel of a tile whose loss this thread computes first
  HeadTile<T, VP, VC> next(call, place, blockIdx.x);  // there are no more blocks than tiles
  Packed<T, VP * VC> next_features = next.load(call, place, channels);
  HeadPixel<A> next_pixel(call, next.n * s.pixels + next.first + own, own < next.count);
  const auto load_next = [&](int64_t tile) {
    tile += gridDim.x;
    if (tile >= tiles) return;
    next = HeadTile<T, VP, VC>(call, place, tile);
    next_features = next.load(call, place, channels);
    next_pixel = HeadPixel<A>(call, next.n * s.pixels + next.first + own, own < next.count);
  };
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const HeadTile<T, VP, VC> now = next;
    const HeadPixel<A> pixel = next_pixel;
    const int64_t n = now.n, first = now.first;
    const int count = now.count, pixels = now.pixels;
    A f[VP][VC];
#pragma unroll
    for (int j = 0; j < VC; ++j) {
      const A bias = all_biases && j < channels ? all_biases[place.channel + j] : A(0);
#pragma unroll
      for (int i = 0; i < VP; ++i) {
        const A value = (call.access == HeadAccess::kPixels ? next_features[j * VP + i] : next_features[i * VC + j]) + bias;
        f[i][j] = relu && value <= A(0) ? A(0) : value;  // NaN passes, as through torch's
      }
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (k >= classes) continue;
      Vector<A, VP> share = {};
#pragma unroll
      for (int i = 0; i < VP; ++i)
#pragma unroll
        for (int j = 0; j < VC; ++j) share.values[i] += f[i][j] * weight[k][j];
      store_vector<A, VP>(stage + (k * groups + place.group) * call.pitch + place.pixel, share);
    }
    if (S::kAhead) load_next(tile);
    __syncthreads();
    const PixelSums more =
        losses_of_tile<A, K>(call, n * s.pixels + first, count, pixel, scale, stage, ignored, grad_bias);
    sums.loss += more.loss;
    sums.divisor += more.divisor;
    __syncthreads();
    if (!want_grad) {  // what a thread stores next, another has read before the second barrier
      if (!S::kAhead) load_next(tile);
      continue;
    }

    A grad[VP][VC] = {};
#pragma unroll
    for (int i = 0; i < VP; ++i)
#pragma unroll
      for (int j = 0; j < VC; ++j)
        if (ignored[place.pixel + i]) f[i][j] = A(0);  // a NaN there must not reach the gradient of the weights
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (k >= classes) continue;
      const auto g = load_vector<A, VP>(stage + k * groups * call.pitch + place.pixel);
#pragma unroll
      for (int i = 0; i < VP; ++i)
#pragma unroll
        for (int j = 0; j < VC; ++j) {
          grad[i][j] += g.values[i] * weight[k][j];
          grad_weight[k][j] += g.values[i] * f[i][j];
        }
    }
#pragma unroll
    for (int i = 0; i < VP; ++i)
#pragma unroll
      for (int j = 0; j < VC; ++j) {
        if (relu && f[i][j] == A(0)) grad[i][j] = A(0);
        grad_feature_bias[j] += grad[i][j];
      }
    G* to = static_cast<G*>(call.arguments.grad_features) + n * s.channels * s.pixels +
            (first + place.pixel) * (s.channels_last ? s.channels : 1) +
            place.channel * (s.channels_last ? 1 : s.pixels);
    store_features<G, VP, VC>(call, to, pixels, channels, grad);
    if (!S::kAhead) load_next(tile);
    __syncthreads();
  }
  write_sums(call.loss, sums);
  if (want_grad) write_gradients<A, K, VC>(call, place, grad_weight, grad_feature_bias, grad_bias, stage);
}

// A warp adds up the rows for four numbers, four rows in flight a lane: a few percent of the bytes of the pass at most.
template <class A>
__global__ void __launch_bounds__(kLossThreads)
    gradients_kernel(const double* __restrict__ rows, const int64_t blocks, const int64_t classes,
                     const int64_t channels, A* grad_weight, A* grad_feature_bias, A* grad_bias) {
  // four numbers (32 bytes, one sector) side by side, eight rows at a time
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kLossWarps + threadIdx.x / kWarp, value = warp * 4 + lane % 4;
  const int64_t weights = classes * channels, values = weights + channels + classes;
  double sum = 0;
  if (value < values) {
#pragma unroll 4
    for (int64_t row = lane / 4; row < blocks; row += kWarp / 4) sum += rows[row * values + value];
  }
  for (int distance = kWarp / 2; distance >= 4; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (lane >= 4 || value >= values) return;
  A* to = value < weights              ? grad_weight + value
          : value < weights + channels ? grad_feature_bias + (value - weights)
                                       : grad_bias + (value - weights - channels);
  *to = static_cast<A>(sum);
}

// ---- launches

template <class T, int VP, int VC>
HeadAccess access_of(const HeadCrossEntropyShape& s, const HeadCrossEntropyArguments& a) {
  const int64_t together = s.channels_last ? VC : VP, batch = used_stride(s.batch, s.batch_stride);
  const bool aligned = is_aligned(a.features, vector_alignment(together * int64_t{sizeof(T)})) &&
                       is_aligned(a.grad_features, vector_alignment(together * int64_t{sizeof(Gradient<T>)}));
  const int64_t steps = s.channels_last ? s.channels | s.pixel_stride | batch
                                        : s.pixels | used_stride(s.channels, s.channel_stride) | batch;
  if (!aligned || steps % together != 0) return HeadAccess::kElements;
  if (s.channels_last) return s.channel_stride == 1 ? HeadAccess::kChannels : HeadAccess::kElements;
  return s.pixel_stride == 1 ? HeadAccess::kPixels : HeadAccess::kElements;
}

template <class T, int K>
cudaError_t launch_head(HeadCall call, int64_t* blocks, cudaStream_t stream) {
  using S = Share<Wide<T>, K>;
  const HeadCrossEntropyShape& s = call.shape;
  call.access = access_of<T, S::kPixels, S::kChannels>(s, call.arguments);
  while ((int64_t{S::kChannels} << call.log_groups) < s.channels) ++call.log_groups;
  call.tile_pixels = (kLossThreads >> call.log_groups) * S::kPixels;
  // groups of channels that are written side by side fall on different banks
  call.pitch = call.tile_pixels + (call.tile_pixels >= kWarp ? S::kPixels : 0);
  call.tiles = ceil_div(s.pixels, call.tile_pixels);
  const int64_t all = s.batch * call.tiles, rounds = ceil_div(all, kMostBlocks);
  *blocks = rounds ? ceil_div(all, rounds) : 0;  // as many tiles for each
  return launch(head_kernel<T, K>, *blocks, kLossThreads, stream, call);
}

template <class T>
cudaError_t launch_all(const HeadCrossEntropyShape& s, const HeadCrossEntropyArguments& a,
                       const HeadGradients& gradients, double* workspace, cudaStream_t stream) {
  using A = Wide<T>;
  HeadCall call = {};
  call.shape = s;
  call.arguments = a;
  call.loss.shape = {s.batch, s.classes, s.pixels, 0, 0, 0, 0, 0};
  call.loss.arguments = {a.float_type, a.class_type, nullptr, a.target, a.pixel_weight, a.ignore_index, a.reduction,
                         a.loss, a.grad_features};
  call.loss.sums = workspace + kMostDivisorBlocks;
  call.gradients = call.loss.sums + 2 * kMostBlocks;
  cudaError_t error = s.batch * s.pixels ? sum_divisor<A>(call.loss, workspace, stream) : cudaSuccess;
  if (error != cudaSuccess) return error;
  int64_t blocks = 0;
  if (s.classes == 2) {
    error = launch_head<T, 2>(call, &blocks, stream);
  } else if (s.classes <= 4) {
    error = launch_head<T, 4>(call, &blocks, stream);
  } else if constexpr (sizeof(A) == sizeof(float)) {
    error = launch_head<T, 8>(call, &blocks, stream);
  }
  if (error == cudaSuccess) error = sum_losses<A>(call.loss, blocks, stream);
  if (error != cudaSuccess || !a.grad_features) return error;
  const int64_t values = s.classes * s.channels + s.channels + s.classes;
  return launch(gradients_kernel<A>, ceil_div(values, 4 * kLossWarps), kLossThreads, stream,
                static_cast<const double*>(call.gradients), blocks, s.classes, s.channels,
                static_cast<A*>(gradients.weight), static_cast<A*>(gradients.feature_bias),
                static_cast<A*>(gradients.bias));
}

}  // namespace

bool head_cross_entropy_fits(const HeadCrossEntropyShape& shape, DType type) {
  return shape.classes >= 2 && shape.channels <= kMostChannels &&
         shape.classes <= (type == DType::kFloat64 ? kMostClassesOfDouble : kMostClasses);
}

int64_t head_cross_entropy_workspace(const HeadCrossEntropyShape& s, const HeadCrossEntropyArguments& a) {
  return kMostDivisorBlocks + 2 * kMostBlocks +
         (a.grad_features ? kMostBlocks * (s.classes * s.channels + s.channels + s.classes) : 0);
}

cudaError_t head_cross_entropy(const HeadCrossEntropyShape& shape, const HeadCrossEntropyArguments& arguments,
                               const HeadGradients& gradients, double* workspace, cudaStream_t stream) {
  return dispatch_floating(arguments.float_type, [&]<class T>(T) { return launch_all<T>(shape, arguments, gradients, workspace, stream); });
}

}  // namespace uf::cuda
