#include "cpu/distance_transform.h"

#include "bindings/torch_cpu/distance_common.h"

namespace uf::bindings {
namespace {

bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

Tensor distance_transform_cpu(const Tensor& mask_in, std::vector<double> spacing) {
  const Tensor mask = torch::stable::contiguous(mask_in);
  const DistanceGrid grid = distance_grid(mask, spacing);
  const int64_t bytes = static_cast<int64_t>(mask.element_size());
  STD_TORCH_CHECK(bytes <= 8, "mask must be boolean, integer or floating");
  Tensor out = new_tensor(mask, sizes(mask), ScalarType::Float);
  distance_transform(grid, mask.const_data_ptr(), {bytes, is_floating(mask.scalar_type())},
                     static_cast<float*>(out.mutable_data_ptr()), torch_parallel());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unet_fast, CPU, m) { m.impl("distance_transform", TORCH_BOX(&distance_transform_cpu)); }

}  // namespace uf::bindings
