// Sixteen pixels at a time, from coordinates to output without a detour through memory. Reading is what costs: where the
// taps of a pixel are neighbours in memory, one gathered element holds two of them (two floats in 64 bits, two 16-bit
// numbers in 32). Taps and weights cost so little beside it that each image computes its own.
#include "cpu/elastic_block.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

// the gather and unpack intrinsics of GCC 12 start from a register that they call undefined
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#include <type_traits>

#include "common/half.h"

#define UF_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define UF_AVX512_INLINE UF_AVX512 inline __attribute__((always_inline))

namespace uf::warp {
namespace {

constexpr int kStep = 16;
constexpr __mmask16 kAll = 0xffff;
constexpr float kNear = 1 << 22;  // pixels from the origin of the block; closer indices cannot overflow

// The pixel at or before each coordinate along one axis, and how far behind it the coordinate lies. A coordinate beyond
// 32 bits (or a NaN) gives an index that is not inside any image, since neither origin nor n exceeds 2^30.
struct Position {
  __m512i whole;
  __m512 rest;
};

UF_AVX512_INLINE Position split(const float* relative, int64_t origin) {
  const __m512 q = _mm512_load_ps(relative);
  const __m512i whole = _mm512_cvt_roundps_epi32(q, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return {_mm512_add_epi32(whole, _mm512_set1_epi32(static_cast<int32_t>(origin))),
          _mm512_sub_ps(q, _mm512_cvtepi32_ps(whole))};
}

UF_AVX512_INLINE __m512i nearest_index(Position at) {
  const __mmask16 up = _mm512_cmp_ps_mask(at.rest, _mm512_set1_ps(0.5f), _CMP_GE_OQ);
  return _mm512_mask_add_epi32(at.whole, up, at.whole, _mm512_set1_epi32(1));
}

// Lanes with 0 <= index < n.
UF_AVX512_INLINE __mmask16 inside(__m512i index, int32_t n) {
  return _mm512_cmplt_epu32_mask(index, _mm512_set1_epi32(n));
}

UF_AVX512_INLINE bool is_near(const float* relative) {
  const __m512 q = _mm512_abs_ps(_mm512_load_ps(relative));
  return _mm512_cmp_ps_mask(q, _mm512_set1_ps(kNear), _CMP_LE_OQ) == kAll;
}

// Whether the pixels low ... high can be replaced by pixels of the image in 32 bits and by one reflection.
UF_AVX512_INLINE bool reflects_once(__m512i low, __m512i high, int32_t n) {
  return (_mm512_cmplt_epi32_mask(low, _mm512_set1_epi32(1 - n)) |
          _mm512_cmpgt_epi32_mask(high, _mm512_set1_epi32(2 * (n - 1)))) == 0;
}

// As border_index.
UF_AVX512_INLINE __m512i border(Padding padding, __m512i index, int32_t n) {
  const __m512i last = _mm512_set1_epi32(n - 1);
  if (padding == Padding::kMirror) {
    return _mm512_sub_epi32(last, _mm512_abs_epi32(_mm512_sub_epi32(last, _mm512_abs_epi32(index))));
  }
  return _mm512_min_epi32(_mm512_max_epi32(index, _mm512_setzero_si512()), last);
}

// Lanes `first_lane` ... of the sixteen from k on that are wanted.
UF_AVX512_INLINE __mmask16 wanted(const BlockArgs& args, int k) {
  const uint64_t all = args.lanes == kBlock ? ~uint64_t{0} : ((uint64_t{1} << args.lanes) - 1) << args.first_lane;
  return static_cast<__mmask16>(all >> k);
}

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

struct Pair {
  __m512 first, second;
};

// Two elements that lie side by side, for sixteen pixels at these offsets.
template <class T>
UF_AVX512_INLINE Pair load_pair(const T* plane, __m512i at) {
  if constexpr (sizeof(T) == 4) {
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

UF_AVX512_INLINE __m512 blend(__m512 w0, __m512 v0, __m512 w1, __m512 v1) {
  return _mm512_fmadd_ps(w1, v1, _mm512_mul_ps(w0, v0));
}

template <class T>
UF_AVX512_INLINE const T* channel(const BlockArgs& args, int64_t c) {
  return reinterpret_cast<const T*>(static_cast<const char*>(args.plane) + c * args.in_channel);
}
// Where lane k of channel c goes.
template <class T>
UF_AVX512_INLINE T* target(const BlockArgs& args, int64_t c, int k) {
  return reinterpret_cast<T*>(static_cast<char*>(args.out) + c * args.out_channel) + (k - args.first_lane);
}

// Sixteen pixels, some of whose taps lie outside the image. The two taps of a pixel along x are the same column or
// neighbours in either order, whatever the padding: one pair holds both.
template <class T>
UF_AVX512_INLINE bool linear_border(const BlockArgs& args, int k, Position y, Position x) {
  const __m512i one = _mm512_set1_epi32(1);
  const __m512i wished_y[2] = {y.whole, _mm512_add_epi32(y.whole, one)};
  const __m512i wished_x[2] = {x.whole, _mm512_add_epi32(x.whole, one)};
  if (!is_near(args.at->y + k) || !is_near(args.at->x + k)) return false;
  if (args.padding == Padding::kMirror && (!reflects_once(wished_y[0], wished_y[1], args.height) ||
                                           !reflects_once(wished_x[0], wished_x[1], args.width))) {
    return false;
  }
  const bool zeros = args.padding == Padding::kZeros;
  const __m512i stride = _mm512_set1_epi32(static_cast<int32_t>(args.stride_y));
  const __m512i columns[2] = {border(args.padding, wished_x[0], args.width),
                              border(args.padding, wished_x[1], args.width)};
  const __m512i column =
      _mm512_min_epi32(_mm512_min_epi32(columns[0], columns[1]), _mm512_set1_epi32(args.width - 2));
  __m512i at[2];
  __mmask16 second[2], in_y[2], in_x[2];
  for (int t = 0; t < 2; ++t) {
    at[t] = _mm512_add_epi32(_mm512_mullo_epi32(border(args.padding, wished_y[t], args.height), stride), column);
    second[t] = _mm512_cmpneq_epi32_mask(columns[t], column);
    in_y[t] = zeros ? inside(wished_y[t], args.height) : kAll;
    in_x[t] = zeros ? inside(wished_x[t], args.width) : kAll;
  }
  const __m512 fill = _mm512_set1_ps(static_cast<float>(args.fill.value));
  const __m512 y0 = _mm512_sub_ps(_mm512_set1_ps(1), y.rest), x0 = _mm512_sub_ps(_mm512_set1_ps(1), x.rest);
  for (int64_t c = 0; c < args.channels; ++c) {
    __m512 row[2];
    for (int t = 0; t < 2; ++t) {
      const Pair pair = load_pair(channel<T>(args, c), at[t]);
      __m512 tap[2];
      for (int u = 0; u < 2; ++u) {
        tap[u] = _mm512_mask_blend_ps(second[u], pair.first, pair.second);
        tap[u] = _mm512_mask_blend_ps(in_y[t] & in_x[u], fill, tap[u]);
      }
      row[t] = blend(x0, tap[0], x.rest, tap[1]);
    }
    store_pixels(target<T>(args, c, k), wanted(args, k), blend(y0, row[0], y.rest, row[1]));
  }
  return true;
}

template <class T>
UF_AVX512 bool linear(const BlockArgs& args) {
  const __m512i stride = _mm512_set1_epi32(static_cast<int32_t>(args.stride_y));
  for (int k = 0; k < kBlock; k += kStep) {
    const Position y = split(args.at->y + k, args.at->origin_y), x = split(args.at->x + k, args.at->origin_x);
    if ((inside(y.whole, args.height - 1) & inside(x.whole, args.width - 1)) != kAll) {
      if (!linear_border<T>(args, k, y, x)) return false;
      continue;
    }
    const __m512i at = _mm512_add_epi32(_mm512_mullo_epi32(y.whole, stride), x.whole);
    const __m512 y0 = _mm512_sub_ps(_mm512_set1_ps(1), y.rest), x0 = _mm512_sub_ps(_mm512_set1_ps(1), x.rest);
    for (int64_t c = 0; c < args.channels; ++c) {
      const T* plane = channel<T>(args, c);
      const Pair upper = load_pair(plane, at), lower = load_pair(plane + args.stride_y, at);
      store_pixels(target<T>(args, c, k), wanted(args, k),
                   blend(y0, blend(x0, upper.first, x.rest, upper.second), y.rest,
                         blend(x0, lower.first, x.rest, lower.second)));
    }
  }
  return true;
}

// The pixels at these offsets, in bytes of one or two, else in elements.
template <class T>
UF_AVX512_INLINE void copy_pixels(const T* plane, __m512i at, __m512i limit, __mmask16 in, uint64_t fill_bits, T* out,
                                  __mmask16 lanes) {
  if constexpr (sizeof(T) <= 2) {  // the four bytes that begin there, or, at the end of the plane, that end there
    const __m512i from = _mm512_min_epi32(at, limit);
    const __m512i shift = _mm512_slli_epi32(_mm512_sub_epi32(at, from), 3);
    const __m512i pixel = _mm512_srlv_epi32(_mm512_i32gather_epi32(from, plane, 1), shift);
    const __m512i filled = _mm512_mask_blend_epi32(in, _mm512_set1_epi32(static_cast<int32_t>(fill_bits)), pixel);
    if constexpr (sizeof(T) == 1) {
      _mm_mask_storeu_epi8(out, lanes, _mm512_cvtepi32_epi8(filled));
    } else {
      _mm256_mask_storeu_epi16(out, lanes, _mm512_cvtepi32_epi16(filled));
    }
  } else if constexpr (sizeof(T) == 4) {
    const __m512i pixel = _mm512_i32gather_epi32(at, plane, 4);
    _mm512_mask_storeu_epi32(out, lanes,
                             _mm512_mask_blend_epi32(in, _mm512_set1_epi32(static_cast<int32_t>(fill_bits)), pixel));
  } else {
    const __m512i fill = _mm512_set1_epi64(static_cast<int64_t>(fill_bits));
    const __m512i low = _mm512_i32gather_epi64(_mm512_castsi512_si256(at), plane, 8);
    const __m512i high = _mm512_i32gather_epi64(_mm512_extracti64x4_epi64(at, 1), plane, 8);
    _mm512_mask_storeu_epi64(out, static_cast<__mmask8>(lanes),
                             _mm512_mask_blend_epi64(static_cast<__mmask8>(in), fill, low));
    _mm512_mask_storeu_epi64(out + 8, static_cast<__mmask8>(lanes >> 8),
                             _mm512_mask_blend_epi64(static_cast<__mmask8>(in >> 8), fill, high));
  }
}

template <class T>
UF_AVX512 bool nearest(const BlockArgs& args) {
  constexpr int unit = sizeof(T) <= 2 ? sizeof(T) : 1;
  const __m512i stride_y = _mm512_set1_epi32(static_cast<int32_t>(args.stride_y * unit));
  const __m512i stride_x = _mm512_set1_epi32(static_cast<int32_t>(args.stride_x * unit));
  const __m512i limit = _mm512_set1_epi32(static_cast<int32_t>((args.extent + 1) * unit) - 4);
  for (int k = 0; k < kBlock; k += kStep) {
    __m512i y = nearest_index(split(args.at->y + k, args.at->origin_y));
    __m512i x = nearest_index(split(args.at->x + k, args.at->origin_x));
    __mmask16 in = inside(y, args.height) & inside(x, args.width);
    if (in != kAll) {
      if (!is_near(args.at->y + k) || !is_near(args.at->x + k)) return false;
      if (args.padding == Padding::kMirror &&
          (!reflects_once(y, y, args.height) || !reflects_once(x, x, args.width))) {
        return false;
      }
      y = border(args.padding, y, args.height);
      x = border(args.padding, x, args.width);
      if (args.padding != Padding::kZeros) in = kAll;
    }
    const __m512i at = _mm512_add_epi32(_mm512_mullo_epi32(y, stride_y), _mm512_mullo_epi32(x, stride_x));
    for (int64_t c = 0; c < args.channels; ++c) {
      copy_pixels(channel<T>(args, c), at, limit, in, args.fill.bits, target<T>(args, c, k), wanted(args, k));
    }
  }
  return true;
}

}  // namespace

BlockSampler avx512_block_sampler(Interpolation kind, PixelType type, int64_t element_size, int64_t stride_x,
                                  int64_t width, int64_t extent) {
  for (const bool has : {__builtin_cpu_supports("avx512f") != 0, __builtin_cpu_supports("avx512bw") != 0,
                         __builtin_cpu_supports("avx512dq") != 0, __builtin_cpu_supports("avx512vl") != 0,
                         __builtin_cpu_supports("f16c") != 0}) {
    if (!has) return nullptr;
  }
  if (kind == Interpolation::kNearest) {
    if ((extent + 1) * element_size < 4) return nullptr;
    return element_size == 1   ? nearest<uint8_t>
           : element_size == 2 ? nearest<uint16_t>
           : element_size == 4 ? nearest<uint32_t>
                               : nearest<uint64_t>;
  }
  if (kind != Interpolation::kBilinear || stride_x != 1 || width < 2) return nullptr;
  return type == PixelType::kHalf ? linear<Half> : type == PixelType::kBFloat16 ? linear<BFloat16> : linear<float>;
}

}  // namespace uf::warp

#else

namespace uf::warp {

BlockSampler avx512_block_sampler(Interpolation, PixelType, int64_t, int64_t, int64_t, int64_t) { return nullptr; }

}  // namespace uf::warp

#endif
