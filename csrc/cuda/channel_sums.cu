// The blocks that come before each write one row of partial sums, a number a channel, in double; here the rows are
// added up, in an order that depends on nothing but their number: the result has the same bits in every run.
//
// Bytes moved: 8 a partial sum, below 1% of what the kernels before move (they sum some 500 elements or more into
// each). What counts is latency: four channels (32 bytes, one sector) and 128 rows a block give each thread few numbers
// to add, four of them in flight.
#include "cuda/channel_sums.h"

#include "cuda/launch.h"

namespace uf::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / kWarp, kChannels = 4, kRows = kThreads / kChannels;

template <class T>
__global__ void __launch_bounds__(kThreads)
    channel_sums_kernel(const double* __restrict__ partial, const int64_t parts, const int64_t channels, const int64_t blocks, T* sums) {
  __shared__ double stage[kWarps][kChannels];
  const int column = threadIdx.x % kChannels;
  const int64_t image = blockIdx.x / blocks, channel = (blockIdx.x - image * blocks) * kChannels + column;
  partial += image * parts * channels;
  double sum = 0;
  if (channel < channels) {
#pragma unroll 4
    for (int64_t part = threadIdx.x / kChannels; part < parts; part += kRows) sum += partial[part * channels + channel];
  }
  for (int distance = kWarp / 2; distance >= kChannels; distance /= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (threadIdx.x % kWarp < kChannels) stage[threadIdx.x / kWarp][column] = sum;
  __syncthreads();
  if (threadIdx.x >= kChannels || channel >= channels) return;
  sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += stage[warp][column];
  sums[image * channels + channel] = narrow<T>(static_cast<Wide<T>>(sum));
}

}  // namespace

cudaError_t channel_sums(const double* partial, int64_t parts, int64_t channels, DType type, void* sums,
                         cudaStream_t stream, int64_t images) {
  const int64_t blocks = ceil_div(channels, kChannels);
  return dispatch_floating(type, [&]<class T>(T) {
    return launch(channel_sums_kernel<T>, images * blocks, kThreads, stream, partial, parts, channels, blocks, static_cast<T*>(sums));
  });
}

}  // namespace uf::cuda
