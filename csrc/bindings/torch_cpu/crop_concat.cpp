#include "cpu/crop_concat.h"

#include "bindings/crop_concat_call.h"

namespace uf::bindings {
namespace {

// The tensor itself where it steps by one element along the innermost dimension of the layout, else a copy that does.
Tensor innermost_dense(const Tensor& tensor, bool channels_last) {
  const int64_t dim = channels_last ? 1 : tensor.dim() - 1;
  if (tensor.size(dim) <= 1 || tensor.stride(dim) == 1) return tensor;
  return torch::stable::contiguous(tensor, dense_format(channels_last, tensor.dim()));
}

Tensor crop_concat_cpu(const Tensor& skip_in, const Tensor& up_in) {
  const bool channels_last = concat_is_channels_last(skip_in, up_in);
  const Tensor skip = innermost_dense(skip_in, channels_last), up = innermost_dense(up_in, channels_last);
  const CropConcatCall call = crop_concat_call(skip, up, channels_last);
  crop_concat(call.shape, skip.const_data_ptr(), call.skip_stride, up.const_data_ptr(), call.up_stride,
              call.out.mutable_data_ptr(), torch_parallel());
  return call.out;
}

Tensor crop_concat_backward_cpu(const Tensor& grad_in, int64_t skip_channels, std::vector<int64_t> skip_size) {
  const bool channels_last = is_channels_last(grad_in);
  const Tensor grad = innermost_dense(grad_in, channels_last);
  const CropConcatBackwardCall call = crop_concat_backward_call(grad, skip_channels, skip_size, channels_last);
  crop_concat_backward(call.shape, grad.const_data_ptr(), call.grad_stride, call.grad_skip.mutable_data_ptr(),
                       torch_parallel());
  return call.grad_skip;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unet_fast, CPU, m) {
  m.impl("crop_concat", TORCH_BOX(&crop_concat_cpu));
  m.impl("crop_concat_backward", TORCH_BOX(&crop_concat_backward_cpu));
}

}  // namespace uf::bindings
