// Division by a number that is known before the loop, as one multiplication and a shift: an index is taken apart into
// coordinates for every 16 bytes moved, which a hardware division would make slower than the memory.
//
// For 1 <= d < 2^31 take s = ceil(log2 d) and m = ceil(2^(31+s) / d) < 2^32. Then n / d = (n * m) >> (31 + s), rounded
// down, for all n < 2^31 (Granlund and Montgomery, "Division by invariant integers using multiplication", 1994).
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace uf {

template <class Index>
struct Divide {  // 64-bit indices: rare and huge, so the plain division will do
  Index divisor = 1;

  Divide() = default;
  explicit Divide(int64_t d) : divisor(static_cast<Index>(d)) {}
  UF_HD_INLINE Index operator()(Index n) const { return n / divisor; }
};

template <>
struct Divide<uint32_t> {
  uint32_t divisor = 1, multiplier = 1u << 31, shift = 31;

  Divide() = default;
  explicit Divide(int64_t d) : divisor(static_cast<uint32_t>(d)) {
    uint32_t log = 0;
    while ((int64_t{1} << log) < d) ++log;
    shift = 31 + log;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << shift) + divisor - 1) / divisor);
  }
  UF_HD_INLINE uint32_t operator()(uint32_t n) const {
    return static_cast<uint32_t>((static_cast<uint64_t>(n) * multiplier) >> shift);
  }
};

}  // namespace uf
