#include "cpu/elastic_sample.h"

#include <cstring>

#include "common/half.h"
#include "common/warp_pixel.h"

namespace uf::warp {
namespace {

// How the taps of a block lie: side by side; anywhere in the image; anywhere, some replaced by the fill value.
enum class Taps { kConsecutive, kInside, kFilled };

// T: element, A: type of sums, Offset: of an element inside one plane.
template <Taps Where, class T, class A, class Offset>
struct Reader {
  const T* plane;
  Offset stride_y, stride_x;
  const AxisTaps<A>* y;
  const AxisTaps<A>* x;

  explicit UF_INLINE Reader(const SampleArgs<A>& args)
      : plane(static_cast<const T*>(args.plane)),
        stride_y(static_cast<Offset>(args.stride_y)),
        stride_x(static_cast<Offset>(args.stride_x)),
        y(args.y),
        x(args.x) {}

  static UF_INLINE Offset index(const AxisTaps<A>* axis, int t, int k) {
    return static_cast<Offset>(Where == Taps::kConsecutive ? axis->index[0][k] + t : axis->index[t][k]);
  }
  UF_INLINE T at(int ty, int tx, int k) const {
    return plane[index(y, ty, k) * stride_y + index(x, tx, k) * stride_x];
  }
  UF_INLINE bool inside(int ty, int tx, int k) const {
    return ((y->outside ? y->inside[ty][k] : 1) & (x->outside ? x->inside[tx][k] : 1)) != 0;
  }
  // As the type of sums.
  UF_INLINE A value(int ty, int tx, int k, A fill) const {
    const A v = number_of<A>(at(ty, tx, k));
    return Where != Taps::kFilled || inside(ty, tx, k) ? v : fill;
  }
};

// The pixels of a block before they are stored. A place of its own tells the compiler that no store changes what the
// next pixel reads.
template <class T>
struct Tile {
  alignas(64) T pixel[kBlock];

