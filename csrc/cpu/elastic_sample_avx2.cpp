// Samplers for x86 processors with AVX2, in intrinsics because compilers no longer turn look-ups into gather instructions.
// Eight pixels at a time. Reading is what costs: where the taps of a pixel are neighbours in memory, one gathered element
// holds two of them (two floats in 64 bits, two shorter numbers in 32). Other blocks, at the border, go to the plain sampler.
#include "cpu/elastic_sample.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

// the gather and unpack intrinsics of GCC 12 start from a register that they call undefined
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <algorithm>
#include <cstring>

#include "common/half.h"
#include "common/warp_pixel.h"

#define UF_AVX2 __attribute__((target("avx2,fma,f16c")))
#define UF_AVX2_INLINE UF_AVX2 inline __attribute__((always_inline))

namespace uf::warp {
namespace {

constexpr int kStep = 8;

UF_AVX2_INLINE __m256i load_index(const int32_t* index) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(index));
}

// Offsets, in elements, of row + column.
UF_AVX2_INLINE __m256i offsets(__m256i row, __m256i stride_y, __m256i column, __m256i stride_x) {
  return _mm256_add_epi32(_mm256_mullo_epi32(row, stride_y), _mm256_mullo_epi32(column, stride_x));
}

template <class T>
UF_AVX2_INLINE void store_lanes(const SampleArgs<float>& args, const T* tile) {
  if (args.lanes == kBlock) {
    std::memcpy(args.out, tile, kBlock * sizeof(T));
  } else {
    std::memcpy(args.out, tile + args.first_lane, static_cast<size_t>(args.lanes) * sizeof(T));
  }
}

// Replaces pixels outside the image by the fill value.
template <class T>
UF_AVX2_INLINE void fill_outside(const SampleArgs<float>& args, T* tile) {
  const T fill = static_cast<T>(args.fill.bits);
  for (int k = 0; k < kBlock; ++k) {
    const bool inside = (!args.y->outside || args.y->inside[0][k]) && (!args.x->outside || args.x->inside[0][k]);
    tile[k] = inside ? tile[k] : fill;
  }
}

// Offsets, of the nearest pixels from k on, in elements of so many bytes.
UF_AVX2_INLINE __m256i nearest_offsets(const SampleArgs<float>& args, int k, int64_t bytes) {
  const __m256i stride_y = _mm256_set1_epi32(static_cast<int32_t>(args.stride_y * bytes));
  const __m256i stride_x = _mm256_set1_epi32(static_cast<int32_t>(args.stride_x * bytes));
  return offsets(load_index(args.y->index[0] + k), stride_y, load_index(args.x->index[0] + k), stride_x);
}

// Pixels of one or two bytes: gathers the four bytes that begin there, or, at the end of the plane, that end there.
template <class T>
UF_AVX2 void nearest_small(const SampleArgs<float>& args) {
  const int32_t last = static_cast<int32_t>(args.extent * sizeof(T) + sizeof(T)) - 4;  // byte
  if (last < 0) return args.plain(args);
  alignas(64) T tile[kBlock];
  const __m256i limit = _mm256_set1_epi32(last), mask = _mm256_set1_epi32(sizeof(T) == 1 ? 0xff : 0xffff);
  for (int k = 0; k < kBlock; k += kStep) {
    const __m256i wished = nearest_offsets(args, k, sizeof(T));
    const __m256i from = _mm256_min_epi32(wished, limit);
    const __m256i shift = _mm256_slli_epi32(_mm256_sub_epi32(wished, from), 3);
    const __m256i four = _mm256_i32gather_epi32(static_cast<const int*>(args.plane), from, 1);
    const __m256i pixel = _mm256_and_si256(_mm256_srlv_epi32(four, shift), mask);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(pixel), _mm256_extracti128_si256(pixel, 1));
    if constexpr (sizeof(T) == 2) {
      _mm_store_si128(reinterpret_cast<__m128i*>(tile + k), words);
    } else {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(tile + k), _mm_packus_epi16(words, words));
    }
  }
  if (args.y->outside || args.x->outside) fill_outside(args, tile);
  store_lanes(args, tile);
}

