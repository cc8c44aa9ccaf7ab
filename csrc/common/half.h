// float16 and bfloat16 as bits, converted to and from float without branches, so that a loop over pixels becomes vector code
// on every compiler. Conversion to the narrow types rounds to nearest, ties to even.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "common/macros.h"

namespace uf {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// GPUs have instructions for what takes a dozen here; they differ in the bits of a NaN only.
#if defined(__CUDA_ARCH__)
UF_HD_INLINE float to_float(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

UF_HD_INLINE Half to_half(float value) {
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}
#else
UF_HD_INLINE float to_float(Half value) {
  // exponent and mantissa move into place; the product fixes the bias and makes subnormal numbers normal
  const uint32_t moved = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>(moved) * 0x1p112f);
  bits |= (value.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;  // infinity and NaN
  return std::bit_cast<float>(bits | static_cast<uint32_t>(value.bits & 0x8000u) << 16);
}

UF_HD_INLINE Half to_half(float value) {
  const uint32_t all = std::bit_cast<uint32_t>(value), bits = all & 0x7fffffffu;
  const uint32_t normal = (bits + 0xc8000fffu + ((bits >> 13) & 1u)) >> 13;
  // adding 0.5 leaves the subnormal result, rounded, in the low bits
  const uint32_t tiny = std::bit_cast<uint32_t>(std::bit_cast<float>(bits) + 0.5f) - 0x3f000000u;
  const uint32_t large = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t half = bits < 0x38800000u ? tiny : (bits >= 0x47800000u ? large : normal);
  return {static_cast<uint16_t>(half | (all >> 16 & 0x8000u))};
}
#endif

UF_HD_INLINE float to_float(BFloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

UF_HD_INLINE BFloat16 to_bfloat16(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x40u) : rounded)};
#endif
}

// The type that arithmetic on an element is done in, and back.
UF_HD_INLINE float widen(Half value) { return to_float(value); }
UF_HD_INLINE float widen(BFloat16 value) { return to_float(value); }
UF_HD_INLINE float widen(float value) { return value; }
UF_HD_INLINE double widen(double value) { return value; }

template <class T, class A>
UF_HD_INLINE T narrow(A value) {
  if constexpr (std::is_same_v<T, Half>) {
    return to_half(static_cast<float>(value));
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return to_bfloat16(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

}  // namespace uf
