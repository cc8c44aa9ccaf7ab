#include "cuda/crop_concat.h"

#include "bindings/crop_concat_call.h"
#include "bindings/torch_cuda_common.h"

namespace uf::bindings {
namespace {

Tensor crop_concat_cuda(const Tensor& skip, const Tensor& up) {
  const OnDevice device(up);
  const CropConcatCall call = crop_concat_call(skip, up, concat_is_channels_last(skip, up));
  STD_CUDA_CHECK(cuda::crop_concat(call.shape, skip.const_data_ptr(), call.skip_stride, up.const_data_ptr(),
                                   call.up_stride, call.out.mutable_data_ptr(), device.stream()));
  return call.out;
}

Tensor crop_concat_backward_cuda(const Tensor& grad, int64_t skip_channels, std::vector<int64_t> skip_size) {
  const OnDevice device(grad);
  const CropConcatBackwardCall call = crop_concat_backward_call(grad, skip_channels, skip_size, is_channels_last(grad));
  STD_CUDA_CHECK(cuda::crop_concat_backward(call.shape, grad.const_data_ptr(), call.grad_stride,
                                            call.grad_skip.mutable_data_ptr(), device.stream()));
  return call.grad_skip;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unet_fast, CUDA, m) {
  m.impl("crop_concat", TORCH_BOX(&crop_concat_cuda));
  m.impl("crop_concat_backward", TORCH_BOX(&crop_concat_backward_cuda));
}

}  // namespace uf::bindings
