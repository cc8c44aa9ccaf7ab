// Sums that are the same in whatever order they are added: as whole multiples of a power of two, in 64 bits.
//
// A sum is stored with a bias, so that its bytes can be set by memset and bit 62 stays free: it marks a sum that is lost,
// once for all, because later additions cannot reach it.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace uf {

class FixedPoint {
 public:
  static constexpr int kFirstByte = 0x10;  // each byte of a sum to which nothing has been added
  static constexpr uint64_t kLost = uint64_t{1} << 62;

  // For sums whose absolute terms add up to less than 2^bits times `largest` (finite, not negative).
  UF_HD_INLINE FixedPoint(double largest, int bits) {
    const int exponent = static_cast<int>(std::bit_cast<uint64_t>(largest) >> 52) - 1023;  // largest < 2^(exponent + 1)
    const int shift = kBits - 1 - bits - exponent;
    shift_ = shift < kMostShift ? shift : kMostShift;
  }

  // What to add for `value`, modulo 2^64.
  UF_HD_INLINE uint64_t whole(double value) const {
    return static_cast<uint64_t>(static_cast<int64_t>(std::floor(value * power_of_two(shift_) + 0.5)));
  }

  UF_HD_INLINE double value(uint64_t sum) const {
    if (sum & kLost) return std::bit_cast<double>(uint64_t{0x7ff8000000000000});  // NaN
    return static_cast<double>(static_cast<int64_t>(sum - kBias)) * power_of_two(-shift_);
  }

 private:
  static constexpr int kBits = 60;          // a sum stays below 2^60, a little less than the bias
  static constexpr int kMostShift = 1000;   // both powers are normal numbers
  static constexpr uint64_t kBias = 0x1010101010101010;

  static UF_HD_INLINE double power_of_two(int exponent) {
    return std::bit_cast<double>(static_cast<uint64_t>(exponent + 1023) << 52);
  }

  int shift_;
};

}  // namespace uf
