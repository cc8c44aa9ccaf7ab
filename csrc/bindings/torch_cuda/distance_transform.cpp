#include "cuda/distance_transform.h"

#include "bindings/distance_call.h"
#include "bindings/tensor_cuda.h"

namespace uf::bindings {
namespace {

Tensor distance_transform_cuda(const Tensor& mask_in, std::vector<double> spacing) {
  const OnDevice device(mask_in);
  const Tensor mask = torch::stable::contiguous(mask_in);
  const DistanceGrid grid = distance_grid(mask, spacing);
  Tensor out = new_tensor(mask, sizes(mask), ScalarType::Float);
  const Tensor workspace = new_tensor(mask, {cuda::distance_transform_workspace(grid)}, ScalarType::Byte);
  STD_CUDA_CHECK(cuda::distance_transform(grid, mask.const_data_ptr(), mask_element(mask),
                                          static_cast<float*>(out.mutable_data_ptr()), workspace.mutable_data_ptr(),
                                          device.stream()));
  return out;
}

}  // namespace

UF_OPERATOR_ON(CUDA, distance_transform, distance_transform_cuda)

}  // namespace uf::bindings
