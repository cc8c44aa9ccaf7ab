// The matrix products are torch's own (cuBLAS), through the C interface of its CUDA kernels: below the dispatcher, so that
// neither autograd nor autocast sees them, but with the caller's settings for TF32 and reduced precision. Workspace: one
// product, the size of the up-sampled image; backward 8 bytes for each 500 elements of it, and for the gradient of the
// weight a copy of x where several planar images are at hand.
#include "cuda/up_conv.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include "bindings/junction_call.h"
#include "bindings/tensor_cuda.h"
#include "bindings/up_conv_matrix.h"
#include "common/crop_concat.h"

namespace uf::bindings {
namespace {

void multiply(const Tensor& left, const Tensor& right, const Tensor& to) {
  TORCH_ERROR_CODE_CHECK(to.dim() == 2 ? aoti_torch_cuda_mm_out(to.get(), left.get(), right.get())
                                       : aoti_torch_cuda_bmm_out(to.get(), left.get(), right.get()));
}

Tensor product_for(const UpConvCall& call) { return new_tensor(call.x, {call.batch * call.pixels() * 4 * call.channels}); }

// Planar: (4 C, N, pixels) and one image of it.
Matrix product_matrix(const UpConvCall& call, const Tensor& product) {
  return {product, 4 * call.channels, call.pixels(), call.batch * call.pixels(), 1};
}

void up_conv_into_cuda(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias_in, Tensor buffer) {
  const OnDevice device(x);
  const UpConvCall call = up_conv_call(x, weight, buffer, "up_conv_into");
  if (x.numel() == 0 || weight.numel() == 0) return;
  const std::optional<Tensor> bias = dense_wide(bias_in, x, call.channels, "up_conv_into: bias");
  const Tensor product = product_for(call);
  const Matrix w = weight_matrix(call, call.weight);
  const int64_t rows = call.batch * call.pixels(), k = call.in_channels, columns = 4 * call.channels;
  if (call.channels_last) {
    multiply(Matrix{call.x, rows, k, k, 1}.view(), w.view(), Matrix{product, rows, columns, columns, 1}.view());
  } else if (call.batch == 1) {
    multiply(w.transposed().view(), plane_matrix(call.x, 0, k, rows).view(), product_matrix(call, product).view());
  } else {
    multiply(w.transposed().batch(call.batch, 0), plane_matrix(call.x, 0, k, call.pixels()).batch(call.batch, k * call.pixels()),
             product_matrix(call, product).batch(call.batch, call.pixels()));
  }
  STD_CUDA_CHECK(cuda::up_conv_scatter(shape_of(call), call.type, product.const_data_ptr(), data_or_null(bias),
                                       first_channel(call, buffer), call.stride, device.stream()));
}

// (C_in, N * pixels) of a planar x
Tensor pixels_last(const UpConvCall& call) {
  if (call.batch == 1) return call.x;
  const Tensor images = torch::stable::view(call.x, {call.batch, call.in_channels, call.pixels()});
  return torch::stable::contiguous(torch::stable::transpose(images, 0, 1));
}

std::tuple<Tensor, Tensor, Tensor> up_conv_into_backward_cuda(const Tensor& grad_in, const Tensor& x,
                                                              const Tensor& weight, bool want_x, bool want_weight,
                                                              bool want_bias) {
  const OnDevice device(x);
  const Tensor grad = innermost_dense(grad_in, is_channels_last(grad_in));
  const UpConvCall call = up_conv_call(x, weight, grad, "up_conv_into_backward");
  const MemoryFormat format = dense_format(call.channels_last);
  const Tensor none = new_tensor(x, {0}), product = product_for(call);
  const Tensor grad_x = want_x ? new_tensor(x, sizes(x), std::nullopt, format) : none;
  const Tensor grad_weight =
      want_weight ? new_tensor(weight, sizes(weight), std::nullopt, MemoryFormat::ChannelsLast) : none;
  const Tensor grad_bias = new_tensor(grad, {want_bias ? call.channels : 0}, wide_type(grad));

  const UpConvShape shape = shape_of(call);
  const char* image = first_channel(call, grad);
  const int64_t doubles =
      want_bias ? cuda::up_conv_workspace(shape, call.type, image, call.stride, product.const_data_ptr()) : 0;
  const Tensor workspace = new_tensor(x, {doubles}, ScalarType::Double);
  STD_CUDA_CHECK(cuda::up_conv_gather(shape, call.type, image, call.stride, product.mutable_data_ptr(),
                                      want_bias ? grad_bias.mutable_data_ptr() : nullptr,
                                      static_cast<double*>(workspace.mutable_data_ptr()), device.stream()));
  const int64_t rows = call.batch * call.pixels(), k = call.in_channels, columns = 4 * call.channels;
  if (rows == 0 || columns == 0 || k == 0) {  // sums of nothing
    for (Tensor zeros : {grad_x, grad_weight})
      if (zeros.numel()) torch::stable::zero_(zeros);
    return {grad_x, grad_weight, grad_bias};
  }
  const Matrix w = weight_matrix(call, call.weight);
  if (call.channels_last) {
    const Matrix g = {product, rows, columns, columns, 1};
    if (want_x) multiply(g.view(), w.transposed().view(), Matrix{grad_x, rows, k, k, 1}.view());
    if (want_weight)
      multiply(Matrix{call.x, rows, k, k, 1}.transposed().view(), g.view(), weight_matrix(call, grad_weight).view());
    return {grad_x, grad_weight, grad_bias};
  }
  if (want_x && call.batch == 1) {
    multiply(w.view(), product_matrix(call, product).view(), plane_matrix(grad_x, 0, k, rows).view());
  } else if (want_x) {
    multiply(w.batch(call.batch, 0), product_matrix(call, product).batch(call.batch, call.pixels()),
             plane_matrix(grad_x, 0, k, call.pixels()).batch(call.batch, k * call.pixels()));
  }
  if (want_weight) {
    // one product over all images: sums of several, each rounded to the tensor's dtype, would be less exact
    const Tensor all = pixels_last(call);
    multiply(Matrix{all, k, rows, rows, 1}.view(), Matrix{product, columns, rows, rows, 1}.transposed().view(),
             weight_matrix(call, grad_weight).view());
  }
  return {grad_x, grad_weight, grad_bias};
}

Tensor up_conv_crop_concat_cuda(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, const Tensor& skip) {
  const OnDevice device(x);
  const bool last = is_channels_last(x);
  const Tensor out = new_tensor(x, {x.size(0), skip.size(1) + weight.size(1), 2 * x.size(2), 2 * x.size(3)},
                                std::nullopt, dense_format(last));
  STD_TORCH_CHECK(skip.dim() == 4 && skip.scalar_type() == x.scalar_type() && skip.size(0) == x.size(0) &&
                      skip.size(2) >= out.size(2) && skip.size(3) >= out.size(3),
                  "up_conv_crop_concat: skip does not fit");
  if (out.numel() == 0) return out;
  const CropConcatShape shape = {{skip.size(0), skip.size(1), 1, skip.size(2), skip.size(3)},
                                 {out.size(0), weight.size(1), 1, out.size(2), out.size(3)},
                                 static_cast<int64_t>(out.element_size()),
                                 last};
  const int64_t skip_stride[kDims] = {skip.stride(0), skip.stride(1), 0, skip.stride(2), skip.stride(3)};
  STD_CUDA_CHECK(cuda::crop_concat(shape, skip.const_data_ptr(), skip_stride, nullptr, nullptr, out.mutable_data_ptr(),
                                   device.stream()));
  up_conv_into_cuda(x, weight, bias, out);
  return out;
}

}  // namespace

UF_OPERATOR_ON(CUDA, up_conv_into, up_conv_into_cuda)
UF_OPERATOR_ON(CUDA, up_conv_into_backward, up_conv_into_backward_cuda)
UF_OPERATOR_ON(CUDA, up_conv_crop_concat, up_conv_crop_concat_cuda)

}  // namespace uf::bindings
