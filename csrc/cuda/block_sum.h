// The sum over all threads of a block, the same to the last bit in every run: the order of the additions is fixed.
#pragma once

#include "cuda/launch.h"

namespace uf::cuda {

// Adds up the lanes of a warp by butterfly exchange; each gets the result. All of them must come here.
template <class A>
__device__ inline A warp_sum(A value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// Adds up lanes by butterfly exchange, then warps in order. Every thread gets the result. `scratch` (shared memory)
// must not be in use by an earlier call that is not separated by a barrier.
template <int kThreads>
__device__ inline double block_sum(double value, double (&scratch)[kThreads / kWarp]) {
  static_assert(kThreads % kWarp == 0, "only whole warps can exchange lanes");
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  double sum = 0;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) sum += scratch[warp];
  return sum;
}

}  // namespace uf::cuda
