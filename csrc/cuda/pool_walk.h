// What the two directions of relu_pool_skip have in common: the vectors of an image, and how threads walk over windows.
#pragma once

#include "common/junction_types.h"
#include "cuda/channel_walk.h"

namespace uf::cuda {

UF_HD_INLINE int64_t offset(const ImageStride& s, int64_t n, int64_t c, int64_t y, int64_t x) {
  return n * s.batch + c * s.channel + y * s.y + x * s.x;
}

// Whether all vectors of N elements along the innermost dimension start at a multiple of their size. Null: yes.
inline bool vectors_are_aligned(const void* image, const ImageStride& s, const int64_t size[4], bool channels_last,
                                int64_t n, int64_t element) {
  int64_t steps = used_stride(size[0], s.batch) | used_stride(size[2], s.y);
  steps |= channels_last ? used_stride(size[3], s.x) : used_stride(size[1], s.channel);
  return image == nullptr || (is_aligned(image, vector_alignment(n * element)) && steps % n == 0);
}

// Planar images: groups of windows side by side in one pair of rows; a lane takes groups of a plane, a warp apart.
struct WindowGroups {
  Divide<uint32_t> across;  // groups in a pair of rows
  uint32_t count;           // in a plane

  WindowGroups(const ReluPoolSkipShape& s, int64_t windows)
      : across(ceil_div(s.code_width(), windows)), count(static_cast<uint32_t>(across.divisor * s.code_height())) {}
};

// Channels-last images: the windows of a strip, a block's rows apart. One division at the start, then only carries.
struct WindowWalk {
  int64_t n, j, i;

  __device__ WindowWalk(const ReluPoolSkipShape& s, int64_t window) {
    const int64_t pair = window / s.code_width();
    i = window - pair * s.code_width();
    n = pair / s.code_height();
    j = pair - n * s.code_height();
  }

  // (dn, dj, di) is the step as a window of its own.
  __device__ void next(const ReluPoolSkipShape& s, const int64_t step[3]) {
    i += step[2];
    j += step[1];
    n += step[0];
    if (i >= s.code_width()) {
      i -= s.code_width();
      ++j;
    }
    if (j >= s.code_height()) {
      j -= s.code_height();
      ++n;
    }
  }
};

// A step of so many windows, for WindowWalk::next.
inline void window_step(const ReluPoolSkipShape& s, int64_t windows, int64_t step[3]) {
  step[0] = windows / (s.code_width() * s.code_height());
  step[1] = windows / s.code_width() % s.code_height();
  step[2] = windows % s.code_width();
}

}  // namespace uf::cuda
