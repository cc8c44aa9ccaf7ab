// ReLU and 2x2 max-pooling on the bits of floating-point numbers, and the byte that remembers a window for the backward.
//
// Numbers that are not negative are ordered as their bits are, with NaN above infinity: after a ReLU the maximum of a
// window is an integer maximum, NaN is passed on, and "the gradient passes" means "the bits are not zero". As in torch,
// the first of equal maxima gets the gradient of the pool.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "common/half.h"
#include "common/macros.h"

namespace uf {

UF_HD_INLINE uint16_t bits_of(Half value) { return value.bits; }
UF_HD_INLINE uint16_t bits_of(BFloat16 value) { return value.bits; }
UF_HD_INLINE uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
UF_HD_INLINE uint64_t bits_of(double value) { return std::bit_cast<uint64_t>(value); }

template <class T>
using Bits = decltype(bits_of(T{}));

template <class T>
UF_HD_INLINE constexpr Bits<T> infinity_bits() {
  if constexpr (std::is_same_v<T, Half>) return 0x7c00;
  if constexpr (std::is_same_v<T, BFloat16>) return 0x7f80;
  if constexpr (std::is_same_v<T, float>) return 0x7f800000;
  if constexpr (std::is_same_v<T, double>) return 0x7ff0000000000000;
}

// ReLU, as bits. NaN stays NaN; its sign goes, so that it is above all numbers.
template <class T>
UF_HD_INLINE Bits<T> rectified_bits(T value) {
  using U = Bits<T>;
  const U bits = bits_of(value), magnitude = bits & static_cast<U>(static_cast<U>(~U(0)) >> 1);
  return bits == magnitude || magnitude > infinity_bits<T>() ? magnitude : U(0);
}

// The bits of a gradient where the output of a ReLU, which is positive, NaN or 0 of either sign, is not 0.
template <class T>
UF_HD_INLINE Bits<T> where_on(T out, T grad) {
  using U = Bits<T>;
  return static_cast<U>(bits_of(grad) & (static_cast<U>(bits_of(out) << 1) ? static_cast<U>(~U(0)) : U(0)));
}

// The window's pixels are numbered 2 * dy + dx. Pixels that lie outside the image count as 0.
template <class U>
struct PoolWindow {
  U largest;
  U code;  // fits a byte: bit q is set where pixel q is positive; bits 4 and 5 number the pixel that is the maximum
};

template <class U>
UF_HD_INLINE PoolWindow<U> pool_window(U p0, U p1, U p2, U p3) {
  U largest = p0, argmax = 0;
  argmax = p1 > largest ? U(1 << 4) : argmax;
  largest = p1 > largest ? p1 : largest;
  argmax = p2 > largest ? U(2 << 4) : argmax;
  largest = p2 > largest ? p2 : largest;
  argmax = p3 > largest ? U(3 << 4) : argmax;
  largest = p3 > largest ? p3 : largest;
  const U positive = static_cast<U>((p0 ? U(1) : U(0)) | (p1 ? U(2) : U(0)) | (p2 ? U(4) : U(0)) | (p3 ? U(8) : U(0)));
  return {largest, static_cast<U>(positive | argmax)};
}

// value where all bits of the mask are set, +0 where none is. Masks are integers throughout: a conversion to bool is what
// the vectoriser of GCC gives up on.
template <class A>
UF_HD_INLINE A masked(Bits<A> mask, A value) {
  return std::bit_cast<A>(static_cast<Bits<A>>(bits_of(value) & mask));
}

// The gradient of pixel q from those of the pooled maximum and of the pixel's copy in the skip.
template <class A>
UF_HD_INLINE A unpool(Bits<A> code, Bits<A> q, A pooled, A skip) {
  using U = Bits<A>;
  const U is_maximum = (code >> 4) == q ? static_cast<U>(~U(0)) : U(0);
  const U is_positive = U(0) - (code >> q & U(1));
  return masked(is_positive, skip + masked(is_maximum, pooled));
}

}  // namespace uf
