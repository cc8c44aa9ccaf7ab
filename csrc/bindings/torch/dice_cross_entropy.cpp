#include "common/dice_cross_entropy.h"

#include <string>

#include "bindings/device.h"
#include "bindings/shape_checks.h"

namespace uf::bindings {
namespace {

// The tensors that the pointers of `inputs` point into.
struct DiceCall {
  DiceCrossEntropyShape shape;
  DiceCrossEntropyInputs inputs;
  Tensor logits, target;
  std::optional<Tensor> weight, class_weight;
  MemoryFormat format;
};

Tensor even(const Tensor& tensor) {
  return tensor.numel() == 0 || even_step(tensor) != 0 ? tensor : torch::stable::contiguous(tensor, dense_format(tensor));
}

void set_strides(const Tensor& tensor, int64_t strides[3]) {
  strides[0] = tensor.stride(0);
  strides[1] = tensor.stride(1);
  strides[2] = even_step(tensor);
}

DiceCall dice_call(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                   const std::optional<Tensor>& class_weight, int64_t ignore_index, double smoothing, bool sigmoid, bool loss) {
  checks::rank(logits, 3, 5, "dice_cross_entropy: logits");
  DiceCall call;
  call.logits = even(logits);
  call.format = dense_format(logits);
  const int64_t classes = logits.size(1), pixels = logits.size(0) * pixels_of(logits);
  STD_TORCH_CHECK(classes >= 1 && (sigmoid || classes >= 2), "dice_cross_entropy: a softmax has two classes or more");
  DiceCrossEntropyShape& s = call.shape;
  s = {};
  s.batch = logits.size(0);
  s.classes = classes;
  s.pixels = pixels_of(logits);
  s.type = floating_dtype(logits, "dice_cross_entropy: logits");
  s.target_type = dtype_of(target);
  s.soft = is_floating(s.target_type);
  s.ignore_index = ignore_index;
  s.smoothing = smoothing;
  s.sigmoid = sigmoid;
  s.cross_entropy = loss;
  set_strides(call.logits, s.logits_stride);
  s.grad_class_stride = call.format == MemoryFormat::Contiguous ? s.pixels : 1;
  s.grad_pixel_stride = call.format == MemoryFormat::Contiguous ? 1 : classes;
  if (s.soft) {
    checks::same_shape(target, logits, "dice_cross_entropy: target");
    STD_TORCH_CHECK(target.scalar_type() == wide_type(logits),
                    "dice_cross_entropy: a soft target must be float32 (float64 beside float64)");
    call.target = even(target);
    set_strides(call.target, s.target_stride);
  } else {
    checked_dtype(target, {DType::kInt64, DType::kInt32, DType::kInt16, DType::kInt8, DType::kUInt8},
                  "dice_cross_entropy: target", "an integer");
    STD_TORCH_CHECK(target.numel() == pixels, "dice_cross_entropy: target must have one class for each pixel of logits");
    call.target = torch::stable::contiguous(target);
  }
  call.weight = dense_wide(weight, logits, pixels, "dice_cross_entropy: weight");
  call.class_weight = dense_wide(class_weight, logits, classes, "dice_cross_entropy: class_weight");
  call.inputs = {call.logits.const_data_ptr(), call.target.const_data_ptr(), data_or_null(call.weight),
                 data_or_null(call.class_weight)};
  return call;
}

double* doubles(const Tensor& tensor) { return static_cast<double*>(tensor.mutable_data_ptr()); }

// Of the targets; a GPU has not looked.
void check(const DiceCall& call, const BadClass& bad) {
  const bool one = call.shape.classes == 1, soft = call.shape.soft;
  UF_CHECK_INPUT(!bad.found, "target contains ", bad.value, ", expected ", soft ? "probabilities, 0 to 1," : "classes 0 to ",
                 soft ? "" : std::to_string(one ? 1 : call.shape.classes - 1), " or ignore_index (", call.shape.ignore_index, "); ",
                 one ? "one channel tells two classes; " : "", "check the labels, or give the network more classes");
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> region_sums(const Tensor& logits, const Tensor& target,
                                                               std::optional<Tensor> weight, std::optional<Tensor> class_weight,
                                                               int64_t ignore_index, double smoothing, bool sigmoid, bool loss) {
  const Device device(logits);
  const DiceCall call = dice_call(logits, target, weight, class_weight, ignore_index, smoothing, sigmoid, loss);
  const auto sums = [&](const std::vector<int64_t>& size) { return new_tensor(logits, size, ScalarType::Double); };
  const int64_t n = call.shape.batch, k = call.shape.classes;
  const Tensor both = sums({n, k}), predicted = sums({n, k}), truth = sums({n, k}), cross_entropy = sums({n}), counted = sums({n});
  const Tensor workspace = sums({kernels::dice_cross_entropy_workspace(call.shape)});
  BadClass bad = {false, 0};
  run(device, kernels::region_sums, call.shape, call.inputs,
      DiceCrossEntropySums{doubles(both), doubles(predicted), doubles(truth), doubles(cross_entropy), doubles(counted)}, doubles(workspace), bad);
  check(call, bad);
  return {both, predicted, truth, cross_entropy, counted};
}

std::tuple<Tensor, Tensor> dice_cross_entropy(const Tensor& logits, const Tensor& target, std::optional<Tensor> weight,
                                              std::optional<Tensor> class_weight, int64_t ignore_index, double smoothing,
                                              bool sigmoid, double lambda_dice, double lambda_ce, double smooth_nr,
                                              double smooth_dr, bool background, bool batch, bool mean) {
  const Device device(logits);
  const DiceCall call = dice_call(logits, target, weight, class_weight, ignore_index, smoothing, sigmoid, lambda_ce != 0);
  const int64_t n = call.shape.batch, k = call.shape.classes;
  const Tensor sums = new_tensor(logits, {3 * n * k + 2 * n}, ScalarType::Double);
  const Tensor loss = new_tensor(logits, {}, wide_type(logits)), slopes = new_tensor(logits, {n, 2 * k + 1}, ScalarType::Double);
  const Tensor workspace = new_tensor(logits, {kernels::dice_cross_entropy_workspace(call.shape)}, ScalarType::Double);
  double* at = doubles(sums);
  BadClass bad = {false, 0};
  run(device, kernels::dice_cross_entropy, call.shape, call.inputs,
      DiceCrossEntropyOptions{lambda_dice, lambda_ce, smooth_nr, smooth_dr, background || k == 1 ? 0 : 1, batch, mean},
      DiceCrossEntropySums{at, at + n * k, at + 2 * n * k, at + 3 * n * k, at + 3 * n * k + n}, loss.mutable_data_ptr(),
      doubles(slopes), doubles(workspace), bad);
  check(call, bad);
  return {loss, slopes};
}

Tensor dice_cross_entropy_backward(const Tensor& slopes_in, const Tensor& logits, const Tensor& target,
                                   std::optional<Tensor> weight, std::optional<Tensor> class_weight, int64_t ignore_index,
                                   double smoothing, bool sigmoid, bool loss) {
  const Device device(logits);
  const DiceCall call = dice_call(logits, target, weight, class_weight, ignore_index, smoothing, sigmoid, loss);
  STD_TORCH_CHECK(slopes_in.scalar_type() == ScalarType::Double && slopes_in.numel() == call.shape.batch * (2 * call.shape.classes + 1),
                  "dice_cross_entropy_backward: slopes must be float64, (N, 2 K + 1)");
  const Tensor slopes = torch::stable::contiguous(slopes_in);
  const Tensor grad = new_tensor(logits, sizes(logits), std::nullopt, call.format);
  run(device, kernels::dice_cross_entropy_backward, call.shape, call.inputs, static_cast<const double*>(slopes.const_data_ptr()),
      grad.mutable_data_ptr());
  return grad;
}

}  // namespace

UF_OPERATOR(region_sums, region_sums)
UF_OPERATOR(dice_cross_entropy, dice_cross_entropy)
UF_OPERATOR(dice_cross_entropy_backward, dice_cross_entropy_backward)

}  // namespace uf::bindings
