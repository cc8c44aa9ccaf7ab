// What the bindings of the distance ops share, whatever the device: tensors to grids, dtypes to elements.
#pragma once

#include "bindings/tensor.h"
#include "common/distance_grid.h"

namespace uf::bindings {

inline DType label_dtype(const Tensor& tensor) {
  return checked_dtype(
      tensor, {DType::kUInt8, DType::kInt8, DType::kUInt16, DType::kInt16, DType::kInt32, DType::kInt64}, "instances",
      "uint8, int8, uint16, int16, int32 or int64");
}

inline MaskElement mask_element(const Tensor& tensor) {
  const int64_t bytes = static_cast<int64_t>(tensor.element_size());
  STD_TORCH_CHECK(bytes <= 8, "mask must be boolean, integer or floating");
  return {bytes, is_floating(dtype_of(tensor))};
}

// (N, H, W) or (N, D, H, W) with one spacing for each axis but the first.
inline DistanceGrid distance_grid(const Tensor& tensor, const std::vector<double>& spacing) {
  const auto size = sizes(tensor);
  STD_TORCH_CHECK(size.size() == 3 || size.size() == 4, "expected a tensor of shape (N, H, W) or (N, D, H, W)");
  STD_TORCH_CHECK(spacing.size() + 1 == size.size(), "expected one spacing for each spatial axis");
  for (const int64_t side : size) STD_TORCH_CHECK(side <= kMaxSide, "a side has ", side, " pixels, at most 2^30 - 1 do");
  if (size.size() == 3) return image_grid(size[0], size[1], size[2], spacing[0], spacing[1]);
  return {size[0], size[1], size[2], size[3], spacing[0], spacing[1], spacing[2]};
}

}  // namespace uf::bindings
