#include "cpu/nearest_two.h"

#include "bindings/torch_cpu/distance_common.h"

namespace uf::bindings {
namespace {

std::tuple<Tensor, Tensor> nearest_two_cpu(const Tensor& instances_in, std::vector<double> spacing) {
  const Tensor instances = torch::stable::contiguous(instances_in);
  const DistanceGrid grid = distance_grid(instances, spacing);
  const auto size = sizes(instances);
  Tensor d1 = new_tensor(instances, size, ScalarType::Float), d2 = new_tensor(instances, size, ScalarType::Float);
  check_labels(nearest_two(grid, instances.const_data_ptr(), label_dtype(instances),
                           static_cast<float*>(d1.mutable_data_ptr()), static_cast<float*>(d2.mutable_data_ptr()),
                           torch_parallel()));
  return {d1, d2};
}

}  // namespace

UF_OPERATOR_ON(CPU, nearest_two, nearest_two_cpu)

}  // namespace uf::bindings
