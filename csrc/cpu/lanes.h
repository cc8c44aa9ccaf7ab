// Loops over the channels of a pixel in pieces of fixed length, which the compiler turns into vector code without the
// run-time checks and ragged tails that a loop of unknown, short length needs.
#pragma once

#include <cstdint>

#include "common/macros.h"

// In front of a loop over the elements of a piece: its iterations touch different elements, which the compiler cannot know,
// and it must reach the vectoriser as a loop (GCC unrolls short ones before, and then fails to put them together again).
#if defined(__clang__)
#define UF_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define UF_INDEPENDENT _Pragma("GCC ivdep") _Pragma("GCC unroll 1")
#else
#define UF_INDEPENDENT
#endif

// The member that for_lanes() calls for the elements [c, c + L), and a loop over them, whose iterations are independent.
#define UF_PIECE(c) template <int L> UF_INLINE void piece(int64_t c)
#define UF_LANES(j) UF_INDEPENDENT for (int j = 0; j < L; ++j)

// M(T, A) for maps of every floating dtype T, whose sums are of A.
#define UF_FLOATING(M) M(double, double) M(float, float) M(Half, float) M(BFloat16, float)

namespace uf {

// f.template piece<L>(c) for pieces [c, c + L) of [0, count).
template <class F>
UF_INLINE void for_lanes(int64_t count, F f) {
  int64_t c = 0;
  for (; c + 32 <= count; c += 32) f.template piece<32>(c);
  if (c + 16 <= count) {
    f.template piece<16>(c);
    c += 16;
  }
  if (c + 8 <= count) {
    f.template piece<8>(c);
    c += 8;
  }
  for (; c < count; ++c) f.template piece<1>(c);
}

// The sum of 16 numbers by halves, in registers.
template <class A>
UF_INLINE A lane_sum(const A lanes[16]) {
#if defined(__GNUC__)
  typedef A Half16 __attribute__((vector_size(8 * sizeof(A))));
  typedef A Quarter16 __attribute__((vector_size(4 * sizeof(A))));
  Half16 low, high;
  __builtin_memcpy(&low, lanes, sizeof low);
  __builtin_memcpy(&high, lanes + 8, sizeof high);
  low += high;
  Quarter16 four, other;
  __builtin_memcpy(&four, &low, sizeof four);
  __builtin_memcpy(&other, reinterpret_cast<const char*>(&low) + sizeof four, sizeof other);
  four += other;
  return (four[0] + four[1]) + (four[2] + four[3]);
#else
  A sum[8];
  for (int j = 0; j < 8; ++j) sum[j] = lanes[j] + lanes[j + 8];
  return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
#endif
}

}  // namespace uf
