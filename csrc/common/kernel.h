// How an operator declares its kernels once for the CPU and for GPUs.
#pragma once

#if defined(USE_CUDA) || defined(__CUDACC__)
#include <cuda_runtime.h>

// Declares `uf::cuda::name(arguments..., stream)`, which launches on a stream.
#define UF_KERNEL(name, ...) \
  namespace uf::cuda {       \
  cudaError_t name(__VA_ARGS__, cudaStream_t stream); \
  }
#else
#include "cpu/parallel.h"

// Declares `uf::name(arguments..., parallel)`, which runs on the caller's threads.
#define UF_KERNEL(name, ...) \
  namespace uf {             \
  void name(__VA_ARGS__, const Parallel& parallel); \
  }
#endif
