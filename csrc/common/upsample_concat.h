// A skip connection joined with a map that is up-sampled on the way: the shapes and the kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/dtype.h"
#include "common/kernel.h"
#include "common/macros.h"

namespace uf {

enum class Upsample : int32_t { kNone, kNearest, kBilinear, kBilinearAligned };  // the last three by a factor of 2
enum class Border : int32_t { kCrop, kZeros, kReplicate };  // what happens to a skip that is larger

// Maps (N, C, H, W). Strides count elements, of N, C, H, W; without gaps along the innermost dimension of the layout. The result
// (N, C1 + C2, h, w) has no gaps; it is channels-last, (N, h, w, C1 + C2), where both maps are.
struct UpsampleConcatShape {
  int64_t batch, skip_channels, channels, height, width;  // channels, height, width: of x
  int64_t skip_height, skip_width, out_height, out_width;
  int64_t skip_stride[4], x_stride[4];
  bool channels_last, up_first;
  Upsample mode;
  Border border;
  DType type;  // of floating maps; of others only the size matters, and nothing is interpolated
  int64_t element;

  UF_HD int64_t factor() const { return mode == Upsample::kNone ? 1 : 2; }
};

// Where a number along one axis comes from: two places of `size` and their weights. `at` counts from the start of the up-sampled
// map, which has factor * size numbers. As torch does it, in the dtype of the arithmetic.
template <class A>
struct UpsampleTaps {
  int64_t place[2];
  A weight[2];
};

template <class A>
UF_HD UpsampleTaps<A> upsample_taps(Upsample mode, int64_t at, int64_t size) {
  if (mode == Upsample::kNone) return {{at, at}, {1, 0}};
  if (mode == Upsample::kNearest) return {{at / 2, at / 2}, {1, 0}};
  A from;
  if (mode == Upsample::kBilinear) {
    from = (static_cast<A>(at) + A(0.5)) * A(0.5) - A(0.5);
    if (from < 0) from = 0;
  } else {
    from = static_cast<A>(at) * (static_cast<A>(size - 1) / static_cast<A>(2 * size - 1));
  }
  int64_t first = static_cast<int64_t>(from);
  if (first > size - 1) first = size - 1;
  const A second = from - static_cast<A>(first);
  return {{first, first + (first < size - 1 ? 1 : 0)}, {A(1) - second, second}};
}

}  // namespace uf

UF_KERNEL(upsample_concat, const uf::UpsampleConcatShape& shape, const void* skip, const void* x, void* out)

// grad_x (N, C, H, W) without gaps <- the part of the gradient (N, C, h, w) that belongs to x; its strides are x_stride.
UF_KERNEL(upsample_concat_backward, const uf::UpsampleConcatShape& shape, const void* grad, void* grad_x)
