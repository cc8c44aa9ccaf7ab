#include "cuda/nearest_two.h"

#include "bindings/distance_call.h"
#include "bindings/tensor_cuda.h"

namespace uf::bindings {
namespace {

std::tuple<Tensor, Tensor> nearest_two_cuda(const Tensor& instances_in, std::vector<double> spacing) {
  const OnDevice device(instances_in);
  const Tensor instances = torch::stable::contiguous(instances_in);
  const DistanceGrid grid = distance_grid(instances, spacing);
  const auto size = sizes(instances);
  Tensor d1 = new_tensor(instances, size, ScalarType::Float), d2 = new_tensor(instances, size, ScalarType::Float);
  const Tensor workspace = new_tensor(instances, {cuda::nearest_two_workspace(grid)}, ScalarType::Byte);
  STD_CUDA_CHECK(cuda::nearest_two(grid, instances.const_data_ptr(), label_dtype(instances),
                                   static_cast<float*>(d1.mutable_data_ptr()),
                                   static_cast<float*>(d2.mutable_data_ptr()), workspace.mutable_data_ptr(),
                                   device.stream()));
  return {d1, d2};
}

}  // namespace

UF_OPERATOR_ON(CUDA, nearest_two, nearest_two_cuda)

}  // namespace uf::bindings
