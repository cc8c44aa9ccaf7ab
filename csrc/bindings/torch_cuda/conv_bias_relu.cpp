// torch's own convolution without its bias, then bias and ReLU in place in one pass: 2 e bytes more per element of e
// bytes, where torch's convolution, bias and ReLU make 4 e (cuDNN adds no bias by itself).
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

Tensor conv_bias_relu_cuda(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, int64_t padding) {
  const OnDevice device(x);
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
  const auto [masked, grad_bias] = bias_relu_gradients_cuda(grad, out, want_bias);
  const auto none = [&] { return new_tensor(x, {0}); };  // results must not share memory
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

STABLE_TORCH_LIBRARY_IMPL(unet_fast, CUDA, m) {
  m.impl("conv_bias_relu", TORCH_BOX(&conv_bias_relu_cuda));
  m.impl("conv_bias_relu_backward", TORCH_BOX(&conv_bias_relu_backward_cuda));
}

}  // namespace uf::bindings
