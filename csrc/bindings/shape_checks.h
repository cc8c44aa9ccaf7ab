// The shapes that the kernels rely on, checked where a call comes in: compiled and exported programs call the operators without
// the Python functions that check for people. A few comparisons of integers a call.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace uf::bindings::checks {

using torch::stable::Tensor;

inline void rank(const Tensor& tensor, int64_t low, int64_t high, const char* what) {
  STD_TORCH_CHECK(tensor.dim() >= low && tensor.dim() <= high, what, " has ", tensor.dim(), " dimensions, expected ", low,
                  low == high ? "" : " or more");
}

inline void same_dtype(const Tensor& a, const Tensor& b, const char* op) {
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), op, ": tensors must have the same dtype");
}

inline void same_shape(const Tensor& a, const Tensor& b, const char* op) {
  bool same = a.dim() == b.dim();
  for (int64_t d = 0; same && d < a.dim(); ++d) same = a.size(d) == b.size(d);
  STD_TORCH_CHECK(same, op, ": tensors must have the same shape");
}

// Two sides (h, w), both within [low, high].
inline void sides(const std::vector<int64_t>& size, int64_t low, int64_t height, int64_t width, const char* what) {
  STD_TORCH_CHECK(size.size() == 2 && size[0] >= low && size[1] >= low && size[0] <= height && size[1] <= width, what,
                  " must be two numbers from ", low, " to ", height, " and ", width);
}

// Whatever is written to must have a memory of its own for each element.
inline void no_overlap(const Tensor& tensor, const char* what) {
  if (tensor.numel() == 0) return;
  std::vector<std::pair<int64_t, int64_t>> axes;  // (stride, size)
  for (int64_t d = 0; d < tensor.dim(); ++d)
    if (tensor.size(d) > 1) axes.emplace_back(tensor.stride(d), tensor.size(d));
  std::sort(axes.begin(), axes.end());
  int64_t reached = 1;
  for (const auto& [stride, size] : axes) {
    STD_TORCH_CHECK(stride >= reached, what, " has elements that share memory; make it contiguous");
    reached = stride * (size - 1) + reached;
  }
}

inline bool is_real(const Tensor& tensor) {
  return tensor.scalar_type() == torch::headeronly::ScalarType::Float ||
         tensor.scalar_type() == torch::headeronly::ScalarType::Double;
}

constexpr int64_t kLargestSide = int64_t{1} << 30;

// A frame (N, H, W) of images that a field (N, 2, gh, gw) warps; `smooth` fields have a control point beyond each side.
inline void warp_frame(int64_t batch, int64_t height, int64_t width, const Tensor& displacement,
                       const std::optional<Tensor>& matrix, int64_t field, int64_t padding) {
  STD_TORCH_CHECK(height >= 1 && width >= 1 && height <= kLargestSide && width <= kLargestSide, "elastic_warp: images of ",
                  height, " x ", width, " pixels, expected sides from 1 to ", kLargestSide);
  STD_TORCH_CHECK(field >= 0 && field <= 2 && padding >= 0 && padding <= 2, "elastic_warp: there is no field ", field,
                  " or no padding ", padding);
  const int64_t least = field == 2 ? 4 : 1;
  STD_TORCH_CHECK(displacement.dim() == 4 && displacement.size(0) == batch && displacement.size(1) == 2 &&
                      displacement.size(2) >= least && displacement.size(3) >= least,
                  "elastic_warp: displacement must have the shape (N, 2, gh, gw), with at least ", least,
                  " control points an axis");
  STD_TORCH_CHECK(is_real(displacement), "elastic_warp: displacement must be float32 or float64");
  if (!matrix.has_value()) return;
  STD_TORCH_CHECK(is_real(*matrix), "elastic_warp: matrix must be float32 or float64");
  STD_TORCH_CHECK(matrix->dim() == 3 && matrix->size(0) == batch && matrix->size(1) == 2 && matrix->size(2) == 3,
                  "elastic_warp: matrix must have the shape (N, 2, 3)");
}

// Images (N, C, H, W) of one N (and one H, W, unless these are gradients of crops), one interpolation each.
inline void warp_images(const std::vector<Tensor>& images, const std::vector<int64_t>& interpolation, bool one_size) {
  STD_TORCH_CHECK(!images.empty() && interpolation.size() == images.size(),
                  "elastic_warp: expected at least one image, and one interpolation for each");
  for (size_t i = 0; i < images.size(); ++i) {
    rank(images[i], 4, 4, "elastic_warp: an image");
    STD_TORCH_CHECK(interpolation[i] >= 0 && interpolation[i] <= 2, "elastic_warp: there is no interpolation ",
                    interpolation[i]);
    STD_TORCH_CHECK(one_size || (is_real(images[i]) && images[i].scalar_type() == images[0].scalar_type()),
                    "elastic_warp_backward: gradients must all be float32, or all float64");
    bool fits = images[i].size(0) == images[0].size(0);
    for (int64_t d = 2; one_size && d < 4; ++d) fits = fits && images[i].size(d) == images[0].size(d);
    STD_TORCH_CHECK(fits, "elastic_warp: all images must have the same N, H and W");
  }
}

