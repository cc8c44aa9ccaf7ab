// One thread takes a few pixels next to each other, up to 16 bytes of logits a class, and holds all their logits in
// registers: loss and gradient come from one read. Two, three and four classes are templates; more classes pass through
// a running softmax, one pixel a thread, and are read a second time for the gradient, from the caches.
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
#include <type_traits>

#include "common/fast_divide.h"
#include "common/half.h"
#include "common/softmax.h"
#include "cuda/block_sum.h"
#include "cuda/launch.h"

namespace uf::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 4096;                  // of the loss: the pairs of sums that the last block adds up
constexpr int kDivisorThreads = 512, kMostDivisorBlocks = 128;  // few: every block of the loss adds up their sums
constexpr int kDivisorPixels = 4;                      // that a thread reads at once
constexpr int kWarps = kThreads / kWarp, kDivisorWarps = kDivisorThreads / kWarp;
static_assert(kMostDivisorBlocks <= kThreads, "one thread of the loss for each sum of the divisor");

constexpr int32_t kIgnored = -1, kOutside = -2;  // targets that are no class

struct Call {
  WeightedCrossEntropyShape shape;
  WeightedCrossEntropyArguments arguments;
  int64_t tiles;                 // of one image
  int64_t image_step, tile_step; // the grid as whole images and tiles: from one tile of a block to its next
  const double* divisors;        // sums, or null for a gradient that is not divided
  unsigned divisor_blocks;       // the number of those sums
  double* sums;                  // two for each block: losses, divisor
};

// ---- targets and weights

template <class I, int N>
__device__ void read_classes(const void* target, int64_t at, const Call& call, int32_t (&out)[N]) {
  const auto values = load_vector<I, N>(static_cast<const I*>(target) + at);
  const int64_t ignore_index = call.arguments.ignore_index, classes = call.shape.classes;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const auto value = static_cast<int64_t>(values.values[i]);
    const bool valid = value >= 0 && value < classes;
    out[i] = value == ignore_index ? kIgnored : valid ? static_cast<int32_t>(value) : kOutside;
  }
}

template <int N>
__device__ void read_targets(const Call& call, int64_t at, int32_t (&out)[N]) {
  switch (call.arguments.class_type) {
    case ClassType::kInt64: return read_classes<int64_t>(call.arguments.target, at, call, out);
    case ClassType::kInt32: return read_classes<int32_t>(call.arguments.target, at, call, out);
    default: return read_classes<uint8_t>(call.arguments.target, at, call, out);
  }
}

template <class A, int N>
__device__ void read_weights(const Call& call, int64_t at, A (&out)[N]) {
  Vector<A, N> values;
#pragma unroll
  for (int i = 0; i < N; ++i) values.values[i] = A(1);
  if (call.arguments.weight) values = load_vector<A, N>(static_cast<const A*>(call.arguments.weight) + at);
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = values.values[i];
}

// What one pixel adds to the divisor of the reduction.
template <class A>
__device__ double divisor_of(const Call& call, int32_t target, A weight) {
  const double share = call.arguments.reduction == Reduction::kWeightMean ? static_cast<double>(weight) : 1.0;
  return target == kIgnored ? 0.0 : share;
}

// Nothing counted, or weights that sum to zero: the loss is 0 and so is its gradient.
UF_HD_INLINE double usable_divisor(double sum) { return sum == 0 ? 1.0 : sum; }

template <class A, int N>
__device__ double divisor_of_pixels(const Call& call, int64_t at) {
  int32_t target[N];
  A weight[N];
  read_targets(call, at, target);
  read_weights(call, at, weight);
  double sum = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += divisor_of(call, target[i], weight[i]);
  return sum;
}

