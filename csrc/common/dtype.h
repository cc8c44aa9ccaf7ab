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
#define UF_DTYPE_OF(T, dtype) \
  template <>                 \
  inline constexpr DType kDTypeOf<T> = DType::dtype
UF_DTYPE_OF(double, kFloat64);
UF_DTYPE_OF(float, kFloat32);
UF_DTYPE_OF(Half, kFloat16);
UF_DTYPE_OF(BFloat16, kBFloat16);
UF_DTYPE_OF(uint8_t, kUInt8);
UF_DTYPE_OF(int8_t, kInt8);
UF_DTYPE_OF(uint16_t, kUInt16);
UF_DTYPE_OF(int16_t, kInt16);
UF_DTYPE_OF(int32_t, kInt32);
UF_DTYPE_OF(int64_t, kInt64);
#undef UF_DTYPE_OF

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
