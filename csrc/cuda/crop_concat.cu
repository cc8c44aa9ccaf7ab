// A crop, a concatenation and their gradient are boxes of up to five dimensions, copied from one set of strides to
// another; of the gradient only a window of the box comes from memory and the rest is zero. The host joins dimensions
// that lie side by side in both tensors (a dense `up` becomes one row an image) and then takes the widest word, 16
// bytes down to one, that divides every address and every row: all of a box is moved in such words, so no row has a
// tail.
//
// Bytes moved: each byte of the result is written once and each byte of the inputs inside the crop is read once, so the
// limit is 2 * bytes of the result / copy bandwidth (forward), (result + crop) / bandwidth (backward).
//
// A thread moves up to four words a whole grid apart: four independent loads in flight hide the latency of the memory,
// and a warp still touches 512 consecutive bytes at a time. Small tensors get one word a thread, to fill the chip.
#include "common/crop_concat.h"

#include <initializer_list>

#include "common/fast_divide.h"
#include "cuda/launch.h"

namespace uf::cuda {
namespace {

constexpr int kThreads = 256, kWordsPerThread = 4;
constexpr int64_t kSmall = int64_t{1} << 18;  // words: about what an H200 holds as one word for each resident thread

// Dimensions from outermost to innermost. The window [first, first + inside) is what has a source.
struct Box {
  const char* source = nullptr;  // of the first element of the window
  char* target = nullptr;
  int rank = 0;
  int64_t size[kDims], target_stride[kDims], source_stride[kDims], first[kDims], inside[kDims];  // bytes for strides