// The divisor alone, before the loss: 12 bytes a pixel at most. N pixels at a time, and the last few one by one.
template <class A, int N>
__global__ void __launch_bounds__(kDivisorThreads) divisor_kernel(const Call call, double* sums) {
  __shared__ double scratch[kDivisorWarps];
  const int64_t pixels = call.shape.batch * call.shape.pixels, groups = pixels / N;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kDivisorThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kDivisorThreads;
  double sum = 0;
  for (int64_t group = thread; group < groups; group += threads) sum += divisor_of_pixels<A, N>(call, group * N);
  if (thread < pixels - groups * N) sum += divisor_of_pixels<A, 1>(call, groups * N + thread);
  sum = block_sum<kDivisorThreads>(sum, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// ---- logits in, gradient out

// Where the pixels of one thread lie: side by side in every class, side by side with their classes, or one alone.
enum class Access { kPlanar, kInterleaved, kSingle };

template <class T, int K, int N, Access access>
__device__ void load_logits(const T* from, const WeightedCrossEntropyShape& s, decltype(widen(T{})) (&x)[N][K]) {
  if constexpr (access == Access::kInterleaved) {
    const auto all = load_vector<T, N * K>(from);
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
      for (int k = 0; k < K; ++k) x[i][k] = widen(all.values[i * K + k]);
  } else {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const auto row = load_vector<T, N>(from + k * s.class_stride);
#pragma unroll
      for (int i = 0; i < N; ++i) x[i][k] = widen(row.values[i]);
    }
  }
}

template <class G, int K, int N, Access access, class A>
__device__ void store_gradient(G* to, const WeightedCrossEntropyShape& s, const A (&x)[N][K]) {
  if constexpr (access == Access::kInterleaved) {
    Vector<G, N * K> all;
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
      for (int k = 0; k < K; ++k) all.values[i * K + k] = narrow<G>(x[i][k]);
    store_vector(to, all);
  } else {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      Vector<G, N> row;
#pragma unroll
      for (int i = 0; i < N; ++i) row.values[i] = narrow<G>(x[i][k]);
      store_vector(to + k * s.grad_class_stride, row);
    }
  }
}

// The loss of one pixel; its logits become the gradient. `factor` is what the gradient is multiplied with.
template <class A, int K>
__device__ A loss_of_pixel(A (&x)[K], int32_t target, A factor) {
  A loss;
  if constexpr (K == 2) {
    A other;
    two_class_cross_entropy(x[0], x[1], target == 1, loss, other);
    x[0] = (target == 1 ? other : -other) * factor;
    x[1] = -x[0];
  } else {
    A m = x[0], mine = x[0];
    int32_t argmax = 0;
#pragma unroll
    for (int k = 1; k < K; ++k) {
      const bool larger = x[k] > m;
      m = larger ? x[k] : m;
      argmax = larger ? k : argmax;
      mine = target == k ? x[k] : mine;
    }
    A rest = m - m;  // 0, or NaN for an infinite largest logit
#pragma unroll
    for (int k = 0; k < K; ++k) {
      x[k] = exp_nonpositive(x[k] - m);
      rest += argmax == k ? A(0) : x[k];
    }
    const A y = A(1) + rest, inverse = A(1) / y;
    loss = cross_entropy(m, mine, rest, y, inverse);
#pragma unroll
    for (int k = 0; k < K; ++k)
      x[k] = cross_entropy_gradient(x[k], rest, argmax == k, target == k) * (factor * inverse);
  }
  return loss;
}

// The same for any number of classes, which are read twice: for the sum and, when wanted, for the gradient.
template <class T, class G, class A>
__device__ A loss_of_many_classes(const T* __restrict__ x, G* __restrict__ grad, const WeightedCrossEntropyShape& s,
                                  int32_t target, A factor) {
  RunningSoftmax<A> softmax(widen(x[0]));
  for (int64_t k = 1; k < s.classes; ++k) softmax.add(widen(x[k * s.class_stride]), static_cast<int32_t>(k));
  softmax.finish();
  const A mine = widen(x[(target < 0 ? 0 : target) * s.class_stride]);
  const A y = A(1) + softmax.rest, inverse = A(1) / y;
  if (grad) {
    for (int64_t k = 0; k < s.classes; ++k) {
      const A e = exp_nonpositive(widen(x[k * s.class_stride]) - softmax.largest);
      const A raw = cross_entropy_gradient(e, softmax.rest, softmax.argmax == k, target == k);
      grad[k * s.grad_class_stride] = narrow<G>(target == kIgnored ? A(0) : raw * (factor * inverse));
    }
  }
  return cross_entropy(softmax.largest, mine, softmax.rest, y, inverse);
}

// ---- the kernel

// The gradient of float16 lies below its range until the loss is scaled, so it is stored in float32.
template <class T>
using Gradient = std::conditional_t<std::is_same_v<T, Half>, float, T>;

struct PixelSums {
  double loss, divisor;
};

