// Sums over all pixels of each channel, the same whatever the number of threads: the work is cut into a fixed number of
// parts, each part adds to a row of its own, in double, and the rows are added up in order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/half.h"
#include "common/macros.h"

namespace uf {

constexpr int64_t kSumParts = 32;

// sums (channels) <- rows (parts, channels)
inline void add_rows(const double* rows, int64_t parts, int64_t channels, double* sums) {
  std::fill_n(sums, channels, 0.0);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t c = 0; c < channels; ++c) sums[c] += rows[part * channels + c];
}

// The sum of a row of pixels of one channel, in as many running sums as keep the compiler's vector registers busy.
template <class A, class T>
UF_INLINE double row_sum(const T* __restrict values, int64_t count) {
  constexpr int64_t kLanes = 32;
  A lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += widen(values[i + j]);
  for (; i < count; ++i) lanes[0] += widen(values[i]);
  double sum = 0;
  for (int64_t j = 0; j < kLanes; ++j) sum += lanes[j];
  return sum;
}

}  // namespace uf
