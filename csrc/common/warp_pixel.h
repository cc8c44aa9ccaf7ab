// Pixels as the numbers that are interpolated, and back. Whole numbers of 8 and 16 bits, as images are stored, are exact in
// float32; what is interpolated between them is rounded, halves up as in SciPy, and held within their range, which the
// negative weights of a cubic kernel can leave.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/dtype.h"
#include "common/half.h"
#include "common/macros.h"

namespace uf::warp {

// f(T{}) with the type of an image's pixels that are interpolated with sums of type A.
template <class A, class F>
auto dispatch_interpolated(DType type, const F& f) {
  if constexpr (sizeof(A) == sizeof(double)) {
    if (type == DType::kFloat64) return f(double{});
  }
  return dispatch<Half, BFloat16, uint8_t, int8_t, uint16_t, int16_t, float>(type, f);
}

constexpr bool can_interpolate(DType type) {
  return is_floating(type) || type == DType::kUInt8 || type == DType::kInt8 || type == DType::kUInt16 ||
         type == DType::kInt16;
}

template <class A, class T>
UF_HD_INLINE A number_of(T pixel) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<A>(pixel);
  } else {
    return static_cast<A>(widen(pixel));
  }
}

template <class T, class A>
UF_HD_INLINE T pixel_of(A value) {
  if constexpr (std::is_integral_v<T>) {
    constexpr A low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
    const A whole = std::floor(value + A(0.5));
    return static_cast<T>(static_cast<int32_t>(!(whole >= low) ? low : (whole > high ? high : whole)));
  } else {
    return narrow<T>(value);
  }
}

}  // namespace uf::warp
