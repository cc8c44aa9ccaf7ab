#include "cpu/weight_map.h"

#include "bindings/shape_checks.h"
#include "bindings/torch_cpu/distance_common.h"

namespace uf::bindings {
namespace {

Tensor weight_map_cpu(const Tensor& instances_in, double w0, double sigma, std::optional<Tensor> class_weights,
                      bool balanced, bool inside) {
  checks::weight_map(w0, sigma);
  const Tensor instances = torch::stable::contiguous(instances_in);
  STD_TORCH_CHECK(instances.dim() == 3, "instances must have the shape (N, H, W)");
  const DistanceGrid grid = distance_grid(instances, {1.0, 1.0});
  WeightMapOptions options{w0, sigma, inside, balanced, {1.0f, 1.0f}};
  if (class_weights.has_value()) {
    STD_TORCH_CHECK(class_weights->scalar_type() == ScalarType::Float && class_weights->numel() == 2,
                    "class_weights must hold two float32 numbers");
    const Tensor two = torch::stable::contiguous(*class_weights);
    const float* values = static_cast<const float*>(two.const_data_ptr());
    options.class_weights[0] = values[0];
    options.class_weights[1] = values[1];
  }
  Tensor out = new_tensor(instances, sizes(instances), ScalarType::Float);
  check_labels(weight_map(grid, instances.const_data_ptr(), label_dtype(instances), options,
                          static_cast<float*>(out.mutable_data_ptr()), torch_parallel()));
  return out;
}

}  // namespace

UF_OPERATOR_ON(CPU, weight_map, weight_map_cpu)

}  // namespace uf::bindings
