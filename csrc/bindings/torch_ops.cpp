// The schema of every operator. What each does is documented at the public function of the same name in unet_fast/ops.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(unet_fast, m) {
  m.def("crop_concat(Tensor skip, Tensor up) -> Tensor");
  m.def("crop_concat_backward(Tensor grad, SymInt skip_channels, SymInt[] skip_size) -> Tensor");
}
