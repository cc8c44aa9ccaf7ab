// Sixteen pixels at a time. Reading is what costs: where the taps of a pixel are neighbours in memory, one gathered element
// holds two of them (two floats in 64 bits, two shorter numbers in 32).
#include "cpu/elastic_strip.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <type_traits>

#include "common/half.h"
#include "common/warp_pixel.h"
#include "common/warp_taps.h"
#include "cpu/elastic_pixels_avx512.h"

namespace uf::warp {
namespace {

constexpr __mmask16 kAll = 0xffff;
constexpr int64_t kRowsAhead = 8;  // the hardware's prefetchers follow no bent path

// Lanes with 0 <= index < n.
UF_AVX512_INLINE __mmask16 inside(__m512i index, int32_t n) {
  return _mm512_cmplt_epu32_mask(index, _mm512_set1_epi32(n));
}

UF_AVX512_INLINE bool all_near(__m512 relative) {
  return _mm512_cmp_ps_mask(_mm512_abs_ps(relative), _mm512_set1_ps(kNear), _CMP_LE_OQ) == kAll;
}

// Whether one reflection brings pixels index and index + 1 into the image.
UF_AVX512_INLINE bool reflects_once(__m512i index, int32_t n) {
  return (_mm512_cmplt_epi32_mask(index, _mm512_set1_epi32(1 - n)) |
          _mm512_cmpge_epi32_mask(index, _mm512_set1_epi32(2 * (n - 1)))) == 0;
}

// The pixel at or before each coordinate along one axis, and how far behind it the coordinate lies. A coordinate beyond
// 32 bits (or a NaN) gives a pixel that is not inside any image, since neither origin nor side exceeds 2^30.
struct Place {
  __m512i whole;
  __m512 rest;
};

UF_AVX512_INLINE Place split(__m512 relative, int32_t origin) {
  const __m512i whole = _mm512_cvt_roundps_epi32(relative, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return {_mm512_add_epi32(whole, _mm512_set1_epi32(origin)),
          _mm512_sub_ps(relative, _mm512_cvtepi32_ps(whole))};
}

// As block_start, for eight blocks of a row along one axis.
struct BlockStarts {
  alignas(32) int32_t origin[kStripBlocks];
  alignas(32) float offset[kStripBlocks];
};

UF_AVX512_INLINE void start_blocks(const StripRow<float>& row, int axis, BlockStarts& out) {
  const double* m = row.matrix + 3 * axis;
  const __m512d number = _mm512_setr_pd(0, 1, 2, 3, 4, 5, 6, 7);
  const __m512d x = _mm512_fmadd_pd(number, _mm512_set1_pd(kBlock),
                                    _mm512_set1_pd(static_cast<double>(row.first * kBlock) - row.centre[1]));
  const __m512d along_y = _mm512_set1_pd(m[0] * (static_cast<double>(row.y) - row.centre[0]));
  const __m512d linear = _mm512_fmadd_pd(_mm512_set1_pd(m[1]), x, along_y);
  const __m512d base = _mm512_add_pd(_mm512_add_pd(_mm512_set1_pd(row.centre[axis]), linear), _mm512_set1_pd(m[2]));
  const __mmask8 close = _mm512_cmp_pd_mask(_mm512_abs_pd(base), _mm512_set1_pd(kFarthest), _CMP_LE_OQ);
  const __m512d origin = _mm512_maskz_roundscale_pd(close, base, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  _mm256_store_si256(reinterpret_cast<__m256i*>(out.origin), _mm512_cvtpd_epi32(origin));
  _mm256_store_ps(out.offset, _mm512_cvtpd_ps(_mm512_sub_pd(base, origin)));
}

UF_AVX512 uint32_t locate(const WarpFrame& frame, const StripRow<float>& row, Places& out) {
  constexpr int groups = kBlock / kGroup;
  const int32_t height = static_cast<int32_t>(frame.height), width = static_cast<int32_t>(frame.width);
  const int32_t rows = height < 2 ? 0 : height - 2, columns = width - 1;
  BlockStarts start_y, start_x;
  start_blocks(row, 0, start_y);
  start_blocks(row, 1, start_x);
  const __m512 step_y = _mm512_set1_ps(static_cast<float>(row.matrix[1]));
  const __m512 step_x = _mm512_set1_ps(static_cast<float>(row.matrix[4]));
  uint32_t placed = 0;
  for (int b = 0; b < row.count; ++b) {
    const BlockTable& table = row.table[b];
    const float *control_y = row.control + table.first, *control_x = control_y + row.grid_width;
    const float* weights = row.weights + table.weights;
    __m512 uy[groups], ux[groups];
    for (int g = 0; g < groups; ++g) uy[g] = ux[g] = _mm512_setzero_ps();
    for (int64_t j = 0; j < table.count; ++j, weights += kBlock) {
      const __m512 dy = _mm512_set1_ps(control_y[j]), dx = _mm512_set1_ps(control_x[j]);
      for (int g = 0; g < groups; ++g) {
        const __m512 w = _mm512_loadu_ps(weights + g * kGroup);
        uy[g] = _mm512_fmadd_ps(dy, w, uy[g]);
        ux[g] = _mm512_fmadd_ps(dx, w, ux[g]);
      }
    }
    const __m512 offset_y = _mm512_set1_ps(start_y.offset[b]), offset_x = _mm512_set1_ps(start_x.offset[b]);
    __m512 count = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    bool near = true;
    for (int g = 0; g < groups; ++g) {
      const int k = b * kBlock + g * kGroup;
      const __m512 qy = _mm512_add_ps(offset_y, _mm512_fmadd_ps(step_y, count, uy[g]));
      const __m512 qx = _mm512_add_ps(offset_x, _mm512_fmadd_ps(step_x, count, ux[g]));
      count = _mm512_add_ps(count, _mm512_set1_ps(kGroup));
      const Place y = split(qy, start_y.origin[b]), x = split(qx, start_x.origin[b]);
      _mm512_store_si512(out.whole_y + k, y.whole);
      _mm512_store_si512(out.whole_x + k, x.whole);
      _mm512_store_ps(out.rest_y + k, y.rest);
      _mm512_store_ps(out.rest_x + k, x.rest);
      const bool interior = (inside(y.whole, rows) & inside(x.whole, columns)) == kAll;
      out.interior[k / kGroup] = interior;
      if (!interior) {
        near = near && all_near(qy) && all_near(qx) &&
               (frame.padding != Padding::kMirror || (reflects_once(y.whole, height) && reflects_once(x.whole, width)));
      }
    }
    placed |= static_cast<uint32_t>(near) << b;
  }
  return placed;
}

// Sixteen pixels of a located strip.
UF_AVX512_INLINE Place load_place(const int32_t* whole, const float* rest, int k) {
  return {_mm512_load_si512(whole + k), _mm512_load_ps(rest + k)};
}

UF_AVX512_INLINE __m512i nearest_index(Place at) {
  const __mmask16 up = _mm512_cmp_ps_mask(at.rest, _mm512_set1_ps(0.5f), _CMP_GE_OQ);
  return _mm512_mask_add_epi32(at.whole, up, at.whole, _mm512_set1_epi32(1));
}

// As border_index.
UF_AVX512_INLINE __m512i border(Padding padding, __m512i index, int32_t n) {
  const __m512i last = _mm512_set1_epi32(n - 1);
  if (padding == Padding::kMirror) {
    return _mm512_sub_epi32(last, _mm512_abs_epi32(_mm512_sub_epi32(last, _mm512_abs_epi32(index))));
  }
  return _mm512_min_epi32(_mm512_max_epi32(index, _mm512_setzero_si512()), last);
}

// Of the pixels k ... k + 15, those that are wanted.
UF_AVX512_INLINE __mmask16 wanted(const StripArgs& args, int k) {
  if (args.begin <= k && k + kGroup <= args.end) return kAll;
  const int skip = args.begin > k ? args.begin - k : 0, beyond = k + kGroup > args.end ? k + kGroup - args.end : 0;
  return static_cast<__mmask16>((0xffff << skip) & (0xffff >> beyond));
}

// a + t (b - a)
UF_AVX512_INLINE __m512 between(__m512 a, __m512 b, __m512 t) { return _mm512_fmadd_ps(t, _mm512_sub_ps(b, a), a); }

// Goes over the channels at pixel k of the strip.
template <class T>
struct Channel {
  const T* plane;
  T* out;

  UF_AVX512_INLINE Channel(const StripArgs& args, int k)
      : plane(static_cast<const T*>(args.plane)), out(static_cast<T*>(args.out) + (k - args.begin)) {}
  UF_AVX512_INLINE void next(const StripArgs& args) {
    plane = reinterpret_cast<const T*>(reinterpret_cast<const char*>(plane) + args.in_channel);
    out = reinterpret_cast<T*>(reinterpret_cast<char*>(out) + args.out_channel);
  }
};

// Sixteen pixels, some of whose taps lie outside the image. The two taps of a pixel along x are the same column or
// neighbours in either order, whatever the padding: one pair holds both.
template <class T>
UF_AVX512_INLINE void linear_border(const StripArgs& args, int k, Place y, Place x) {
  const bool zeros = args.padding == Padding::kZeros;
  const __m512i stride = _mm512_set1_epi32(static_cast<int32_t>(args.stride_y)), one = _mm512_set1_epi32(1);
  const __m512i wished_y[2] = {y.whole, _mm512_add_epi32(y.whole, one)};
  const __m512i wished_x[2] = {x.whole, _mm512_add_epi32(x.whole, one)};
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
  const __mmask16 lanes = wanted(args, k);
  Channel<T> channel(args, k);
  for (int64_t c = 0; c < args.channels; ++c, channel.next(args)) {
    __m512 row[2];
    for (int t = 0; t < 2; ++t) {
      const Pair pair = load_pair(channel.plane, args.extent, at[t]);
      __m512 tap[2];
      for (int u = 0; u < 2; ++u) {
        tap[u] = _mm512_mask_blend_ps(second[u], pair.first, pair.second);
        tap[u] = _mm512_mask_blend_ps(in_y[t] & in_x[u], fill, tap[u]);
      }
      row[t] = between(tap[0], tap[1], x.rest);
    }
    store_pixels(channel.out, lanes, between(row[0], row[1], y.rest));
  }
}

template <class T>
UF_AVX512 void linear(const StripArgs& in) {
  const StripArgs args = in;  // a copy: no store changes it
  const Places& places = *args.places;
  const __m512i stride = _mm512_set1_epi32(static_cast<int32_t>(args.stride_y));
  for (int k = args.begin / kGroup * kGroup; k < args.end; k += kGroup) {
    const Place y = load_place(places.whole_y, places.rest_y, k), x = load_place(places.whole_x, places.rest_x, k);
    if (!places.interior[k / kGroup]) {
      linear_border<T>(args, k, y, x);
      continue;
    }
    const __m512i at = _mm512_add_epi32(_mm512_mullo_epi32(y.whole, stride), x.whole);
    const __m512i below_at = _mm512_add_epi32(at, stride);
    const __mmask16 lanes = wanted(args, k);
    const int64_t ahead = (_mm_cvtsi128_si32(_mm512_castsi512_si128(at)) + kRowsAhead * args.stride_y) * int64_t{sizeof(T)};
    Channel<T> channel(args, k);
    for (int64_t c = 0; c < args.channels; ++c, channel.next(args)) {
      prefetch(channel.plane, ahead);
      const Pair upper = load_pair(channel.plane, args.extent, at);
      const Pair lower = load_pair(channel.plane, args.extent, below_at);
      const __m512 above = between(upper.first, upper.second, x.rest);
      const __m512 below = between(lower.first, lower.second, x.rest);
      store_pixels(channel.out, lanes, between(above, below, y.rest));
    }
  }
}

// Sixteen pixels in the low bytes of each lane.
UF_AVX512_INLINE void store_low(uint8_t* out, __mmask16 lanes, __m512i pixel) {
  _mm_mask_storeu_epi8(out, lanes, _mm512_cvtepi32_epi8(pixel));
}
UF_AVX512_INLINE void store_low(uint16_t* out, __mmask16 lanes, __m512i pixel) {
  _mm256_mask_storeu_epi16(out, lanes, _mm512_cvtepi32_epi16(pixel));
}
UF_AVX512_INLINE void store_low(uint32_t* out, __mmask16 lanes, __m512i pixel) {
  _mm512_mask_storeu_epi32(out, lanes, pixel);
}

// Pixels of one to four bytes: the four bytes that begin there. AtEnd: or, at the end of the plane, that end there.
template <bool AtEnd, class T>
UF_AVX512_INLINE void copy_pixels(const StripArgs& args, const T* plane, __m512i at, __mmask16 in, T* out,
                                  __mmask16 lanes) {
  const __m512i fill = _mm512_set1_epi32(static_cast<int32_t>(args.fill.bits));
  if constexpr (AtEnd && sizeof(T) < 4) {
    const __m512i byte = _mm512_mullo_epi32(at, _mm512_set1_epi32(sizeof(T)));
    const __m512i last = _mm512_set1_epi32(static_cast<int32_t>((args.extent + 1) * sizeof(T)) - 4);
    const __m512i from = _mm512_min_epi32(byte, last), shift = _mm512_slli_epi32(_mm512_sub_epi32(byte, from), 3);
    const __m512i pixel = _mm512_srlv_epi32(_mm512_i32gather_epi32(from, plane, 1), shift);
    store_low(out, lanes, _mm512_mask_blend_epi32(in, fill, pixel));
  } else {
    store_low(out, lanes, _mm512_mask_i32gather_epi32(fill, in, at, plane, sizeof(T)));
  }
}

template <bool AtEnd>
UF_AVX512_INLINE void copy_pixels(const StripArgs& args, const uint64_t* plane, __m512i at, __mmask16 in, uint64_t* out,
                                  __mmask16 lanes) {
  const __m512i fill = _mm512_set1_epi64(static_cast<int64_t>(args.fill.bits));
  const __mmask8 in_low = static_cast<__mmask8>(in), in_high = static_cast<__mmask8>(in >> 8);
  const __m512i low = _mm512_mask_i32gather_epi64(fill, in_low, _mm512_castsi512_si256(at), plane, 8);
  const __m512i high = _mm512_mask_i32gather_epi64(fill, in_high, _mm512_extracti64x4_epi64(at, 1), plane, 8);
  _mm512_mask_storeu_epi64(out, static_cast<__mmask8>(lanes), low);
  _mm512_mask_storeu_epi64(out + 8, static_cast<__mmask8>(lanes >> 8), high);
}

template <class T>
UF_AVX512 void nearest(const StripArgs& in) {
  const StripArgs args = in;  // a copy: no store changes it
  const Places& places = *args.places;
  const __m512i stride_y = _mm512_set1_epi32(static_cast<int32_t>(args.stride_y));
  const __m512i stride_x = _mm512_set1_epi32(static_cast<int32_t>(args.stride_x));
  for (int k = args.begin / kGroup * kGroup; k < args.end; k += kGroup) {
    __m512i y = nearest_index(load_place(places.whole_y, places.rest_y, k));
    __m512i x = nearest_index(load_place(places.whole_x, places.rest_x, k));
    __mmask16 in_image = kAll;
    const bool interior = places.interior[k / kGroup];
    if (!interior) {
      if (args.padding == Padding::kZeros) in_image = inside(y, args.height) & inside(x, args.width);
      y = border(args.padding, y, args.height);
      x = border(args.padding, x, args.width);
    }
    if (args.stride_x != 1) x = _mm512_mullo_epi32(x, stride_x);
    const __m512i at = _mm512_add_epi32(_mm512_mullo_epi32(y, stride_y), x);
    const __mmask16 lanes = wanted(args, k);
    Channel<T> channel(args, k);
    for (int64_t c = 0; c < args.channels; ++c, channel.next(args)) {
      if (interior) {
        copy_pixels<false>(args, channel.plane, at, kAll, channel.out, lanes);
      } else {
        copy_pixels<true>(args, channel.plane, at, in_image, channel.out, lanes);
      }
    }
  }
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("f16c");
}

}  // namespace

Locator avx512_locator() { return has_avx512() ? locate : nullptr; }

StripSampler avx512_sampler(const WarpFrame& frame, const WarpImage& image, int64_t extent) {
  const int64_t size = image.element_size, last_byte = (extent + 1) * size;
  if (!has_avx512() || frame.wide || last_byte > kLargestOffset) return nullptr;
  if (image.interpolation == Interpolation::kNearest) {
    if (last_byte < 4 || (size < 4 && image.stride[2] * size < 4)) return nullptr;  // else the row below can be read
    return size == 1 ? nearest<uint8_t> : size == 2 ? nearest<uint16_t> : size == 4 ? nearest<uint32_t> : nearest<uint64_t>;
  }
  if (image.interpolation != Interpolation::kBilinear || image.stride[3] != 1 || frame.width < 2) return nullptr;
  if (last_byte < 4) return nullptr;
  return dispatch_interpolated<float>(image.type, []<class T>(T) -> StripSampler { return linear<T>; });
}

}  // namespace uf::warp

#else

namespace uf::warp {

Locator avx512_locator() { return nullptr; }
StripSampler avx512_sampler(const WarpFrame&, const WarpImage&, int64_t) { return nullptr; }

}  // namespace uf::warp

#endif
