// Winograd's convolution for x86 processors with AVX2.
#include "cpu/winograd_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

// passing vectors by value is fine: every function that does is inlined
#pragma GCC diagnostic ignored "-Wpsabi"

#include "common/macros.h"

#define UF_WINOGRAD_NAMESPACE avx2
#define UF_TARGET __attribute__((target("avx2,fma")))

namespace uf::winograd::avx2 {
namespace {

using Vector = float __attribute__((vector_size(32)));
constexpr int kLanes = 8, kMaxRows = 6, kTapRows = 4;

UF_TARGET UF_INLINE __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

UF_TARGET UF_INLINE Vector load_some(const float* p, int count) { return _mm256_maskload_ps(p, first_lanes(count)); }

UF_TARGET UF_INLINE void store_some(float* p, Vector v, int count) { _mm256_maskstore_ps(p, first_lanes(count), v); }

// NaN stays: of two numbers that do not compare the second one counts
UF_TARGET UF_INLINE Vector rectified(Vector v) { return _mm256_max_ps(_mm256_setzero_ps(), v); }

UF_TARGET UF_INLINE void stream(float* p, Vector v) { _mm256_stream_ps(p, v); }

}  // namespace
}  // namespace uf::winograd::avx2

#include "cpu/winograd_isa.h"

namespace uf::winograd {

const Kernels* avx2_kernels() {
  static const bool there = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return there ? &avx2::kKernels : nullptr;
}

}  // namespace uf::winograd

#else

namespace uf::winograd {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace uf::winograd

#endif