// The N pixels from `pixel` of image `n` on. K is 0 for "any number".
template <class T, int K, int N, Access access>
__device__ PixelSums pixels_of_thread(const Call& call, int64_t n, int64_t pixel, decltype(widen(T{})) scale) {
  using A = decltype(widen(T{}));
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
    loss.values[0] = loss_of_many_classes<T, G, A>(from, to, s, target[0], poisoned(0) * scale) * poisoned(0);
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

template <class T, int K, int N, Access access>
__global__ void __launch_bounds__(kThreads, 2) cross_entropy_kernel(const Call call) {
  using A = decltype(widen(T{}));
  __shared__ double divisor_scratch[kWarps], loss_scratch[kWarps], weight_scratch[kWarps];
  A scale = A(1);
  if (call.divisors) {
    const double share = threadIdx.x < call.divisor_blocks ? call.divisors[threadIdx.x] : 0.0;
    scale = static_cast<A>(1.0 / usable_divisor(block_sum<kThreads>(share, divisor_scratch)));
  }
  PixelSums sums = {0, 0};
  int64_t n = call.tiles > blockIdx.x ? 0 : blockIdx.x / static_cast<uint32_t>(call.tiles);
  int64_t tile = blockIdx.x - n * call.tiles;
  while (n < call.shape.batch) {
    const int64_t pixel = (tile * kThreads + threadIdx.x) * N;
    if (pixel < call.shape.pixels) {
      const PixelSums more = pixels_of_thread<T, K, N, access>(call, n, pixel, scale);
      sums.loss += more.loss;
      sums.divisor += more.divisor;
    }
    n += call.image_step;
    tile += call.tile_step;
    if (tile >= call.tiles) {
      tile -= call.tiles;
      ++n;
    }
  }
  if (call.arguments.reduction == Reduction::kNone) return;
  const double loss = block_sum<kThreads>(sums.loss, loss_scratch);
  const double divisor = block_sum<kThreads>(sums.divisor, weight_scratch);
  if (threadIdx.x == 0) {
    call.sums[2 * blockIdx.x] = loss;
    call.sums[2 * blockIdx.x + 1] = divisor;
  }
}

// One block adds up the pairs of all others. Without any (an empty tensor) the loss is 0.
template <class A>
__global__ void __launch_bounds__(kThreads)
    total_kernel(const double* sums, const int64_t blocks, const Reduction reduction, A* result) {
  __shared__ double loss_scratch[kWarps], weight_scratch[kWarps];
  double loss = 0, divisor = 0;
  for (int64_t block = threadIdx.x; block < blocks; block += kThreads) {
    loss += sums[2 * block];
    divisor += sums[2 * block + 1];
  }
  loss = block_sum<kThreads>(loss, loss_scratch);
  divisor = block_sum<kThreads>(divisor, weight_scratch);
  if (threadIdx.x == 0)
    *result = static_cast<A>(reduction == Reduction::kSum ? loss : loss / usable_divisor(divisor));
}

// ---- launches

bool needs_divisor(const WeightedCrossEntropyArguments& a) {
  return a.grad != nullptr && (a.reduction == Reduction::kMean || a.reduction == Reduction::kWeightMean);
}

int64_t class_bytes(ClassType type) {
  return type == ClassType::kInt64 ? 8 : type == ClassType::kInt32 ? 4 : 1;
}

// Whether targets, weights and losses of every group of `count` pixels can be accessed as vectors.
bool pixels_are_aligned(const WeightedCrossEntropyArguments& a, int64_t count, int64_t wide_bytes) {
  const int64_t wide = vector_alignment(count * wide_bytes);
  return is_aligned(a.target, vector_alignment(count * class_bytes(a.class_type))) && is_aligned(a.weight, wide) &&
         (a.reduction != Reduction::kNone || is_aligned(a.loss, wide));
}

template <class T, int K, int N>
Access access_of(const WeightedCrossEntropyShape& s, const WeightedCrossEntropyArguments& a) {
  using A = decltype(widen(T{}));
  if (s.pixels % N != 0 || s.batch_stride % N != 0 || !pixels_are_aligned(a, N, sizeof(A))) return Access::kSingle;
  const bool last = s.grad_class_stride == 1 && s.class_stride == 1 && s.pixel_stride == K;
  const int64_t together = last ? N * K : N;
  if (!is_aligned(a.logits, vector_alignment(together * int64_t{sizeof(T)})) ||
      !is_aligned(a.grad, vector_alignment(together * int64_t{sizeof(Gradient<T>)})))
    return Access::kSingle;
  // a group of N * K logits starts at a multiple of its own length only if every image does
  if (last) return s.batch_stride % (N * K) == 0 ? Access::kInterleaved : Access::kSingle;
  const bool planar = s.pixel_stride == 1 && s.grad_pixel_stride == 1 && s.class_stride % N == 0;
  return planar ? Access::kPlanar : Access::kSingle;
}

template <class T, int K, int N, Access access>
cudaError_t launch_loss(Call call, int64_t* blocks, cudaStream_t stream) {
  call.tiles = ceil_div(call.shape.pixels, int64_t{N} * kThreads);
  const int64_t all = call.shape.batch * call.tiles;
  *blocks = all < kMostBlocks ? all : kMostBlocks;
  if (*blocks == 0) return cudaSuccess;
  call.image_step = *blocks / call.tiles;
  call.tile_step = *blocks % call.tiles;
  return launch(cross_entropy_kernel<T, K, N, access>, *blocks, kThreads, stream, call);
}

template <class T, int K, int N>
cudaError_t launch_classes(const Call& call, int64_t* blocks, cudaStream_t stream) {
  switch (access_of<T, K, N>(call.shape, call.arguments)) {
    case Access::kPlanar: return launch_loss<T, K, N, Access::kPlanar>(call, blocks, stream);
    case Access::kInterleaved: return launch_loss<T, K, N, Access::kInterleaved>(call, blocks, stream);
    default: return launch_loss<T, K, 1, Access::kSingle>(call, blocks, stream);
  }
}

template <class T>
cudaError_t launch_all(const WeightedCrossEntropyShape& shape, const WeightedCrossEntropyArguments& arguments,
                       double* workspace, cudaStream_t stream) {
  using A = decltype(widen(T{}));
  constexpr int kVector = kVectorBytes / sizeof(T);
  Call call = {};
  call.shape = shape;
  call.arguments = arguments;
  call.sums = workspace + kMostDivisorBlocks;
  cudaError_t error = cudaSuccess;
  if (needs_divisor(arguments)) {
    call.divisors = workspace;
    const bool aligned = pixels_are_aligned(arguments, kDivisorPixels, sizeof(A));
    const int64_t blocks = ceil_div(shape.batch * shape.pixels, kDivisorThreads * kDivisorPixels);
    call.divisor_blocks = static_cast<unsigned>(blocks < kMostDivisorBlocks ? blocks : kMostDivisorBlocks);
    error = launch(aligned ? divisor_kernel<A, kDivisorPixels> : divisor_kernel<A, 1>, call.divisor_blocks,
                   kDivisorThreads, stream, call, workspace);
    if (error != cudaSuccess) return error;
  }
  int64_t blocks = 0;
  switch (shape.classes) {
    case 2: error = launch_classes<T, 2, kVector>(call, &blocks, stream); break;
    case 3: error = launch_classes<T, 3, kVector>(call, &blocks, stream); break;
    case 4: error = launch_classes<T, 4, kVector>(call, &blocks, stream); break;
    default: error = launch_loss<T, 0, 1, Access::kSingle>(call, &blocks, stream);
  }
  if (error != cudaSuccess || arguments.reduction == Reduction::kNone) return error;
  return launch(total_kernel<A>, 1, kThreads, stream, static_cast<const double*>(call.sums), blocks,
                arguments.reduction, static_cast<A*>(arguments.loss));
}

// ---- backward

enum class Factor { kOne, kPlanar, kInterleaved };  // one for all; (N, P) before the classes, or behind them

// N elements a thread, which share a plane where the factors are planar.
template <class T, int N, Factor factor, class Index, class A>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(const T* __restrict__ grad, const A* __restrict__ factors, T* __restrict__ out, const Index groups,
                 const Divide<Index> groups_a_plane, const Divide<Index> classes) {
  const Index group = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x;
  if (group >= groups) return;
  const auto at = static_cast<int64_t>(group) * N;
  Vector<T, N> values = load_vector<T, N>(grad + at);
  Vector<A, N> by;
  if constexpr (factor == Factor::kPlanar) {
    const Index plane = groups_a_plane(group), in_plane = group - plane * groups_a_plane.divisor;
    by = load_vector<A, N>(factors +
                           (static_cast<int64_t>(classes(plane)) * groups_a_plane.divisor + in_plane) * int64_t{N});
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      by.values[i] = factor == Factor::kOne ? *factors : factors[classes(static_cast<Index>(at + i))];
  }
#pragma unroll
  for (int i = 0; i < N; ++i) values.values[i] = narrow<T>(widen(values.values[i]) * by.values[i]);
  store_vector(out + at, values);
}

struct Scaling {
  int64_t elements, plane, classes;
  const void* grad;
  const void* factors;
  void* out;
};

template <class T, int N, Factor factor, class Index>
cudaError_t launch_scaling(const Scaling& s, cudaStream_t stream) {
  using A = decltype(widen(T{}));
  const int64_t groups = s.elements / N, groups_a_plane = factor == Factor::kPlanar ? s.plane / N : 1;
  return launch(scale_kernel<T, N, factor, Index, A>, ceil_div(groups, kThreads), kThreads, stream,
                static_cast<const T*>(s.grad), static_cast<const A*>(s.factors), static_cast<T*>(s.out),
                static_cast<Index>(groups), Divide<Index>(groups_a_plane), Divide<Index>(s.classes));
}

template <class T, int N, Factor factor>
cudaError_t choose_index(const Scaling& s, cudaStream_t stream) {
  return s.elements < (int64_t{1} << 30) ? launch_scaling<T, N, factor, uint32_t>(s, stream)
                                         : launch_scaling<T, N, factor, uint64_t>(s, stream);
}

template <class T, Factor factor>
cudaError_t choose_width(const Scaling& s, cudaStream_t stream) {
  using A = decltype(widen(T{}));
  constexpr int kVector = kVectorBytes / sizeof(T);
  const bool even = s.elements % kVector == 0 && (factor != Factor::kPlanar || s.plane % kVector == 0);
  const bool aligned = is_aligned(s.grad, kVectorBytes) && is_aligned(s.out, kVectorBytes) &&
                       (factor != Factor::kPlanar || is_aligned(s.factors, vector_alignment(kVector * sizeof(A))));
  return even && aligned ? choose_index<T, kVector, factor>(s, stream) : choose_index<T, 1, factor>(s, stream);
}

template <class T>
cudaError_t choose_factor(const Scaling& s, Factor factor, cudaStream_t stream) {
  switch (factor) {
    case Factor::kOne: return choose_width<T, Factor::kOne>(s, stream);
    case Factor::kPlanar: return choose_width<T, Factor::kPlanar>(s, stream);
    default: return choose_width<T, Factor::kInterleaved>(s, stream);
  }
}

}  // namespace

