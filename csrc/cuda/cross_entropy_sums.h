// The sums of a loss over all pixels: the divisor of a mean before it, the pairs of sums that its blocks write, their total
// after it. No atomics: the order of the additions never changes.
#pragma once

#include "cuda/block_sum.h"
#include "cuda/cross_entropy_pixels.h"

namespace uf::cuda {

constexpr int kLossThreads = 256, kLossWarps = kLossThreads / kWarp;  // of a block of the loss
constexpr int kDivisorThreads = 512, kDivisorWarps = kDivisorThreads / kWarp;
constexpr int kMostDivisorBlocks = 128;  // few: every block of the loss adds up their sums
constexpr int kDivisorPixels = 4;        // that a thread reads at once
static_assert(kMostDivisorBlocks <= kLossThreads, "one thread of the loss for each sum of the divisor");

// The divisor alone, before the loss: 12 bytes a pixel at most. N pixels at a time, and the last few one by one.
template <class A, int N>
__global__ void __launch_bounds__(kDivisorThreads) divisor_kernel(const LossCall call, double* sums) {
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

// What every gradient is multiplied with: 1 / divisor.
template <class A>
__device__ A gradient_scale(const LossCall& call) {
  __shared__ double scratch[kLossWarps];
  if (!call.divisors) return A(1);
  const double share = threadIdx.x < call.divisor_blocks ? call.divisors[threadIdx.x] : 0.0;
  return static_cast<A>(1.0 / usable_divisor(block_sum<kLossThreads>(share, scratch)));
}

__device__ inline void write_sums(const LossCall& call, const PixelSums& sums) {
  __shared__ double loss_scratch[kLossWarps], divisor_scratch[kLossWarps];
  if (call.arguments.reduction == Reduction::kNone) return;
  const double loss = block_sum<kLossThreads>(sums.loss, loss_scratch);
  const double divisor = block_sum<kLossThreads>(sums.divisor, divisor_scratch);
  if (threadIdx.x == 0) {
    call.sums[2 * blockIdx.x] = loss;
    call.sums[2 * blockIdx.x + 1] = divisor;
  }
}

// One block adds up the pairs of all others. Without any (an empty tensor) the loss is 0.
template <class A>
__global__ void __launch_bounds__(kLossThreads)
    total_kernel(const double* sums, const int64_t blocks, const Reduction reduction, A* result) {
  __shared__ double loss_scratch[kLossWarps], weight_scratch[kLossWarps];
  double loss = 0, divisor = 0;
  for (int64_t block = threadIdx.x; block < blocks; block += kLossThreads) {
    loss += sums[2 * block];
    divisor += sums[2 * block + 1];
  }
  loss = block_sum<kLossThreads>(loss, loss_scratch);
  divisor = block_sum<kLossThreads>(divisor, weight_scratch);
  if (threadIdx.x == 0)
    *result = static_cast<A>(reduction == Reduction::kSum ? loss : loss / usable_divisor(divisor));
}

inline bool needs_divisor(const WeightedCrossEntropyArguments& a) {
  return a.grad != nullptr && (a.reduction == Reduction::kMean || a.reduction == Reduction::kWeightMean);
}

inline int64_t class_bytes(DType type) {
  return type == DType::kInt64 ? 8 : type == DType::kInt32 ? 4 : 1;
}

// Whether targets, weights and losses of every group of `count` pixels can be accessed as vectors.
inline bool pixels_are_aligned(const WeightedCrossEntropyArguments& a, int64_t count, int64_t wide_bytes) {
  const int64_t wide = vector_alignment(count * wide_bytes);
  return is_aligned(a.target, vector_alignment(count * class_bytes(a.class_type))) && is_aligned(a.weight, wide) &&
         (a.reduction != Reduction::kNone || is_aligned(a.loss, wide));
}

// Launches the sum of the divisor into `sums` where the gradient needs it first, and tells `call`.
template <class A>
cudaError_t sum_divisor(LossCall& call, double* sums, cudaStream_t stream) {
  if (!needs_divisor(call.arguments)) return cudaSuccess;
  const WeightedCrossEntropyShape& shape = call.shape;
  call.divisors = sums;
  const bool aligned = pixels_are_aligned(call.arguments, kDivisorPixels, sizeof(A));
  const int64_t blocks = ceil_div(shape.batch * shape.pixels, kDivisorThreads * kDivisorPixels);
  call.divisor_blocks = static_cast<unsigned>(blocks < kMostDivisorBlocks ? blocks : kMostDivisorBlocks);
  return launch(aligned ? divisor_kernel<A, kDivisorPixels> : divisor_kernel<A, 1>, call.divisor_blocks, kDivisorThreads,
                stream, call, sums);
}

// The loss of the whole call, from the sums of so many blocks.
template <class A>
cudaError_t sum_losses(const LossCall& call, int64_t blocks, cudaStream_t stream) {
  return launch(total_kernel<A>, 1, kLossThreads, stream, static_cast<const double*>(call.sums), blocks,
                call.arguments.reduction, static_cast<A*>(call.arguments.loss));
}

}  // namespace uf::cuda
