// Winograd's convolution in plain C++, four numbers at a time: the vectors of every processor that has any.
#include "cpu/winograd_kernels.h"

#include <cstring>

#include "common/macros.h"

#define UF_WINOGRAD_NAMESPACE plain
#define UF_TARGET

namespace uf::winograd::plain {
namespace {

using Vector = float __attribute__((vector_size(16)));
constexpr int kLanes = 4, kMaxRows = 6, kTapRows = 4;

UF_INLINE Vector load_some(const float* p, int count) {
  Vector v = {};
  std::memcpy(&v, p, static_cast<size_t>(count) * sizeof(float));
  return v;
}

UF_INLINE void store_some(float* p, Vector v, int count) {
  std::memcpy(p, &v, static_cast<size_t>(count) * sizeof(float));
}

UF_INLINE Vector rectified(Vector v) { return v < 0 ? Vector{} : v; }  // NaN stays

UF_INLINE void stream(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

}  // namespace
}  // namespace uf::winograd::plain

#include "cpu/winograd_isa.h"

namespace uf::winograd {

const Kernels* plain_kernels() { return &plain::kKernels; }

}  // namespace uf::winograd
