#include "cuda/elastic_warp.h"

#include "bindings/elastic_warp_call.h"
#include "bindings/tensor_cuda.h"

namespace uf::bindings {
namespace {

std::vector<Tensor> elastic_warp_cuda(std::vector<Tensor> inputs, const Tensor& displacement,
                                      std::optional<Tensor> matrix, std::vector<int64_t> output_size,
                                      std::vector<int64_t> interpolation, std::vector<double> fill, int64_t field,
                                      int64_t padding) {
  const OnDevice device(inputs[0]);
  const WarpImagesCall call(inputs, output_size, interpolation, fill);
  const WarpFrameCall frame(inputs[0].size(2), inputs[0].size(3), displacement, matrix, field, padding, call.wide);
  const Tensor workspace = new_tensor(inputs[0], {cuda::elastic_warp_workspace(frame.frame)}, ScalarType::Byte);
  STD_CUDA_CHECK(cuda::elastic_warp(frame.frame, call.images.data(), static_cast<int>(call.images.size()),
                                    workspace.mutable_data_ptr(), device.stream()));
  return call.outputs;
}

std::vector<Tensor> elastic_warp_backward_cuda(std::vector<Tensor> grads, const Tensor& displacement,
                                               std::optional<Tensor> matrix, std::vector<int64_t> input_size,
                                               std::vector<int64_t> interpolation, int64_t field, int64_t padding,
                                               bool deterministic) {
  const OnDevice device(grads[0]);
  const int64_t height = input_size[0], width = input_size[1];
  std::vector<Tensor> results;
  std::vector<cuda::WarpGradientImage> images;
  for (size_t i = 0; i < grads.size(); ++i) {
    const Tensor& grad = grads[i];
    const std::vector<int64_t> stride = strides(grad);
    results.push_back(new_tensor(grad, {grad.size(0), grad.size(1), height, width}));
    images.push_back({grad.const_data_ptr(),
                      grad.size(1),
                      {stride[0], stride[1], stride[2], stride[3]},
                      grad.size(2),
                      grad.size(3),
                      results.back().mutable_data_ptr(),
                      static_cast<Interpolation>(interpolation[i])});
  }
  const bool wide = grads[0].scalar_type() == ScalarType::Double;
  const WarpFrameCall frame(height, width, displacement, matrix, field, padding, wide);
  const int count = static_cast<int>(images.size());
  const int64_t bytes = cuda::elastic_warp_backward_workspace(frame.frame, images.data(), count, deterministic);
  const Tensor workspace = new_tensor(grads[0], {bytes}, ScalarType::Byte);
  STD_CUDA_CHECK(cuda::elastic_warp_backward(frame.frame, images.data(), count, deterministic,
                                             workspace.mutable_data_ptr(), device.stream()));
  return results;
}

}  // namespace

UF_OPERATOR_ON(CUDA, elastic_warp, elastic_warp_cuda)
UF_OPERATOR_ON(CUDA, elastic_warp_backward, elastic_warp_backward_cuda)

}  // namespace uf::bindings