  template <class A>
  UF_INLINE void store(const SampleArgs<A>& args) const {
    if (args.lanes == kBlock) {
      std::memcpy(args.out, pixel, sizeof pixel);
    } else {
      std::memcpy(args.out, pixel + args.first_lane, static_cast<size_t>(args.lanes) * sizeof(T));
    }
  }
};

template <Taps Where, class T, class A, class Offset>
UF_INLINE void sample_nearest(const SampleArgs<A>& args) {
  const Reader<Where, T, A, Offset> read(args);
  Tile<T> out;
  for (int k = 0; k < kBlock; ++k) out.pixel[k] = read.at(0, 0, k);
  if constexpr (Where == Taps::kFilled) {
    const T fill = static_cast<T>(args.fill.bits);
    for (int k = 0; k < kBlock; ++k) out.pixel[k] = read.inside(0, 0, k) ? out.pixel[k] : fill;
  }
  out.store(args);
}

template <Taps Where, class T, class A, class Offset>
UF_INLINE void sample_linear(const SampleArgs<A>& args) {
  const Reader<Where, T, A, Offset> read(args);
  const A fill = static_cast<A>(args.fill.value);
  Tile<T> out;
  for (int k = 0; k < kBlock; ++k) {
    const A x0 = read.x->weight[0][k], x1 = read.x->weight[1][k];
    const A upper = x0 * read.value(0, 0, k, fill) + x1 * read.value(0, 1, k, fill);
    const A lower = x0 * read.value(1, 0, k, fill) + x1 * read.value(1, 1, k, fill);
    out.pixel[k] = pixel_of<T>(read.y->weight[0][k] * upper + read.y->weight[1][k] * lower);
  }
  out.store(args);
}

template <Taps Where, class T, class A, class Offset>
UF_INLINE void sample_cubic(const SampleArgs<A>& args) {
  const Reader<Where, T, A, Offset> read(args);
  const A fill = static_cast<A>(args.fill.value);
  Tile<A> sum{};
  for (int ty = 0; ty < 4; ++ty) {
    for (int k = 0; k < kBlock; ++k) {
      A along = read.x->weight[0][k] * read.value(ty, 0, k, fill);
      along += read.x->weight[1][k] * read.value(ty, 1, k, fill);
      along += read.x->weight[2][k] * read.value(ty, 2, k, fill);
      along += read.x->weight[3][k] * read.value(ty, 3, k, fill);
      sum.pixel[k] += read.y->weight[ty][k] * along;
    }
  }
  Tile<T> out;
  for (int k = 0; k < kBlock; ++k) out.pixel[k] = pixel_of<T>(sum.pixel[k]);
  out.store(args);
}

template <Interpolation Kind, Taps Where, class T, class A, class Offset>
UF_INLINE void sample_where(const SampleArgs<A>& args) {
  if constexpr (Kind == Interpolation::kNearest) {
    sample_nearest<Where, T, A, Offset>(args);
  } else if constexpr (Kind == Interpolation::kBilinear) {
    sample_linear<Where, T, A, Offset>(args);
  } else {
    sample_cubic<Where, T, A, Offset>(args);
  }
}

template <Interpolation Kind, class T, class A, class Offset>
UF_INLINE void sample(const SampleArgs<A>& args) {
  AxisTaps<A>&y = *args.y, &x = *args.x;
  if (y.outside || x.outside) {
    y.expand(tap_count(Kind));
    x.expand(tap_count(Kind));
    sample_where<Kind, Taps::kFilled, T, A, Offset>(args);
  } else if (y.consecutive && x.consecutive) {
    sample_where<Kind, Taps::kConsecutive, T, A, Offset>(args);
  } else {
    y.expand(tap_count(Kind));
    x.expand(tap_count(Kind));
    sample_where<Kind, Taps::kInside, T, A, Offset>(args);
  }
}

// The common cases, compiled for every instruction set: float32 sums, 32-bit offsets.
#define UF_SAMPLER(name, kind, type) \
  UF_MULTIVERSION void name(const SampleArgs<float>& args) { sample<Interpolation::kind, type, float, int32_t>(args); }
UF_SAMPLER(nearest_8, kNearest, uint8_t)
UF_SAMPLER(nearest_16, kNearest, uint16_t)
UF_SAMPLER(nearest_32, kNearest, uint32_t)
UF_SAMPLER(nearest_64, kNearest, uint64_t)
UF_SAMPLER(linear_float, kBilinear, float)
UF_SAMPLER(linear_half, kBilinear, Half)
UF_SAMPLER(linear_bfloat16, kBilinear, BFloat16)
UF_SAMPLER(linear_uint8, kBilinear, uint8_t)
UF_SAMPLER(linear_int8, kBilinear, int8_t)
UF_SAMPLER(linear_uint16, kBilinear, uint16_t)
UF_SAMPLER(linear_int16, kBilinear, int16_t)
UF_SAMPLER(cubic_float, kBicubic, float)
UF_SAMPLER(cubic_half, kBicubic, Half)
UF_SAMPLER(cubic_bfloat16, kBicubic, BFloat16)
UF_SAMPLER(cubic_uint8, kBicubic, uint8_t)
UF_SAMPLER(cubic_int8, kBicubic, int8_t)
UF_SAMPLER(cubic_uint16, kBicubic, uint16_t)
UF_SAMPLER(cubic_int16, kBicubic, int16_t)
#undef UF_SAMPLER

Sampler<float> common_sampler(Interpolation kind, DType type, int64_t size) {
  if (kind == Interpolation::kNearest) {
    return size == 1 ? nearest_8 : (size == 2 ? nearest_16 : (size == 4 ? nearest_32 : nearest_64));
  }
  const bool linear = kind == Interpolation::kBilinear;
  switch (type) {
    case DType::kFloat16: return linear ? linear_half : cubic_half;
    case DType::kBFloat16: return linear ? linear_bfloat16 : cubic_bfloat16;
    case DType::kUInt8: return linear ? linear_uint8 : cubic_uint8;
    case DType::kInt8: return linear ? linear_int8 : cubic_int8;
    case DType::kUInt16: return linear ? linear_uint16 : cubic_uint16;
    case DType::kInt16: return linear ? linear_int16 : cubic_int16;
    default: return linear ? linear_float : cubic_float;
  }
}

template <Interpolation Kind, class A>
Sampler<A> any_interpolated(DType type) {
  return dispatch_interpolated<A>(type, []<class T>(T) -> Sampler<A> { return sample<Kind, T, A, int64_t>; });
}

template <class A>
Sampler<A> any_sampler(Interpolation kind, DType type, int64_t size) {
  if (kind == Interpolation::kBilinear) return any_interpolated<Interpolation::kBilinear, A>(type);
  if (kind == Interpolation::kBicubic) return any_interpolated<Interpolation::kBicubic, A>(type);
  return dispatch_bytes(
      size, []<class U>(U) -> Sampler<A> { return sample<Interpolation::kNearest, U, A, int64_t>; });
}

}  // namespace

template <>
Sampler<float> plain_sampler<float>(Interpolation kind, DType type, int64_t element_size, int64_t extent) {
  return extent > kLargestOffset ? any_sampler<float>(kind, type, element_size)
                                 : common_sampler(kind, type, element_size);
}
template <>
Sampler<double> plain_sampler<double>(Interpolation kind, DType type, int64_t element_size, int64_t) {
  return any_sampler<double>(kind, type, element_size);
}

}  // namespace uf::warp
