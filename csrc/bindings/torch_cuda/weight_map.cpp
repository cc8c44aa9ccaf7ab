#include "cuda/weight_map.h"

#include "bindings/distance_call.h"
#include "bindings/tensor_cuda.h"

namespace uf::bindings {
namespace {

Tensor weight_map_cuda(const Tensor& instances_in, double w0, double sigma, std::optional<Tensor> class_weights,
                       bool balanced, bool inside) {
  const OnDevice device(instances_in);
  const Tensor instances = torch::stable::contiguous(instances_in);
  STD_TORCH_CHECK(instances.dim() == 3, "instances must have the shape (N, H, W)");
  const DistanceGrid grid = distance_grid(instances, {1.0, 1.0});
  cuda::WeightMapOptions options{w0, sigma, inside, balanced, nullptr};
  std::optional<Tensor> two;  // lives until the kernels are launched
  if (class_weights.has_value()) {
    STD_TORCH_CHECK(class_weights->scalar_type() == ScalarType::Float && class_weights->numel() == 2,
                    "class_weights must hold two float32 numbers");
    STD_TORCH_CHECK(class_weights->device() == instances.device(), "class_weights must be where instances is");
    two = torch::stable::contiguous(*class_weights);
    options.class_weights = static_cast<const float*>(two->const_data_ptr());
  }
  Tensor out = new_tensor(instances, sizes(instances), ScalarType::Float);
  const Tensor workspace = new_tensor(instances, {cuda::weight_map_workspace(grid, options)}, ScalarType::Byte);
  STD_CUDA_CHECK(cuda::weight_map(grid, instances.const_data_ptr(), label_dtype(instances), options,
                                  static_cast<float*>(out.mutable_data_ptr()), workspace.mutable_data_ptr(),
                                  device.stream()));
  return out;
}

}  // namespace

UF_OPERATOR_ON(CUDA, weight_map, weight_map_cuda)

}  // namespace uf::bindings
