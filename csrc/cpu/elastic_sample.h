// Reads a block of output pixels from one channel of an image.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/elastic_taps.h"

namespace uf::warp {

constexpr int64_t kLargestOffset = std::numeric_limits<int32_t>::max() - 64;

template <class A>
struct SampleArgs;

template <class A>
using Sampler = void (*)(const SampleArgs<A>& args);

template <class A>
struct SampleArgs {
  const void* plane;
  int64_t stride_y, stride_x;  // elements
  int64_t extent;              // offset of the last pixel
  int32_t width;               // pixels
  AxisTaps<A>* y;  // may be expanded
  AxisTaps<A>* x;
  Fill fill;
  Sampler<A> plain;  // serves any block
  void* out;         // of lane first_lane
  int first_lane, lanes;
};

// A sampler that serves any block of a plane whose last pixel has this offset.
template <class A>
Sampler<A> plain_sampler(Interpolation kind, DType type, int64_t element_size, int64_t extent);
template <>
Sampler<float> plain_sampler<float>(Interpolation kind, DType type, int64_t element_size, int64_t extent);
template <>
Sampler<double> plain_sampler<double>(Interpolation kind, DType type, int64_t element_size, int64_t extent);

// For offsets of 32 bits; null where the processor lacks AVX2.
Sampler<float> avx2_sampler(Interpolation kind, DType type, int64_t element_size);

// The fastest sampler for this plane.
template <class A>
Sampler<A> choose_sampler(Interpolation kind, DType type, int64_t element_size, int64_t extent) {
  if constexpr (sizeof(A) == sizeof(float)) {
    if (extent * element_size <= kLargestOffset) {
      if (const Sampler<A> sampler = avx2_sampler(kind, type, element_size)) return sampler;
    }
  }
  return plain_sampler<A>(kind, type, element_size, extent);
}

}  // namespace uf::warp
