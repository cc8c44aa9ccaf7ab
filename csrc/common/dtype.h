// The dtypes of tensors and arrays, the C++ types of their elements, and the one step from the first to the second.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/macros.h"

namespace uf {

enum class DType { kFloat64, kFloat32, kFloat16, kBFloat16, kUInt8, kInt8, kUInt16, kInt16, kInt32, kInt64, kOther };

constexpr bool is_floating(DType type) {
  return type == DType::kFloat64 || type == DType::kFloat32 || type == DType::kFloat16 || type == DType::kBFloat16;
}

// Bytes; 0 for kOther.
constexpr int64_t element_size(DType type) {
  switch (type) {
    case DType::kUInt8:
    case DType::kInt8: return 1;
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kUInt16:
    case DType::kInt16: return 2;
    case DType::kFloat32:
    case DType::kInt32: return 4;
    case DType::kFloat64:
    case DType::kInt64: return 8;
    default: return 0;
  }
}

template <class T>
inline constexpr DType kDTypeOf = DType::kOther;
template <>
inline constexpr DType kDTypeOf<double> = DType::kFloat64;
template <>
inline constexpr DType kDTypeOf<float> = DType::kFloat32;
template <>
inline constexpr DType kDTypeOf<Half> = DType::kFloat16;
template <>
inline constexpr DType kDTypeOf<BFloat16> = DType::kBFloat16;
template <>
inline constexpr DType kDTypeOf<uint8_t> = DType::kUInt8;
template <>
inline constexpr DType kDTypeOf<int8_t> = DType::kInt8;
template <>
inline constexpr DType kDTypeOf<uint16_t> = DType::kUInt16;
template <>
inline constexpr DType kDTypeOf<int16_t> = DType::kInt16;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::kInt32;
template <>
inline constexpr DType kDTypeOf<int64_t> = DType::kInt64;

// The type that arithmetic on an element is done in; that of sums, biases and losses beside tensors of the dtype.
template <class T>
using Wide = decltype(widen(T{}));

constexpr DType wide(DType type) { return type == DType::kFloat64 ? type : DType::kFloat32; }

// f(T{}) with that one of the types which `type` names; with the last of them where it names none, as the bindings have
// refused every other dtype before.
template <class T, class... Rest, class F>
auto dispatch(DType type, const F& f) {
  if constexpr (sizeof...(Rest) > 0) {
    if (type != kDTypeOf<T>) return dispatch<Rest...>(type, f);
  }
  return f(T{});
}

template <class F>
auto dispatch_floating(DType type, const F& f) {
  return dispatch<double, Half, BFloat16, float>(type, f);
}

template <class F>
auto dispatch_integral(DType type, const F& f) {
  return dispatch<uint8_t, int8_t, uint16_t, int16_t, int32_t, int64_t>(type, f);
}

// f(U{}) with the unsigned integer of so many bytes, for elements that are only moved or compared with zero.
template <class F>
auto dispatch_bytes(int64_t bytes, const F& f) {
  if (bytes == 1) return f(uint8_t{});
  if (bytes == 2) return f(uint16_t{});
  if (bytes == 4) return f(uint32_t{});
  return f(uint64_t{});
}

}  // namespace uf
