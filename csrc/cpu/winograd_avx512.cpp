// Winograd's convolution for x86 processors with AVX-512.
#include "cpu/winograd_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

// passing vectors by value is fine: every function that does is inlined
#pragma GCC diagnostic ignored "-Wpsabi"

#include "common/macros.h"

#define UF_WINOGRAD_NAMESPACE avx512
#define UF_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))

namespace uf::winograd::avx512 {
namespace {

using Vector = float __attribute__((vector_size(64)));
constexpr int kLanes = 16, kMaxRows = 14, kTapRows = 8;

UF_TARGET UF_INLINE __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }

UF_TARGET UF_INLINE Vector load_some(const float* p, int count) { return _mm512_maskz_loadu_ps(first_lanes(count), p); }

UF_TARGET UF_INLINE void store_some(float* p, Vector v, int count) { _mm512_mask_storeu_ps(p, first_lanes(count), v); }

// NaN stays: of two numbers that do not compare the second one counts
UF_TARGET UF_INLINE Vector rectified(Vector v) { return _mm512_max_ps(_mm512_setzero_ps(), v); }

UF_TARGET UF_INLINE void stream(float* p, Vector v) { _mm512_stream_ps(p, v); }

}  // namespace
}  // namespace uf::winograd::avx512

#include "cpu/winograd_isa.h"

namespace uf::winograd {

const Kernels* avx512_kernels() {
  static const bool there = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("fma");
  return there ? &avx512::kKernels : nullptr;
}

}  // namespace uf::winograd

#else

namespace uf::winograd {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace uf::winograd

#endif