UF_AVX2 void nearest_4(const SampleArgs<float>& args) {
  alignas(64) uint32_t tile[kBlock];
  for (int k = 0; k < kBlock; k += kStep) {
    const __m256i at = nearest_offsets(args, k, 1);
    _mm256_store_si256(reinterpret_cast<__m256i*>(tile + k),
                       _mm256_i32gather_epi32(static_cast<const int*>(args.plane), at, 4));
  }
  if (args.y->outside || args.x->outside) fill_outside(args, tile);
  store_lanes(args, tile);
}

UF_AVX2 void nearest_8(const SampleArgs<float>& args) {
  alignas(64) uint64_t tile[kBlock];
  const long long* plane = static_cast<const long long*>(args.plane);
  for (int k = 0; k < kBlock; k += kStep) {
    const __m256i at = nearest_offsets(args, k, 1);
    _mm256_store_si256(reinterpret_cast<__m256i*>(tile + k),
                       _mm256_i32gather_epi64(plane, _mm256_castsi256_si128(at), 8));
    _mm256_store_si256(reinterpret_cast<__m256i*>(tile + k + 4),
                       _mm256_i32gather_epi64(plane, _mm256_extracti128_si256(at, 1), 8));
  }
  if (args.y->outside || args.x->outside) fill_outside(args, tile);
  store_lanes(args, tile);
}

struct Pair {
  __m256 first, second;
};

// The low and the high part of each lane, of T's size, as numbers.
template <class T>
UF_AVX2_INLINE Pair halves(__m256i both) {
  constexpr int bits = 8 * static_cast<int>(sizeof(T));
  const __m256i high = _mm256_slli_epi32(both, 32 - 2 * bits), low = _mm256_slli_epi32(both, 32 - bits);
  if constexpr (std::is_signed_v<T>) {
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(low, 32 - bits)), _mm256_cvtepi32_ps(_mm256_srai_epi32(high, 32 - bits))};
  } else {
    return {_mm256_cvtepi32_ps(_mm256_srli_epi32(low, 32 - bits)), _mm256_cvtepi32_ps(_mm256_srli_epi32(high, 32 - bits))};
  }
}

// Two elements that lie side by side, for eight pixels at these offsets. Single bytes are read four at a time: those that
// begin there, or, at the end of the plane, that end there.
template <class T>
UF_AVX2_INLINE Pair load_pair(const SampleArgs<float>& args, __m256i at) {
  const void* plane = args.plane;
  if constexpr (sizeof(T) == 1) {
    const __m256i from = _mm256_min_epi32(at, _mm256_set1_epi32(static_cast<int32_t>(args.extent) - 3));
    const __m256i shift = _mm256_slli_epi32(_mm256_sub_epi32(at, from), 3);
    return halves<T>(_mm256_srlv_epi32(_mm256_i32gather_epi32(static_cast<const int*>(plane), from, 1), shift));
  } else if constexpr (std::is_integral_v<T>) {
    return halves<T>(_mm256_i32gather_epi32(static_cast<const int*>(plane), at, 2));
  } else if constexpr (sizeof(T) == 4) {
    // pixels 0 1 4 5 and 2 3 6 7, so that the shuffles, which work in halves, give them in order
    const __m256i order = _mm256_permute4x64_epi64(at, _MM_SHUFFLE(3, 1, 2, 0));
    const double* base = static_cast<const double*>(plane);
    const __m256 a = _mm256_castpd_ps(_mm256_i32gather_pd(base, _mm256_castsi256_si128(order), 4));
    const __m256 b = _mm256_castpd_ps(_mm256_i32gather_pd(base, _mm256_extracti128_si256(order, 1), 4));
    return {_mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)), _mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1))};
  } else {
    const __m256i both = _mm256_i32gather_epi32(static_cast<const int*>(plane), at, 2);
    if constexpr (std::is_same_v<T, BFloat16>) {
      return {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)),
              _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
    } else {
      const __m256i low = _mm256_and_si256(both, _mm256_set1_epi32(0xffff)), high = _mm256_srli_epi32(both, 16);
      const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), _MM_SHUFFLE(3, 1, 2, 0));
      return {_mm256_cvtph_ps(_mm256_castsi256_si128(words)), _mm256_cvtph_ps(_mm256_extracti128_si256(words, 1))};
    }
  }
}

