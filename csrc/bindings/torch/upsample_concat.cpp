#include "common/upsample_concat.h"

#include "bindings/device.h"
#include "bindings/shape_checks.h"

namespace uf::bindings {
namespace {

void four(const Tensor& tensor, int64_t out[4]) {
  for (int64_t d = 0; d < 4; ++d) out[d] = tensor.stride(d);
}

// A shape with all but the strides and the skip, for x of this size that is joined at a size of (height, width).
UpsampleConcatShape shape_of(const Tensor& like, int64_t channels, int64_t height, int64_t width, int64_t mode, int64_t border) {
  STD_TORCH_CHECK(mode >= 0 && mode <= 3 && border >= 0 && border <= 2, "upsample_concat: there is no mode ", mode,
                  " or no border ", border);
  UpsampleConcatShape s = {};
  s.batch = like.size(0);
  s.channels = channels;
  s.height = height;
  s.width = width;
  s.mode = static_cast<Upsample>(mode);
  s.border = static_cast<Border>(border);
  s.type = dtype_of(like);
  s.element = static_cast<int64_t>(like.element_size());
  STD_TORCH_CHECK(height >= 0 && width >= 0 && height <= checks::kLargestSide && width <= checks::kLargestSide,
                  "upsample_concat: a map of ", height, " x ", width, " pixels");
  STD_TORCH_CHECK(mode < 2 || is_floating(s.type), "upsample_concat: only floating numbers are interpolated");
  STD_TORCH_CHECK(s.element <= 8, "upsample_concat: elements of ", s.element, " bytes, expected at most 8");
  return s;
}

// The size of the joined map, and whether it is possible.
void check_sides(UpsampleConcatShape& s, int64_t out_height, int64_t out_width) {
  const int64_t up_height = s.height * s.factor(), up_width = s.width * s.factor();
  s.out_height = out_height;
  s.out_width = out_width;
  const bool fits = s.border == Border::kCrop ? out_height == up_height && out_width == up_width
                                              : out_height >= up_height && out_width >= up_width;
  STD_TORCH_CHECK(fits && (s.border != Border::kReplicate || s.height * s.width > 0 || out_height * out_width == 0),
                  "upsample_concat: the skip must be as large as the up-sampled map, or larger");
}

Tensor upsample_concat(const Tensor& skip_in, const Tensor& x_in, int64_t mode, bool up_first, int64_t border) {
  checks::rank(skip_in, 4, 4, "upsample_concat: skip");
  checks::rank(x_in, 4, 4, "upsample_concat: x");
  checks::same_dtype(skip_in, x_in, "upsample_concat");
  STD_TORCH_CHECK(skip_in.size(0) == x_in.size(0), "upsample_concat: skip and x must have the same batch");
  const Device device(x_in);
  const bool last = is_channels_last(x_in) && (is_channels_last(skip_in) || skip_in.size(1) == 1);
  UpsampleConcatShape s = shape_of(x_in, x_in.size(1), x_in.size(2), x_in.size(3), mode, border);
  s.skip_channels = skip_in.size(1);
  s.skip_height = skip_in.size(2);
  s.skip_width = skip_in.size(3);
  s.channels_last = last;
  s.up_first = up_first;
  const bool crop = s.border == Border::kCrop;
  check_sides(s, crop ? s.height * s.factor() : s.skip_height, crop ? s.width * s.factor() : s.skip_width);
  STD_TORCH_CHECK(s.skip_height >= s.out_height && s.skip_width >= s.out_width,
                  "upsample_concat: the skip must be as large as the up-sampled map, or larger");
  const Tensor skip = innermost_dense(skip_in, last), x = innermost_dense(x_in, last);
  four(skip, s.skip_stride);
  four(x, s.x_stride);
  const Tensor out = new_tensor(x, {s.batch, s.skip_channels + s.channels, s.out_height, s.out_width}, std::nullopt, dense_format(last));
  run(device, kernels::upsample_concat, s, skip.const_data_ptr(), x.const_data_ptr(), out.mutable_data_ptr());
  return out;
}

Tensor upsample_concat_backward(const Tensor& grad_in, std::vector<int64_t> size, int64_t mode, int64_t border) {
  checks::rank(grad_in, 4, 4, "upsample_concat_backward: grad");
  STD_TORCH_CHECK(size.size() == 2, "upsample_concat_backward: size must be two numbers");
  const Device device(grad_in);
  const bool last = is_channels_last(grad_in);
  const Tensor grad = innermost_dense(grad_in, last);
  UpsampleConcatShape s = shape_of(grad, grad.size(1), size[0], size[1], mode, border);
  floating_dtype(grad, "upsample_concat_backward: grad");
  s.channels_last = last;
  check_sides(s, grad.size(2), grad.size(3));
  four(grad, s.x_stride);
  const Tensor grad_x = new_tensor(grad, {s.batch, s.channels, s.height, s.width}, std::nullopt, dense_format(last));
  run(device, kernels::upsample_concat_backward, s, grad.const_data_ptr(), grad_x.mutable_data_ptr());
  return grad_x;
}

}  // namespace

UF_OPERATOR(upsample_concat, upsample_concat)
UF_OPERATOR(upsample_concat_backward, upsample_concat_backward)

}  // namespace uf::bindings