int64_t weighted_cross_entropy_workspace(const WeightedCrossEntropyShape&,
                                         const WeightedCrossEntropyArguments& arguments) {
  return arguments.reduction == Reduction::kNone ? 0 : kMostDivisorBlocks + 2 * kMostBlocks;
}

cudaError_t weighted_cross_entropy(const WeightedCrossEntropyShape& shape,
                                   const WeightedCrossEntropyArguments& arguments, double* workspace,
                                   cudaStream_t stream) {
  switch (arguments.float_type) {
    case FloatType::kFloat64: return launch_all<double>(shape, arguments, workspace, stream);
    case FloatType::kFloat16: return launch_all<Half>(shape, arguments, workspace, stream);
    case FloatType::kBFloat16: return launch_all<BFloat16>(shape, arguments, workspace, stream);
    default: return launch_all<float>(shape, arguments, workspace, stream);
  }
}

cudaError_t weighted_cross_entropy_backward(int64_t batch, int64_t classes, int64_t pixels, bool channels_last,
                                            FloatType type, const void* grad, const void* grad_output, bool each_pixel,
                                            void* out, cudaStream_t stream) {
  const Scaling scaling = {batch * classes * pixels, pixels, classes, grad, grad_output, out};
  if (scaling.elements == 0) return cudaSuccess;
  const Factor factor = !each_pixel ? Factor::kOne : channels_last ? Factor::kInterleaved : Factor::kPlanar;
  switch (type) {
    case FloatType::kFloat64: return choose_factor<double>(scaling, factor, stream);
    case FloatType::kBFloat16: return choose_factor<BFloat16>(scaling, factor, stream);
    default: return choose_factor<float>(scaling, factor, stream);  // float16 keeps its gradient in float32
  }
}

}  // namespace uf::cuda