UF_AVX2_INLINE void store_pixels(float* out, __m256 value) { _mm256_store_ps(out, value); }
UF_AVX2_INLINE void store_pixels(Half* out, __m256 value) {
  _mm_store_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}
UF_AVX2_INLINE void store_pixels(BFloat16* out, __m256 value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
  _mm_store_si128(reinterpret_cast<__m128i*>(out),
                  _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1)));
}

// Whole numbers, which the packing holds within their range.
template <class T>
UF_AVX2_INLINE void store_pixels(T* out, __m256 value) {
  const __m256i whole = _mm256_cvtps_epi32(_mm256_floor_ps(_mm256_add_ps(value, _mm256_set1_ps(0.5f))));
  const __m128i low = _mm256_castsi256_si128(whole), high = _mm256_extracti128_si256(whole, 1);
  if constexpr (std::is_same_v<T, uint16_t>) {
    _mm_store_si128(reinterpret_cast<__m128i*>(out), _mm_packus_epi32(low, high));
  } else if constexpr (std::is_same_v<T, int16_t>) {
    _mm_store_si128(reinterpret_cast<__m128i*>(out), _mm_packs_epi32(low, high));
  } else {
    const __m128i words = _mm_packs_epi32(low, high);
    const __m128i bytes = std::is_signed_v<T> ? _mm_packs_epi16(words, words) : _mm_packus_epi16(words, words);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), bytes);
  }
}

// Taps side by side.
template <class T>
UF_AVX2_INLINE void linear_consecutive(const SampleArgs<float>& args, T* tile) {
  const __m256i stride = _mm256_set1_epi32(static_cast<int32_t>(args.stride_y));
  for (int k = 0; k < kBlock; k += kStep) {
    const __m256i row = _mm256_mullo_epi32(load_index(args.y->index[0] + k), stride);
    const __m256i at = _mm256_add_epi32(row, load_index(args.x->index[0] + k));
    const Pair upper = load_pair<T>(args, at), lower = load_pair<T>(args, _mm256_add_epi32(at, stride));
    const __m256 x0 = _mm256_load_ps(args.x->weight[0] + k), x1 = _mm256_load_ps(args.x->weight[1] + k);
    const __m256 a = _mm256_fmadd_ps(x1, upper.second, _mm256_mul_ps(x0, upper.first));
    const __m256 b = _mm256_fmadd_ps(x1, lower.second, _mm256_mul_ps(x0, lower.first));
    const __m256 y0 = _mm256_load_ps(args.y->weight[0] + k), y1 = _mm256_load_ps(args.y->weight[1] + k);
    store_pixels(tile + k, _mm256_fmadd_ps(y1, b, _mm256_mul_ps(y0, a)));
  }
}

UF_AVX2_INLINE __m256 all_ones(bool unless, const int32_t* inside) {
  const __m256i set = unless ? _mm256_cmpgt_epi32(load_index(inside), _mm256_setzero_si256()) : _mm256_set1_epi32(-1);
  return _mm256_castsi256_ps(set);
}