  // Dimensions of one element are left out unless their window is empty; a dimension joins the one outside it where
  // both tensors go on without a gap.
  void add(int64_t length, int64_t target_step, int64_t source_step, int64_t start, int64_t window) {
    if (length == 1 && window == 1) return;
    const bool whole = window == length, last_whole = rank > 0 && inside[rank - 1] == size[rank - 1];
    if (whole && last_whole && target_stride[rank - 1] == target_step * length &&
        source_stride[rank - 1] == source_step * length) {
      --rank;
      length *= size[rank];
      start = 0;
      window = length;
    }
    size[rank] = length;
    target_stride[rank] = target_step;
    source_stride[rank] = source_step;
    first[rank] = start;
    inside[rank] = window;
    ++rank;
  }
};

// A box in words, ready for the kernel: strides and sizes of the innermost dimension count words. Unused outer
// dimensions have size 1.
template <class Index>
struct Part {
  const char* source;
  char* target;
  Index words;
  int word_bytes;
  Divide<Index> size[kDims];
  int64_t target_stride[kDims], source_stride[kDims];
  Index first[kDims], inside[kDims];
};

// The widest word for a box whose innermost dimension steps by one element in both tensors; else one element.
int64_t word_bytes(const Box& box, int64_t element) {
  const int inner = box.rank - 1;
  if (box.rank == 0 || box.target_stride[inner] != element || box.source_stride[inner] != element) return element;
  int64_t bits = reinterpret_cast<intptr_t>(box.source) | reinterpret_cast<intptr_t>(box.target);
  bits |= (box.size[inner] | box.first[inner] | box.inside[inner]) * element;
  for (int d = 0; d < inner; ++d) bits |= box.target_stride[d] | box.source_stride[d];
  const int64_t divisor = bits & -bits;  // the largest power of two that divides all of them
  return divisor == 0 || divisor > kVectorBytes ? kVectorBytes : divisor;
}

int64_t elements(const Box& box) {
  int64_t count = 1;
  for (int d = 0; d < box.rank; ++d) count *= box.size[d];
  return count;
}

template <class Index>
Part<Index> part_of(const Box& box, int64_t element) {
  Part<Index> part = {};
  if (elements(box) == 0) return part;  // no words: nothing below is used
  const int64_t bytes = word_bytes(box, element), joined = bytes / element;
  part.source = box.source;
  part.target = box.target;
  part.word_bytes = static_cast<int>(bytes);
  part.words = static_cast<Index>(elements(box) / joined);
  for (int d = 0; d < kDims; ++d) {
    const int from = d - (kDims - box.rank);  // the box fills the inner dimensions
    const int64_t per = d == kDims - 1 ? joined : 1;
    part.size[d] = Divide<Index>(from < 0 ? 1 : box.size[from] / per);
    part.inside[d] = from < 0 ? 1 : static_cast<Index>(box.inside[from] / per);
    part.first[d] = from < 0 ? 0 : static_cast<Index>(box.first[from] / per);
    part.target_stride[d] = from < 0 ? 0 : box.target_stride[from] * per;
    part.source_stride[d] = from < 0 ? 0 : box.source_stride[from] * per;
  }
  return part;
}

struct Place {
  int64_t target;   // bytes
  uint64_t source;  // bytes; outside the window it means nothing, and wraps
  bool inside;
};

template <bool kWindow, class Index>
__device__ Place place_of(const Part<Index>& part, Index word) {
  Place place = {0, 0, true};
#pragma unroll
  for (int d = kDims - 1; d >= 0; --d) {
    const Index outer = d == 0 ? Index(0) : part.size[d](word);
    const Index at = word - outer * part.size[d].divisor;
    const Index in_window = at - part.first[d];  // before the window: wraps to a large number
    place.target += static_cast<int64_t>(at) * part.target_stride[d];
    place.source += static_cast<uint64_t>(kWindow ? in_window : at) * static_cast<uint64_t>(part.source_stride[d]);
    if (kWindow) place.inside = place.inside && in_window < part.inside[d];
    word = outer;
  }
  return place;
}

template <class Word, bool kWindow, class Index>
__device__ void copy_part(const Part<Index>& part, Index block, Index blocks) {
  const Index step = blocks * kThreads;
  Word words[kWordsPerThread];
  int64_t target[kWordsPerThread];
#pragma unroll
  for (int i = 0; i < kWordsPerThread; ++i) {
    const Index word = block * kThreads + threadIdx.x + i * step;
    words[i] = Word{};
    if (word >= part.words) continue;
    const Place place = place_of<kWindow>(part, word);
    target[i] = place.target;
    if (place.inside) words[i] = *reinterpret_cast<const Word*>(part.source + place.source);
  }
#pragma unroll
  for (int i = 0; i < kWordsPerThread; ++i) {
    const Index word = block * kThreads + threadIdx.x + i * step;
    if (word < part.words) *reinterpret_cast<Word*>(part.target + target[i]) = words[i];
  }
}

// The width of the words is the same for a whole block, so the switch costs nothing.
template <bool kWindow, class Index>
__device__ void copy_words(const Part<Index>& part, Index block, Index blocks) {
  switch (part.word_bytes) {
    case 16: return copy_part<Vector<uint32_t, 4>, kWindow>(part, block, blocks);
    case 8: return copy_part<Vector<uint32_t, 2>, kWindow>(part, block, blocks);
    case 4: return copy_part<uint32_t, kWindow>(part, block, blocks);
    case 2: return copy_part<uint16_t, kWindow>(part, block, blocks);
    default: return copy_part<uint8_t, kWindow>(part, block, blocks);
  }
}

// The first blocks copy one part, the rest the other: two launches would cost more than a small concatenation itself.
template <class Index>
__global__ void __launch_bounds__(kThreads)
    crop_concat_kernel(const Part<Index> skip, const Part<Index> up, const Index skip_blocks) {
  const Index block = blockIdx.x;
  if (block < skip_blocks)
    copy_words<false>(skip, block, skip_blocks);
  else
    copy_words<false>(up, Index(block - skip_blocks), Index(gridDim.x - skip_blocks));
}

template <class Index>
__global__ void __launch_bounds__(kThreads) crop_concat_backward_kernel(const Part<Index> grad) {
  copy_words<true>(grad, Index(blockIdx.x), Index(gridDim.x));
}

template <class Index>
int64_t blocks_of(const Part<Index>& part) {
  const auto words = static_cast<int64_t>(part.words);
  return ceil_div(words, kThreads * (words <= kSmall ? 1 : kWordsPerThread));
}

// Whether 32-bit indices reach beyond the last word: elements bound the words, and a grid overshoots its box by less
// than the box again.
bool fits_32_bits(std::initializer_list<const Box*> boxes) {
  for (const Box* box : boxes)
    if (elements(*box) >= int64_t{1} << 30) return false;
  return true;
}

template <class Index>
cudaError_t launch_forward(const Box& skip_box, const Box& up_box, int64_t element, cudaStream_t stream) {
  const Part<Index> skip = part_of<Index>(skip_box, element), up = part_of<Index>(up_box, element);
  const int64_t skip_blocks = blocks_of(skip);
  return launch(crop_concat_kernel<Index>, skip_blocks + blocks_of(up), kThreads, stream, skip, up,
                static_cast<Index>(skip_blocks));
}

template <class Index>
cudaError_t launch_backward(const Box& box, int64_t element, cudaStream_t stream) {
  const Part<Index> part = part_of<Index>(box, element);
  return launch(crop_concat_backward_kernel<Index>, blocks_of(part), kThreads, stream, part);
}

// The order of the dimensions in memory, and the dense strides of a tensor of these sizes, in bytes.
struct Layout {
  Dim order[kDims];
  int64_t stride[kDims];

