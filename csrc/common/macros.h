// UF_HD marks a function that both the host compiler and nvcc compile: the maths of an op is written once.
// UF_MULTIVERSION compiles a function for several instruction sets; the loader picks one at run time, so a shipped
// build needs no -march=native. Helpers called from such a function must be UF_INLINE: only then are they compiled
// for the caller's instruction set.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define UF_HD __host__ __device__
#else
#define UF_HD
#endif

#if defined(_MSC_VER)
#define UF_INLINE __forceinline
#else
#define UF_INLINE inline __attribute__((always_inline))
#endif

#define UF_HD_INLINE UF_HD UF_INLINE

// x86-64-v4 and v3 are AVX-512 (F, BW, CD, DQ, VL) and AVX2 + FMA. Sanitizers cannot instrument the resolver of a
// multiversioned function, which runs before they are set up.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__CUDACC__) && !defined(UF_NO_MULTIVERSION)
#define UF_MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define UF_MULTIVERSION
#endif
