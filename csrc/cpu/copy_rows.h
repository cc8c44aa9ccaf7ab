// Copies and clears of blocks of equally long rows: the one primitive of every crop.
#pragma once

#include <cstring>

#include "common/macros.h"

namespace uf {

// rows of `width` bytes; pitches in bytes. A block without gaps is one memcpy, which streams large blocks past the cache.
UF_INLINE void copy_rows(char* target, int64_t target_pitch, const char* source, int64_t source_pitch, int64_t width,
                         int64_t rows) {
  if (target_pitch == width && source_pitch == width) {
    std::memcpy(target, source, static_cast<size_t>(width * rows));
    return;
  }
  if (width % 16 == 0 && width <= 256) {  // the channels of one pixel: too short for a call each
    for (int64_t row = 0; row < rows; ++row) {
      char* to = target + row * target_pitch;
      const char* from = source + row * source_pitch;
      for (int64_t byte = 0; byte < width; byte += 16) __builtin_memcpy(to + byte, from + byte, 16);
    }
    return;
  }
  for (int64_t row = 0; row < rows; ++row)
    std::memcpy(target + row * target_pitch, source + row * source_pitch, static_cast<size_t>(width));
}


}  // namespace uf
