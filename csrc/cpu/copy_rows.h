// Copies and clears of blocks of equally long rows: the one primitive of every crop.
#pragma once

#include <cstring>

#include "common/macros.h"

namespace uf {

constexpr int64_t kShortRow = 1024;  // bytes; the channels of one pixel, too short for a call each

// width bytes, a multiple of 16.
UF_INLINE void copy_short(char* target, const char* source, int64_t width) {
  int64_t byte = 0;
  for (; byte + 64 <= width; byte += 64) __builtin_memcpy(target + byte, source + byte, 64);
  for (; byte < width; byte += 16) __builtin_memcpy(target + byte, source + byte, 16);
}

// rows of `width` bytes; pitches in bytes. A block without gaps is one memcpy, which streams large blocks past the cache.
UF_INLINE void copy_rows(char* target, int64_t target_pitch, const char* source, int64_t source_pitch, int64_t width,
                         int64_t rows) {
  if (width == 0) return;  // there may be no memory behind the pointers
  if (target_pitch == width && source_pitch == width) {
    std::memcpy(target, source, static_cast<size_t>(width * rows));
    return;
  }
  if (width % 16 == 0 && width <= kShortRow) {
    for (int64_t row = 0; row < rows; ++row) copy_short(target + row * target_pitch, source + row * source_pitch, width);
    return;
  }
  for (int64_t row = 0; row < rows; ++row)
    std::memcpy(target + row * target_pitch, source + row * source_pitch, static_cast<size_t>(width));
}

}  // namespace uf
