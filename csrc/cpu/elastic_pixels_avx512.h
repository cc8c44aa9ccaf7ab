// Pixels as sixteen lanes of numbers: read two neighbours at a time from anywhere in an image, written in the image's dtype.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <cstdint>
#include <type_traits>

#include "common/half.h"

// the gather and unpack intrinsics of GCC 12 start from a register that they call undefined
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#define UF_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define UF_AVX512_INLINE UF_AVX512 inline __attribute__((always_inline))

namespace uf::warp {

UF_AVX512_INLINE void store_pixels(float* out, __mmask16 lanes, __m512 value) { _mm512_mask_storeu_ps(out, lanes, value); }
UF_AVX512_INLINE void store_pixels(Half* out, __mmask16 lanes, __m512 value) {
  _mm256_mask_storeu_epi16(out, lanes, _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
UF_AVX512_INLINE void store_pixels(BFloat16* out, __mmask16 lanes, __m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
  _mm256_mask_storeu_epi16(out, lanes, _mm512_cvtepi32_epi16(_mm512_srli_epi32(quiet, 16)));
}
// Whole numbers, held within their range.
template <class T>
UF_AVX512_INLINE void store_pixels(T* out, __mmask16 lanes, __m512 value) {
  const __m512 half = _mm512_add_ps(value, _mm512_set1_ps(0.5f));
  const __m512 low = _mm512_set1_ps(std::numeric_limits<T>::min()), high = _mm512_set1_ps(std::numeric_limits<T>::max());
  const __m512i whole = _mm512_cvt_roundps_epi32(_mm512_min_ps(_mm512_max_ps(half, low), high),
                                                 _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  if constexpr (sizeof(T) == 1) {
    _mm_mask_storeu_epi8(out, lanes, _mm512_cvtepi32_epi8(whole));
  } else {
    _mm256_mask_storeu_epi16(out, lanes, _mm512_cvtepi32_epi16(whole));
  }
}

// Some bytes behind a pointer, wherever that is.
UF_AVX512_INLINE void prefetch(const void* from, int64_t bytes) {
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(bytes)), _MM_HINT_T0);
}

struct Pair {
  __m512 first, second;
};

// The low and the high part of each lane, of T's size, as numbers.
template <class T>
UF_AVX512_INLINE Pair halves(__m512i both) {
  constexpr int bits = 8 * static_cast<int>(sizeof(T));
  const __m512i high = _mm512_slli_epi32(both, 32 - 2 * bits), low = _mm512_slli_epi32(both, 32 - bits);
  if constexpr (std::is_signed_v<T>) {
    return {_mm512_cvtepi32_ps(_mm512_srai_epi32(low, 32 - bits)), _mm512_cvtepi32_ps(_mm512_srai_epi32(high, 32 - bits))};
  } else {
    return {_mm512_cvtepi32_ps(_mm512_srli_epi32(low, 32 - bits)), _mm512_cvtepi32_ps(_mm512_srli_epi32(high, 32 - bits))};
  }
}

// Two elements that lie side by side, for sixteen pixels at these offsets. Single bytes are read four at a time: those that
// begin there, or, at the end of the plane (whose last pixel has the offset `extent`), that end there.
template <class T>
UF_AVX512_INLINE Pair load_pair(const T* plane, int64_t extent, __m512i at) {
  if constexpr (sizeof(T) == 1) {
    const __m512i from = _mm512_min_epi32(at, _mm512_set1_epi32(static_cast<int32_t>(extent) - 3));
    const __m512i shift = _mm512_slli_epi32(_mm512_sub_epi32(at, from), 3);
    return halves<T>(_mm512_srlv_epi32(_mm512_i32gather_epi32(from, plane, 1), shift));
  } else if constexpr (std::is_integral_v<T>) {
    return halves<T>(_mm512_i32gather_epi32(at, plane, 2));
  } else if constexpr (sizeof(T) == 4) {
    const __m512 a = _mm512_castpd_ps(_mm512_i32gather_pd(_mm512_castsi512_si256(at), plane, 4));
    const __m512 b = _mm512_castpd_ps(_mm512_i32gather_pd(_mm512_extracti64x4_epi64(at, 1), plane, 4));
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return {_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b)};
  } else {
    const __m512i both = _mm512_i32gather_epi32(at, plane, 2), high = _mm512_srli_epi32(both, 16);
    if constexpr (std::is_same_v<T, BFloat16>) {
      return {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)),
              _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
    } else {
      return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(both)), _mm512_cvtph_ps(_mm512_cvtepi32_epi16(high))};
    }
  }
}

}  // namespace uf::warp

#endif
