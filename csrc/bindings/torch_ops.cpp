// The schema of every operator. What each does is documented at the public function of the same name in unet_fast/ops.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(unet_fast, m) {
  m.def("crop_concat(Tensor skip, Tensor up) -> Tensor");
  m.def("crop_concat_backward(Tensor grad, SymInt skip_channels, SymInt[] skip_size) -> Tensor");
  m.def(
      "weighted_cross_entropy(Tensor logits, Tensor target, Tensor? weight, int ignore_index, int reduction, "
      "bool want_grad) -> (Tensor loss, Tensor grad)");
  m.def("weighted_cross_entropy_backward(Tensor grad_output, Tensor grad) -> Tensor");
  m.def("nearest_two(Tensor instances, float[] spacing) -> (Tensor d1, Tensor d2)");
  m.def("distance_transform(Tensor mask, float[] spacing) -> Tensor");
  m.def(
      "weight_map(Tensor instances, float w0, float sigma, Tensor? class_weights, bool balanced, bool inside) -> "
      "Tensor");
  m.def(
      "elastic_warp(Tensor[] inputs, Tensor displacement, Tensor? matrix, SymInt[] output_size, int[] interpolation, "
      "float[] fill, int field, int padding) -> Tensor[]");
  m.def(
      "elastic_warp_backward(Tensor[] grads, Tensor displacement, Tensor? matrix, SymInt[] input_size, "
      "int[] interpolation, int field, int padding, bool deterministic) -> Tensor[]");
  m.def(
      "relu_pool_skip(Tensor x, Tensor? bias, SymInt[] skip_size, SymInt up_channels, bool want_code) -> "
      "(Tensor pooled, Tensor buffer, Tensor code)");
  m.def(
      "relu_pool_skip_backward(Tensor code, Tensor? grad_pooled, Tensor? grad_buffer, SymInt[] size, bool want_bias) -> "
      "(Tensor grad_x, Tensor grad_bias)");
  m.def("bias_relu(Tensor x, Tensor? bias) -> Tensor");
  m.def("bias_relu_(Tensor(a!) x, Tensor? bias) -> ()");
  m.def("bias_relu_backward(Tensor grad, Tensor out, bool want_bias) -> (Tensor grad_x, Tensor grad_bias)");
  m.def("conv_bias_relu(Tensor x, Tensor weight, Tensor? bias, SymInt padding) -> Tensor");
  m.def(
      "conv_bias_relu_backward(Tensor grad, Tensor x, Tensor weight, Tensor out, SymInt padding, bool want_x, "
      "bool want_weight, bool want_bias) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  m.def("up_conv_into(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) buffer) -> ()");
  m.def(
      "up_conv_into_backward(Tensor grad, Tensor x, Tensor weight, bool want_x, bool want_weight, bool want_bias) -> "
      "(Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  m.def("up_conv_crop_concat(Tensor x, Tensor weight, Tensor? bias, Tensor skip) -> Tensor");
  m.def(
      "head_cross_entropy(Tensor features, Tensor? feature_bias, bool relu, Tensor weight, Tensor? bias, Tensor target, "
      "Tensor? pixel_weight, int ignore_index, int reduction, bool want_grad) -> "
      "(Tensor loss, Tensor grad_features, Tensor grad_feature_bias, Tensor grad_weight, Tensor grad_bias)");
}