// Taps anywhere. The two taps of a pixel are the same column or neighbours in either order, whatever the padding: one pair
// holds both.
template <class T>
UF_AVX2_INLINE void linear_general(const SampleArgs<float>& args, T* tile) {
  AxisTaps<float>&ty = *args.y, &tx = *args.x;
  ty.expand(2);
  tx.expand(2);
  const __m256i stride = _mm256_set1_epi32(static_cast<int32_t>(args.stride_y));
  const __m256i last_pair = _mm256_set1_epi32(args.width - 2);
  const __m256 fill = _mm256_set1_ps(static_cast<float>(args.fill.value));
  for (int k = 0; k < kBlock; k += kStep) {
    const __m256i i0 = load_index(tx.index[0] + k), i1 = load_index(tx.index[1] + k);
    const __m256i column = _mm256_min_epi32(_mm256_min_epi32(i0, i1), last_pair);
    const __m256 first0 = _mm256_castsi256_ps(_mm256_cmpeq_epi32(i0, column));
    const __m256 first1 = _mm256_castsi256_ps(_mm256_cmpeq_epi32(i1, column));
    const __m256 inside0 = all_ones(tx.outside, tx.inside[0] + k), inside1 = all_ones(tx.outside, tx.inside[1] + k);
    const __m256 x0 = _mm256_load_ps(tx.weight[0] + k), x1 = _mm256_load_ps(tx.weight[1] + k);
    __m256 row_value[2];
    for (int t = 0; t < 2; ++t) {
      const __m256i row = _mm256_mullo_epi32(load_index(ty.index[t] + k), stride);
      const Pair pair = load_pair<T>(args, _mm256_add_epi32(row, column));
      const __m256 inside = all_ones(ty.outside, ty.inside[t] + k);
      const __m256 v0 = _mm256_blendv_ps(fill, _mm256_blendv_ps(pair.second, pair.first, first0),
                                         _mm256_and_ps(inside, inside0));
      const __m256 v1 = _mm256_blendv_ps(fill, _mm256_blendv_ps(pair.second, pair.first, first1),
                                         _mm256_and_ps(inside, inside1));
      row_value[t] = _mm256_fmadd_ps(x1, v1, _mm256_mul_ps(x0, v0));
    }
    const __m256 y0 = _mm256_load_ps(ty.weight[0] + k), y1 = _mm256_load_ps(ty.weight[1] + k);
    store_pixels(tile + k, _mm256_fmadd_ps(y1, row_value[1], _mm256_mul_ps(y0, row_value[0])));
  }
}

// Whether the plane has fewer than the four bytes that a gather takes.
template <class T>
bool is_short(const SampleArgs<float>& args) {
  return sizeof(T) == 1 && args.extent < 3;
}

template <class T>
UF_AVX2 void linear(const SampleArgs<float>& args) {
  if (args.stride_x != 1 || args.width < 2 || is_short<T>(args)) return args.plain(args);
  alignas(64) T tile[kBlock];
  if (args.y->consecutive && args.x->consecutive) {
    linear_consecutive(args, tile);
  } else {
    linear_general(args, tile);
  }
  store_lanes(args, tile);
}

template <class T>
UF_AVX2 void cubic(const SampleArgs<float>& args) {
  if (args.stride_x != 1 || !args.y->consecutive || !args.x->consecutive || is_short<T>(args)) return args.plain(args);
  alignas(64) T tile[kBlock];
  const __m256i stride = _mm256_set1_epi32(static_cast<int32_t>(args.stride_y)), two = _mm256_set1_epi32(2);
  for (int k = 0; k < kBlock; k += kStep) {
    __m256i at = _mm256_add_epi32(_mm256_mullo_epi32(load_index(args.y->index[0] + k), stride),
                                  load_index(args.x->index[0] + k));
    __m256 weight[4], sum = _mm256_setzero_ps();
    for (int t = 0; t < 4; ++t) weight[t] = _mm256_load_ps(args.x->weight[t] + k);
    for (int t = 0; t < 4; ++t, at = _mm256_add_epi32(at, stride)) {
      const Pair left = load_pair<T>(args, at), right = load_pair<T>(args, _mm256_add_epi32(at, two));
      __m256 along = _mm256_fmadd_ps(weight[1], left.second, _mm256_mul_ps(weight[0], left.first));
      along = _mm256_fmadd_ps(weight[3], right.second, _mm256_fmadd_ps(weight[2], right.first, along));
      sum = _mm256_fmadd_ps(_mm256_load_ps(args.y->weight[t] + k), along, sum);
    }
    store_pixels(tile + k, sum);
  }
  store_lanes(args, tile);
}

}  // namespace

Sampler<float> avx2_sampler(Interpolation kind, DType type, int64_t element_size) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return nullptr;
  if (kind == Interpolation::kNearest) {
    return element_size == 1   ? nearest_small<uint8_t>
           : element_size == 2 ? nearest_small<uint16_t>
           : element_size == 4 ? nearest_4
                               : nearest_8;
  }
  const bool is_linear = kind == Interpolation::kBilinear;
  return dispatch_interpolated<float>(
      type, [&]<class T>(T) -> Sampler<float> { return is_linear ? linear<T> : cubic<T>; });
}

}  // namespace uf::warp

#else

namespace uf::warp {

Sampler<float> avx2_sampler(Interpolation, DType, int64_t) { return nullptr; }

}  // namespace uf::warp

#endif
