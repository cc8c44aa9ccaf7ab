// Two ways of giving a tensor of channels to the threads of a GPU such that each knows its channels beforehand and sums
// over pixels need neither atomics nor an order that changes.
//
// Planar: a warp takes a chunk of one plane, so of one channel; its lanes take items of the chunk side by side.
// Channels-last: a thread takes one vector of channels and walks over items (pixels or windows) of a strip; the lanes
// of a block lie side by side over up to 32 vectors, its rows over items.
#pragma once

#include "common/dtype.h"
#include "common/fast_divide.h"
#include "cuda/block_sum.h"
#include "cuda/launch.h"

namespace uf::cuda {

constexpr int kWalkThreads = 256, kWalkWarps = kWalkThreads / kWarp;
constexpr int kWalkBlocks = 3;  // at least, of a multiprocessor: 768 threads, so at most 85 registers each

template <class T>
constexpr int kVector = kVectorBytes / sizeof(T);

struct PlaneChunks {
  Divide<uint32_t> chunks, channels;  // chunks of a plane; channels of an image
  int64_t warps = 0;

  PlaneChunks(int64_t batch, int64_t channel_count, int64_t items, int64_t items_of_warp)
      : chunks(items > items_of_warp ? ceil_div(items, items_of_warp) : 1),
        channels(channel_count),
        warps(batch * channel_count * chunks.divisor) {}

  int64_t parts() const { return warps / channels.divisor; }  // of the sums over one channel
  int64_t blocks() const { return ceil_div(warps, kWalkWarps); }
};

// The chunk of this thread's warp, and its lane.
struct PlaneChunk {
  uint32_t plane, image, channel, chunk, lane;
  bool exists;

  __device__ explicit PlaneChunk(const PlaneChunks& all) {
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWalkWarps + threadIdx.x / kWarp;
    exists = warp < all.warps;
    plane = all.chunks(static_cast<uint32_t>(exists ? warp : 0));
    chunk = static_cast<uint32_t>(warp) - plane * all.chunks.divisor;
    image = all.channels(plane);
    channel = plane - image * all.channels.divisor;
    lane = threadIdx.x % kWarp;
  }

  // Adds up the lanes; partial (parts, channels, each), of which number `at` is written. All lanes of the warp must come here.
  __device__ void write_sum(const PlaneChunks& all, double sum, double* partial, int each = 1, int at = 0) const {
    sum = warp_sum(sum);
    const int64_t part = static_cast<int64_t>(image) * all.chunks.divisor + chunk;
    if (lane == 0) partial[(part * all.channels.divisor + channel) * each + at] = sum;
  }
};

// The part of a plane that one lane takes of chunks of kVectors for each: vectors a warp apart and perhaps one element at the edge of the plane.
template <int V, int kVectors>
struct LaneOfPlane {
  int64_t vector, end;  // in vectors from the start of the tensor
  int64_t edge;         // an element, or -1

  __device__ LaneOfPlane(const PlaneChunk& at, const PlaneChunks& all, int64_t pixels) {
    const int64_t begin = at.plane * pixels, behind = begin + pixels;
    const int64_t first = (begin + V - 1) / V, last = behind / V;  // whole vectors; none where last <= first
    vector = first + static_cast<int64_t>(at.chunk) * (kWarp * kVectors) + at.lane;
    end = last;
    edge = -1;
    const int64_t before = (first * V < behind ? first * V : behind) - begin;  // below 2 V, so below half a warp
    const int64_t tail = first <= last ? behind - last * V : 0;
    if (at.chunk == 0 && at.lane < before) edge = begin + at.lane;
    const int64_t from_half = static_cast<int64_t>(at.lane) - kWarp / 2;
    if (at.chunk == all.chunks.divisor - 1 && from_half >= 0 && from_half < tail) edge = last * V + from_half;
  }
};

struct ChannelStrips {
  int64_t items, parts, groups;  // groups: vectors in the channels of one item
  Divide<uint32_t> columns;      // blocks side by side over the groups of one strip
  int log_lanes = 0;
  int64_t rows, steps;           // items of a strip that one step of a block takes, and how many steps

  // `most_steps` bounds what one thread adds up in single precision. Fewer where the chip would not be filled: 2048
  // blocks are twice what an H200 has room for.
  ChannelStrips(int64_t item_count, int64_t channels, int64_t vector, int64_t least_steps, int64_t most_steps)
      : items(item_count), groups(channels / vector) {
    constexpr int64_t kBusy = 2048;
    while (log_lanes < 5 && (1 << log_lanes) < groups) ++log_lanes;
    columns = Divide<uint32_t>(ceil_div(groups, int64_t{1} << log_lanes));
    rows = kWalkThreads >> log_lanes;
    const int64_t wanted = items * columns.divisor / (rows * kBusy) / least_steps * least_steps;
    steps = wanted < least_steps ? least_steps : wanted < most_steps ? wanted : most_steps;
    parts = ceil_div(items, rows * steps);
  }

  UF_HD int64_t blocks() const { return parts * columns.divisor; }
};

// The first item of this thread, its group of channels, and how far its strip reaches.
struct ChannelStrip {
  int64_t part, item, end, group;

  __device__ explicit ChannelStrip(const ChannelStrips& all) : ChannelStrip(all, blockIdx.x) {}

  __device__ ChannelStrip(const ChannelStrips& all, uint32_t block) {
    part = all.columns(block);
    group = (static_cast<int64_t>(block - part * all.columns.divisor) << all.log_lanes) +
            (threadIdx.x & ((1u << all.log_lanes) - 1));
    const int64_t first = part * all.rows * all.steps, behind = first + all.rows * all.steps;
    item = first + (threadIdx.x >> all.log_lanes);
    end = group >= all.groups ? item : behind < all.items ? behind : all.items;  // beside the channels: nothing to do
  }

  // Adds up the rows; partial (parts, channels, each), of which number `at` is written. All threads of the block must come
  // here, and wait for each other before they do so again.
  template <int V, class A>
  __device__ void write_sums(const ChannelStrips& all, const A (&sums)[V], double* partial, int each = 1, int at = 0) const {
    __shared__ double stage[kWalkWarps][kWarp * V];
    const int lanes = 1 << all.log_lanes, lane = threadIdx.x % kWarp;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      double sum = sums[v];
      for (int distance = kWarp / 2; distance >= lanes; distance /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      if (lane < lanes) stage[threadIdx.x / kWarp][lane * V + v] = sum;
    }
    __syncthreads();
    static_assert(kWarp * V <= kWalkThreads, "one thread adds up the warps for one channel");
    const int64_t channels = all.groups * V, channel = (group - (threadIdx.x & (lanes - 1))) * V + threadIdx.x;
    if (static_cast<int>(threadIdx.x) >= lanes * V || channel >= channels) return;
    double sum = 0;
    for (int warp = 0; warp < kWalkWarps; ++warp) sum += stage[warp][threadIdx.x];
    partial[(part * channels + channel) * each + at] = sum;
  }
};

// The step between the elements of a dimension, as far as alignment goes: there is none where there is one element.
inline int64_t used_stride(int64_t size, int64_t stride) { return size > 1 ? stride : 0; }

}  // namespace uf::cuda