inline void warp_outputs(size_t images, const std::vector<int64_t>& size, const std::vector<double>& fill) {
  STD_TORCH_CHECK(size.size() == 2 * images && fill.size() == images,
                  "elastic_warp: expected two numbers of output_size and one fill for each image");
  for (const int64_t side : size)
    STD_TORCH_CHECK(side >= 1 && side <= kLargestSide, "elastic_warp: an output side of ", side, " pixels");
}

// Logits (N, K, ...) of at least one spatial dimension, and a reduction of the enumeration.
inline void cross_entropy(const Tensor& logits, int64_t reduction, const char* op) {
  STD_TORCH_CHECK(logits.dim() >= 2, op, ": expected a tensor (N, K, ...), not one of ", logits.dim(), " dimensions");
  STD_TORCH_CHECK(reduction >= 0 && reduction <= 3, op, ": there is no reduction ", reduction);
}

// Maps (N, C, H, W) of one size, not smaller than a 3x3 kernel, and the kernels over all their channels.
inline void conv3x3(const std::vector<Tensor>& inputs, const Tensor& weight, int64_t padding, int64_t activation) {
  STD_TORCH_CHECK(!inputs.empty() && padding >= 0 && padding <= 1 && activation >= 0 && activation <= 2,
                  "conv3x3: expected inputs, padding 0 or 1, and an activation from 0 to 2");
  rank(weight, 4, 4, "conv3x3: weight");
  for (const Tensor& input : inputs) {
    rank(input, 4, 4, "conv3x3: an input");
    STD_TORCH_CHECK(input.size(2) + 2 * padding >= 3 && input.size(3) + 2 * padding >= 3,
                    "conv3x3: an input with its padding is smaller than the kernel");
  }
}

// The gradient of a 3x3 convolution's output, of the size that the inputs and their padding give.
inline void conv3x3_backward(const Tensor& grad, const std::vector<Tensor>& inputs, const Tensor& weight,
                             const std::optional<Tensor>& out, int64_t padding) {
  STD_TORCH_CHECK(!inputs.empty() && padding >= 0 && padding <= 2, "conv3x3_backward: expected inputs, and a padding to 2");
  rank(grad, 4, 4, "conv3x3_backward: grad");
  for (const Tensor& input : inputs) {
    rank(input, 4, 4, "conv3x3_backward: an input");
    STD_TORCH_CHECK(grad.size(0) == input.size(0) && grad.size(2) == input.size(2) + 2 * padding - 2 &&
                        grad.size(3) == input.size(3) + 2 * padding - 2,
                    "conv3x3_backward: grad does not have the size of the output of these inputs");
  }
  STD_TORCH_CHECK(weight.dim() == 4 && grad.size(1) == weight.size(0),
                  "conv3x3_backward: grad must have a channel for each kernel of weight");
  if (out.has_value()) same_shape(grad, *out, "conv3x3_backward");
}

inline void weight_map(double w0, double sigma) {
  STD_TORCH_CHECK(w0 >= 0 && std::isfinite(w0) && std::isfinite(sigma) && sigma > 0, "weight_map: w0 is ", w0, " and sigma ", sigma,
                  ", expected finite numbers of at least 0, sigma above 0");
}

// The gradient of a loss: one wide number, or one for each pixel of the gradient (N, K, ...) of the logits.
inline void loss_gradient(const Tensor& grad_output, const Tensor& grad) {
  using torch::headeronly::ScalarType;
  const ScalarType type = grad.scalar_type(), wide = type == ScalarType::Double ? type : ScalarType::Float;
  STD_TORCH_CHECK(type == wide || type == ScalarType::BFloat16,  // of float16 logits the gradient is float32
                  "weighted_cross_entropy_backward: grad must be float32, bfloat16 or float64");
  STD_TORCH_CHECK(grad_output.scalar_type() == wide,
                  "weighted_cross_entropy_backward: grad_output must be float32 (float64 for float64 logits)");
  STD_TORCH_CHECK(grad_output.dim() == 0 || grad_output.numel() * grad.size(1) == grad.numel(),
                  "weighted_cross_entropy_backward: grad_output must be one number, or one for each pixel");
}

// Maps (N, C, [D,] H, W) of one dtype, of which `larger` holds `smaller` in the middle.
inline void crop(const Tensor& larger, const Tensor& smaller, const char* op) {
  rank(larger, 4, 5, op);
  same_dtype(larger, smaller, op);
  bool fits = larger.dim() == smaller.dim() && larger.size(0) == smaller.size(0);
  for (int64_t d = 2; fits && d < larger.dim(); ++d) fits = larger.size(d) >= smaller.size(d);
  STD_TORCH_CHECK(fits, op, ": skip must have the batch of up, and be as large or larger");
}

// The gradient (N, C1 + C2, ...) of a concatenation, and the map (C1, size) that was cropped for it.
inline void crop_backward(const Tensor& grad, int64_t channels, const std::vector<int64_t>& size, const char* op) {
  rank(grad, 4, 5, op);
  bool fits = static_cast<int64_t>(size.size()) == grad.dim() - 2 && channels >= 0 && channels <= grad.size(1);
  for (int64_t d = 2; fits && d < grad.dim(); ++d)
    fits = size[d - 2] >= grad.size(d) && size[d - 2] <= kLargestSide;
  STD_TORCH_CHECK(fits, op, ": skip_size must be as large as grad or larger, skip_channels some of its channels");
}

}  // namespace uf::bindings::checks
