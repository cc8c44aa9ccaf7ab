// A channels-last first layer, of one to four channels and 3 x 3: csrc/cuda/conv_few_channels.cu.
//
// Else torch's own convolution without its bias, then bias and ReLU in place in one pass: 2 e bytes more per element of
// e bytes, where torch's convolution, bias and ReLU make 4 e (cuDNN adds no bias by itself).
//
// Not aten::cudnn_convolution_relu, which has bias and ReLU in cuDNN's epilogue. It hands cuDNN its own uninitialised
// output as a summand with the factor 0, so that a cuDNN engine is free to read it (e of the 2 e bytes again, and 0 *
// NaN is NaN); it rounds the bias to the dtype, says nothing about NaN in the ReLU, takes no float64, always claims
// that non-deterministic algorithms will do, and exists only where torch has cuDNN. What it could gain is e bytes per
// element.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <array>

#include "bindings/junction_call.h"
#include "bindings/torch_cuda/bias_relu.h"
#include "cuda/conv_few_channels.h"
#include "cuda/launch.h"

namespace uf::bindings {
namespace {

using torch::headeronly::HeaderOnlyArrayRef;
using torch::stable::detail::from;
using torch::stable::detail::to;

// An operator of torch by its name; the stack holds its arguments and then its results.
template <size_t N>
void call_torch(const char* name, std::array<StableIValue, N>& stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
}

std::vector<int64_t> both(int64_t value) { return {value, value}; }

// The shape of a 3 x 3 convolution over so few channels that memory bounds it, where it is channels-last.
std::optional<cuda::FewChannels> few_channels(const Tensor& x, const Tensor& weight, int64_t padding) {
  if (x.dim() != 4 || weight.dim() != 4 || weight.size(2) != 3 || weight.size(3) != 3 || weight.size(1) != x.size(1) ||
      weight.scalar_type() != x.scalar_type() || padding < 0 || padding > 1 ||
      std::min(x.size(2), x.size(3)) + 2 * padding < 3 || !(suggests_channels_last(x) || suggests_channels_last(weight)))
    return std::nullopt;
  cuda::FewChannels shape = {x.size(0), x.size(1), x.size(2), x.size(3), weight.size(0), padding, {}};
  for (int d = 0; d < 4; ++d) shape.stride[d] = x.stride(d);
  if (!cuda::fits_few_channels(shape, floating_dtype(x, "conv_bias_relu: x"))) return std::nullopt;
  return shape;
}

Tensor conv_few_channels_cuda(const cuda::FewChannels& shape, const Tensor& x, const Tensor& weight,
                              const std::optional<Tensor>& bias_in, cudaStream_t stream) {
  const std::optional<Tensor> bias = dense_wide(bias_in, x, shape.features, "conv_bias_relu: bias");
  const Tensor out = new_tensor(x, {shape.batch, shape.features, shape.out_height(), shape.out_width()}, std::nullopt,
                                MemoryFormat::ChannelsLast);
  STD_CUDA_CHECK(cuda::conv_few_channels(shape, dtype_of(x), x.const_data_ptr(), weight.const_data_ptr(),
                                         strides(weight).data(), data_or_null(bias), out.mutable_data_ptr(), stream));
  return out;
}

// Dense, at a multiple of 16 bytes.
Tensor aligned_channels_last(const Tensor& tensor) {
  const Tensor dense = torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast);
  if (cuda::is_aligned(dense.const_data_ptr(), cuda::kVectorBytes)) return dense;
  Tensor copy = new_tensor(dense, sizes(dense), std::nullopt, MemoryFormat::ChannelsLast);
  torch::stable::copy_(copy, dense);
  return copy;
}

// The gradients of the weight and, where it is wanted, of the bias.
std::tuple<Tensor, Tensor> conv_few_channels_gradients_cuda(const cuda::FewChannels& shape, const Tensor& grad_in,
                                                            const Tensor& x, const Tensor& weight, const Tensor& out_in,
                                                            bool want_bias, cudaStream_t stream) {
  const Tensor grad = aligned_channels_last(grad_in), out = aligned_channels_last(out_in);
  const Tensor grad_weight = new_tensor(weight, sizes(weight), std::nullopt, MemoryFormat::ChannelsLast);
  const Tensor grad_bias = new_tensor(x, {want_bias ? shape.features : 0}, wide_type(x));
  const Tensor workspace =
      new_tensor(x, {cuda::conv_few_channels_workspace(shape, dtype_of(x))}, ScalarType::Double);
  STD_CUDA_CHECK(cuda::conv_few_channels_backward(
      shape, dtype_of(x), grad.const_data_ptr(), out.const_data_ptr(), x.const_data_ptr(),
      grad_weight.mutable_data_ptr(), want_bias ? grad_bias.mutable_data_ptr() : nullptr,
      static_cast<double*>(workspace.mutable_data_ptr()), stream));
  return {grad_weight, grad_bias};
}

Tensor conv_bias_relu_cuda(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, int64_t padding) {
  const OnDevice device(x);
  if (const auto few = few_channels(x, weight, padding))
    return conv_few_channels_cuda(*few, x, weight, bias, device.stream());
  const std::optional<Tensor> none;
  std::array<StableIValue, 9> stack = {from(x),       from(weight), from(none),    from(both(1)), from(both(padding)),
                                       from(both(1)), from(false),  from(both(0)), from(int64_t{1})};
  call_torch("aten::convolution", stack);
  const Tensor out = to<Tensor>(stack[0]);
  bias_relu_in_place_cuda(out, bias);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> conv_bias_relu_backward_cuda(const Tensor& grad, const Tensor& x,
                                                                const Tensor& weight, const Tensor& out,
                                                                int64_t padding, bool want_x, bool want_weight,
                                                                bool want_bias) {
  const OnDevice device(x);
  const auto none = [&] { return new_tensor(x, {0}); };  // results must not share memory
  if (const auto few = few_channels(x, weight, padding);
      few && want_weight && !want_x && cuda::fits_few_channels_backward(*few, dtype_of(x))) {
    const auto [grad_weight, grad_bias] =
        conv_few_channels_gradients_cuda(*few, grad, x, weight, out, want_bias, device.stream());
    return {none(), grad_weight, grad_bias};
  }
  const auto [masked, grad_bias] = bias_relu_gradients_cuda(grad, out, want_bias);
  if (!want_x && !want_weight) return {none(), none(), grad_bias};
  const std::optional<std::vector<int64_t>> no_sizes;
  const std::array<bool, 3> want = {want_x, want_weight, false};
  std::array<StableIValue, 11> stack = {
      from(masked),  from(x),     from(weight),  from(no_sizes),     from(both(1)), from(both(padding)),
      from(both(1)), from(false), from(both(0)), from(int64_t{1}), from(HeaderOnlyArrayRef<bool>(want.data(), 3))};
  call_torch("aten::convolution_backward", stack);
  const Tensor all[3] = {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};  // frees what nobody wants
  return {want_x ? all[0] : none(), want_weight ? all[1] : none(), grad_bias};
}

}  // namespace

UF_OPERATOR_ON(CUDA, conv_bias_relu, conv_bias_relu_cuda)
UF_OPERATOR_ON(CUDA, conv_bias_relu_backward, conv_bias_relu_backward_cuda)

}  // namespace uf::bindings
