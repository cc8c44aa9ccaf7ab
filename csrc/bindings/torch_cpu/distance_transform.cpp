#include "cpu/distance_transform.h"

#include "bindings/torch_cpu/distance_common.h"

namespace uf::bindings {
namespace {

Tensor distance_transform_cpu(const Tensor& mask_in, std::vector<double> spacing) {
  const Tensor mask = torch::stable::contiguous(mask_in);
  const DistanceGrid grid = distance_grid(mask, spacing);
  Tensor out = new_tensor(mask, sizes(mask), ScalarType::Float);
  distance_transform(grid, mask.const_data_ptr(), mask_element(mask),
                     static_cast<float*>(out.mutable_data_ptr()), torch_parallel());
  return out;
}

}  // namespace

UF_OPERATOR_ON(CPU, distance_transform, distance_transform_cpu)

}  // namespace uf::bindings
