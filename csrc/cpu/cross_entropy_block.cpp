#include "cpu/cross_entropy_block.h"

namespace uf {
namespace {

template <class I>
UF_INLINE void read(const I* __restrict in, int64_t count, int64_t classes, int64_t ignore_index,
                            int32_t* __restrict out, BlockSums& sums) {
  int32_t counted = 0, wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = static_cast<int64_t>(in[i]);
    const int32_t used = value != ignore_index, valid = value >= 0 && value < classes;
    out[i] = used ? static_cast<int32_t>(value) : -1;
    counted += used;
    wrong |= used & ~valid;
  }
  sums.counted = counted;
  if (!wrong) return;
  for (int64_t i = 0; i < count && !sums.bad.found; ++i) {
    const int64_t value = static_cast<int64_t>(in[i]);
    if (value != ignore_index && (value < 0 || value >= classes)) sums.bad = {true, value};
  }
}

#define UF_READ_CLASSES(T)                                                                                             \
  UF_MULTIVERSION void read_classes(const T* in, int64_t count, int64_t classes, int64_t ignore, int32_t* out,         \
                                    BlockSums& sums) {                                                                 \
    read(in, count, classes, ignore, out, sums);                                                                       \
  }

UF_READ_CLASSES(int64_t)
UF_READ_CLASSES(int32_t)
UF_READ_CLASSES(int16_t)
UF_READ_CLASSES(int8_t)
UF_READ_CLASSES(uint8_t)
#undef UF_READ_CLASSES

// The selection goes through memory: GCC 12 miscompiles a sum of doubles that an int32 selects (wrong lanes with AVX2).
template <class A>
UF_INLINE double sum_where_counted(const A* __restrict values, const int32_t* __restrict target, int64_t count) {
  A chosen[kMostPixels];
  for (int64_t i = 0; i < count; ++i) chosen[i] = target[i] < 0 ? A(0) : values[i];
  return sum_in_double(chosen, count);
}

UF_MULTIVERSION double sum_doubles(const double* weight, const int32_t* target, int64_t count) {
  return sum_where_counted(weight, target, count);
}

UF_MULTIVERSION double sum_floats(const float* weight, const int32_t* target, int64_t count) {
  return sum_where_counted(weight, target, count);
}

}  // namespace

double sum_weights(const double* weight, const int32_t* target, int64_t count) {
  return sum_doubles(weight, target, count);
}

double sum_weights(const float* weight, const int32_t* target, int64_t count) {
  return sum_floats(weight, target, count);
}

BlockSums read_targets(DType type, const void* targets, int64_t at, int64_t count, int64_t classes,
                       int64_t ignore_index, int32_t* target) {
  BlockSums sums;
  dispatch<int64_t, uint8_t, int8_t, int16_t, int32_t>(type, [&]<class T>(T) {
    read_classes(static_cast<const T*>(targets) + at, count, classes, ignore_index, target, sums);
  });
  return sums;
}

BlockSums total(const std::vector<BlockSums>& blocks) {
  BlockSums sums;
  for (const BlockSums& block : blocks) {
    sums.loss += block.loss;
    sums.weight += block.weight;
    sums.counted += block.counted;
    if (!sums.bad.found) sums.bad = block.bad;
  }
  return sums;
}

double divisor(const BlockSums& sums, Reduction reduction) {
  double value = 1;
  if (reduction == Reduction::kMean) value = static_cast<double>(sums.counted);
  if (reduction == Reduction::kWeightMean) value = sums.weight;
  return value == 0 ? 1 : value;
}

}  // namespace uf
