// Copies and clears of blocks of equally long rows: the one primitive of every crop.
#pragma once

#include <algorithm>
#include <cstring>

#include "common/macros.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace uf {

constexpr int64_t kShortRow = 1024;  // bytes; the channels of one pixel, too short for a call each
constexpr int64_t kLongRow = 4096;   // bytes; the parts of a line at both ends do not count

// width bytes, a multiple of 16.
UF_INLINE void copy_short(char* target, const char* source, int64_t width) {
  int64_t byte = 0;
  for (; byte + 64 <= width; byte += 64) __builtin_memcpy(target + byte, source + byte, 64);
  for (; byte < width; byte += 16) __builtin_memcpy(target + byte, source + byte, 16);
}

// ---- Past the caches. A store to a line that no cache holds reads it from memory first; one past them (non-temporal) does not,
// so a copy moves two bytes for each where it moved three. What is read next is then not in a cache, as of a result of this size it
// mostly would not be: a join of 16 MB takes 0.75 of its time, with a pass over the result 0.87; from 20 MB on 0.6 and 0.72; of
// 8 MB both take longer (AMD EPYC, one thread, 32 MB of last cache a core). memcpy does so from sizes on that the C library
// derives from the cache of all cores together, which here is none that occurs.

// Whether a result of so many bytes is written past the caches.
inline bool past_caches(int64_t bytes) { return bytes >= int64_t{1} << 24; }

// width bytes, a multiple of 16, to an address that is one too.
UF_INLINE void stream_short(char* target, const char* source, int64_t width) {
#if defined(__SSE2__)
  for (int64_t byte = 0; byte < width; byte += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + byte),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + byte)));
#else
  copy_short(target, source, width);
#endif
}

// Zeros, likewise.
UF_INLINE void stream_zeros(char* target, int64_t width) {
#if defined(__SSE2__)
  for (int64_t byte = 0; byte < width; byte += 16) _mm_stream_si128(reinterpret_cast<__m128i*>(target + byte), _mm_setzero_si128());
#else
  std::memset(target, 0, static_cast<size_t>(width));
#endif
}

// Any bytes, anywhere. The lines at both ends are stored as usual: half a line past the caches is many times slower.
UF_INLINE void stream_long(char* target, const char* source, int64_t bytes) {
  const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(target) % 64);
  const int64_t head = std::min(bytes, (64 - past) % 64), body = (bytes - head) / 64 * 64;
  std::memcpy(target, source, static_cast<size_t>(head));
  stream_short(target + head, source + head, body);
  std::memcpy(target + head + body, source + head + body, static_cast<size_t>(bytes - head - body));
}

// After the last such store of a thread, so that others see them in order.
UF_INLINE void end_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Rows of `width` bytes; pitches in bytes. A block without gaps is copied at once. `streamed`: past the caches where that is no
// slower: in whole lines, of which nobody stores a part in the usual way.
UF_INLINE void copy_rows(char* target, int64_t target_pitch, const char* source, int64_t source_pitch, int64_t width,
                         int64_t rows, bool streamed = false) {
  if (width == 0) return;  // there may be no memory behind the pointers
  if (streamed) {
    if (target_pitch == width && source_pitch == width && width * rows >= kLongRow)
      return stream_long(target, source, width * rows);
    const int64_t unit = target_pitch == width && width * rows >= kLongRow ? 16 : 64;
    if ((width | target_pitch | static_cast<int64_t>(reinterpret_cast<uintptr_t>(target))) % unit == 0) {
      for (int64_t row = 0; row < rows; ++row) stream_short(target + row * target_pitch, source + row * source_pitch, width);
      return;
    }
  }
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