  Layout(const int64_t size[kDims], int64_t channels, int64_t element, bool channels_last) {
    constexpr Dim planar[] = {kBatch, kChannel, kDepth, kHeight, kWidth};
    constexpr Dim last[] = {kBatch, kDepth, kHeight, kWidth, kChannel};
    int64_t step = element;
    for (int d = kDims - 1; d >= 0; --d) {
      order[d] = channels_last ? last[d] : planar[d];
      stride[order[d]] = step;
      step *= order[d] == kChannel ? channels : size[order[d]];
    }
  }
};

}  // namespace

cudaError_t crop_concat(const CropConcatShape& shape, const void* skip, const int64_t skip_stride[kDims],
                        const void* up, const int64_t up_stride[kDims], void* out, cudaStream_t stream) {
  const int64_t element = shape.element, skip_channels = shape.skip_size[kChannel];
  const Layout layout(shape.up_size, skip_channels + shape.up_size[kChannel], element, shape.channels_last);
  Box boxes[2];
  boxes[0].source = static_cast<const char*>(skip);
  boxes[0].target = static_cast<char*>(out);
  boxes[1].source = static_cast<const char*>(up);
  boxes[1].target = static_cast<char*>(out) + skip_channels * layout.stride[kChannel];
  for (const Dim d : layout.order) {
    const int64_t size = shape.up_size[d];
    if (d != kChannel) boxes[0].source += crop_start(shape.skip_size[d], size) * skip_stride[d] * element;
    const int64_t first_size = d == kChannel ? skip_channels : size;
    boxes[0].add(first_size, layout.stride[d], skip_stride[d] * element, 0, first_size);
    const int64_t up_size = up ? size : 0;  // an empty box copies nothing
    boxes[1].add(up_size, layout.stride[d], up ? up_stride[d] * element : 0, 0, up_size);
  }
  return fits_32_bits({&boxes[0], &boxes[1]}) ? launch_forward<uint32_t>(boxes[0], boxes[1], element, stream)
                                              : launch_forward<uint64_t>(boxes[0], boxes[1], element, stream);
}

cudaError_t crop_concat_backward(const CropConcatShape& shape, const void* grad, const int64_t grad_stride[kDims],
                                 void* grad_skip, cudaStream_t stream) {
  const int64_t element = shape.element;
  const Layout layout(shape.skip_size, shape.skip_size[kChannel], element, shape.channels_last);
  Box box;
  box.source = static_cast<const char*>(grad);
  box.target = static_cast<char*>(grad_skip);
  for (const Dim d : layout.order) {
    const int64_t size = shape.skip_size[d], window = d == kChannel ? size : shape.up_size[d];
    box.add(size, layout.stride[d], grad_stride[d] * element, crop_start(size, window), window);
  }
  return fits_32_bits({&box}) ? launch_backward<uint32_t>(box, element, stream)
                              : launch_backward<uint64_t>(box, element, stream);
}

}  // namespace uf::cuda
