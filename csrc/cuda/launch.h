// What every kernel launch needs: a launch that reports its error, 16-byte vectors, grids within the limits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "common/macros.h"

namespace uf::cuda {

constexpr int kWarp = 32;
constexpr int64_t kVectorBytes = 16;  // the widest access of one thread

UF_HD_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The alignment that so many bytes need to be moved in the widest words that divide them.
constexpr int64_t vector_alignment(int64_t bytes) {
  const int64_t divisor = bytes & -bytes;
  return divisor < kVectorBytes ? divisor : kVectorBytes;
}

// N elements that are read and written together.
template <class T, int N>
struct alignas(vector_alignment(sizeof(T) * N)) Vector {
  T values[N];
};

template <class T, int N>
UF_HD_INLINE Vector<T, N> load_vector(const T* from) {
  static_assert(sizeof(Vector<T, N>) == sizeof(T) * N, "padding would reach into the neighbours");
  return *reinterpret_cast<const Vector<T, N>*>(from);
}

template <class T, int N>
UF_HD_INLINE void store_vector(T* to, const Vector<T, N>& values) {
  static_assert(sizeof(Vector<T, N>) == sizeof(T) * N, "padding would reach into the neighbours");
  *reinterpret_cast<Vector<T, N>*>(to) = values;
}

// Null counts as aligned: what is not there is not accessed.
inline bool is_aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

// One dimension of blocks, up to 2^31 - 1 of them: the others end at 65,535. A grid without blocks is not launched,
// because CUDA calls it an error.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t stream,
                   Arguments&&... arguments) {
  if (blocks == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace uf::cuda
