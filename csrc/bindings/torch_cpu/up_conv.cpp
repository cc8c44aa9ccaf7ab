// The matrix products are torch's own (oneDNN or MKL), through the C interface of its CPU kernels: below the dispatcher, so
// that neither autograd nor autocast sees them. Workspace: one product, at most the size of the up-sampled image.
#include "cpu/up_conv.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "bindings/junction_call.h"
#include "bindings/torch_cpu/channel_gradient.h"
#include "bindings/up_conv_matrix.h"
#include "common/crop.h"
#include "cpu/copy_rows.h"
#include "cpu/winograd.h"

namespace uf::bindings {
namespace {

void multiply(const Matrix& a, const Matrix& b, const Matrix& out) {
  const Tensor to = out.view(), left = a.view(), right = b.view();
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(to.get(), left.get(), right.get()));
}

void add_product(const Matrix& a, const Matrix& b, const Matrix& out) {
  const Tensor to = out.view(), left = a.view(), right = b.view();
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(to.get(), to.get(), left.get(), right.get(), 1.0, 1.0));
}

// `out` (N, a.rows, pixels) = a times `images` (N, a.columns, pixels), both dense and planar.
void multiply_images(const UpConvCall& call, const Matrix& a, const Tensor& images, const Tensor& out) {
  // What a product costs whatever its size is paid once for all images then. In 16 bits oneDNN brings `a` into its own layout
  // for every image of such a call, which costs more than it saves from 256 x 512 numbers on.
  constexpr int64_t kLargest16 = 1 << 15;
  const bool wide = call.type == DType::kFloat32 || call.type == DType::kFloat64;
  if (call.batch > 1 && (wide || a.rows * a.columns <= kLargest16)) {
    const int64_t pixels = call.pixels();
    const auto all = [&](const Tensor& tensor, int64_t channels) {
      return plane_matrix(tensor, 0, channels, pixels).batch(call.batch, channels * pixels);
    };
    const Tensor to = all(out, a.rows), left = a.batch(call.batch, 0), right = all(images, a.columns);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_bmm_out(to.get(), left.get(), right.get()));
    return;
  }
  for (int64_t n = 0; n < call.batch; ++n)
    multiply(a, plane_matrix(images, n, a.columns, call.pixels()), plane_matrix(out, n, a.rows, call.pixels()));
}

Tensor product_for(const UpConvCall& call) { return new_tensor(call.x, {call.batch * call.pixels() * 4 * call.channels}); }

// Channels-last, so many lines of the images at a time that their product is still in a core's cache when it is moved.
void multiply_lines(const UpConvCall& call, const void* bias, char* image) {
  constexpr int64_t kInCache = 1 << 20;  // bytes
  const int64_t e = static_cast<int64_t>(call.x.element_size()), k = call.in_channels, columns = 4 * call.channels;
  const int64_t lines = call.batch * call.height, line = call.width * columns * e;
  const bool one_image = call.stride.batch == 2 * call.height * call.stride.y;  // to the lines it is
  const int64_t most = one_image ? std::max<int64_t>(1, kInCache / line) : lines;
  const Tensor product = new_tensor(call.x, {std::min(most, lines) * call.width * columns});
  for (int64_t y = 0; y < lines; y += most) {
    const int64_t count = std::min(most, lines - y), rows = count * call.width;
    multiply({call.x, rows, k, k, 1, y * call.width * k}, weight_matrix(call, call.weight), {product, rows, columns, columns, 1});
    const UpConvShape shape = one_image ? UpConvShape{1, call.channels, count, call.width, true} : shape_of(call);
    up_conv_scatter(shape, call.type, product.const_data_ptr(), bias, image + 2 * y * call.stride.y * e, call.stride,
                    torch_parallel());
  }
}

void up_conv_into_cpu(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias_in, Tensor buffer) {
  checks::no_overlap(buffer, "up_conv_into: buffer");
  const UpConvCall call = up_conv_call(x, weight, buffer, "up_conv_into");
  if (x.numel() == 0 || call.channels == 0) return;
  const std::optional<Tensor> bias = dense_wide(bias_in, x, call.channels, "up_conv_into: bias");
  if (call.channels_last && call.type == DType::kFloat32) {  // no product is stored
    const auto* source = static_cast<const float*>(call.x.const_data_ptr());
    winograd::up_convolve(
        winograd::best_level(),
        {{source, nullptr, call.in_channels, call.x.stride(0), call.x.stride(2), call.x.stride(3)},
         {reinterpret_cast<float*>(first_channel(call, buffer)), call.channels, call.stride.batch, call.stride.y,
          call.stride.x},
         call.batch, call.height, call.width, static_cast<const float*>(call.weight.const_data_ptr()),
         static_cast<const float*>(data_or_null(bias))},
        torch_parallel());
    return;
  }
  if (call.channels_last) return multiply_lines(call, data_or_null(bias), first_channel(call, buffer));
  const Tensor product = product_for(call);
  multiply_images(call, weight_matrix(call, call.weight).transposed(), call.x, product);
  up_conv_scatter(shape_of(call), call.type, product.const_data_ptr(), data_or_null(bias), first_channel(call, buffer),
                  call.stride, torch_parallel());
}

// The up-sampled map by itself, in memory that is kept where it is large.
Tensor up_conv_cpu(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias) {
  for (const Tensor* tensor : {&x, &weight}) checks::rank(*tensor, 4, 4, "up_conv: a tensor");
  const Tensor out = new_tensor(x, {x.size(0), weight.size(1), 2 * x.size(2), 2 * x.size(3)}, std::nullopt,
                                dense_format(is_channels_last(x)));
  if (out.numel() > 0) up_conv_into_cpu(x, weight, bias, out);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> up_conv_into_backward_cpu(const Tensor& grad_in, const Tensor& x, const Tensor& weight,
                                                             bool want_x, bool want_weight, bool want_bias) {
  const Tensor grad = innermost_dense(grad_in, is_channels_last(grad_in));
  const UpConvCall call = up_conv_call(x, weight, grad, "up_conv_into_backward");
  const MemoryFormat format = dense_format(call.channels_last);
  const Tensor none = new_tensor(x, {0}), product = product_for(call);
  const Tensor grad_x = want_x ? new_tensor(x, sizes(x), std::nullopt, format) : none;
  const Tensor grad_weight =
      want_weight ? new_tensor(weight, sizes(weight), std::nullopt, MemoryFormat::ChannelsLast) : none;
  ChannelGradient bias(want_bias, up_conv_parts(shape_of(call)), call.channels);
  up_conv_gather(shape_of(call), call.type, first_channel(call, grad), call.stride, product.mutable_data_ptr(),
                 bias.sums(), bias.workspace(), torch_parallel());
  const int64_t rows = call.batch * call.pixels(), k = call.in_channels, columns = 4 * call.channels;
  if (rows == 0) {
    if (want_weight) {
      Tensor zeros = grad_weight;
      torch::stable::zero_(zeros);
    }
    return {grad_x, grad_weight, bias.tensor(grad)};
  }
  const Matrix w = weight_matrix(call, call.weight);
  if (call.channels_last) {
    const Matrix g = {product, rows, columns, columns, 1};
    if (want_x) multiply(g, w.transposed(), {grad_x, rows, k, k, 1});
    if (want_weight) multiply(Matrix{call.x, rows, k, k, 1}.transposed(), g, weight_matrix(call, grad_weight));
    return {grad_x, grad_weight, bias.tensor(grad)};
  }
  if (want_x) multiply_images(call, w, product, grad_x);
  const bool summed = call.type == DType::kFloat32 || call.type == DType::kFloat64;
  if (want_weight && (call.batch == 1 || summed)) {
    for (int64_t n = 0; n < call.batch; ++n) {
      const Matrix image = plane_matrix(call.x, n, k, call.pixels());
      const Matrix gradient = plane_matrix(product, n, columns, call.pixels()).transposed();
      (n == 0 ? multiply : add_product)(image, gradient, weight_matrix(call, grad_weight));
    }
  } else if (want_weight) {
    // one product over all images: sums of several, each rounded to 16 bits, would be less exact
    const auto pixels_first = [&](const Tensor& tensor, int64_t channels) {
      const Tensor image = torch::stable::view(tensor, {call.batch, channels, call.pixels()});
      return torch::stable::contiguous(torch::stable::transpose(image, 1, 2));
    };
    const Tensor xs = pixels_first(call.x, k), gs = pixels_first(product, columns);
    multiply(Matrix{xs, rows, k, k, 1}.transposed(), {gs, rows, columns, columns, 1}, weight_matrix(call, grad_weight));
  }
  return {grad_x, grad_weight, bias.tensor(grad)};
}

// The first channels of `out` become the centre of `skip`.
void copy_crop(const Tensor& skip_in, const Tensor& out) {
  const bool last = is_channels_last(out);
  const Tensor skip = innermost_dense(skip_in, last);
  const ImageStride from = image_stride(skip), to = image_stride(out);
  const int64_t e = static_cast<int64_t>(out.element_size()), channels = skip.size(1), height = out.size(2);
  const int64_t width = out.size(3), planes = last ? 1 : channels;
  const char* source = static_cast<const char*>(skip.const_data_ptr()) +
                       (crop_start(skip.size(2), height) * from.y + crop_start(skip.size(3), width) * from.x) * e;
  char* target = static_cast<char*>(out.mutable_data_ptr());
  const bool streamed = past_caches(out.numel() * e);
  torch_parallel()(skip.size(0) * planes * height, (1 << 15) / (width * (last ? channels : 1) + 1) + 1,
                   [&](int64_t begin, int64_t end) {
                     for (int64_t unit = begin; unit < end; ++unit) {
                       const int64_t y = unit % height, c = unit / height % planes, n = unit / height / planes;
                       char* row = target + (n * to.batch + c * to.channel + y * to.y) * e;
                       const char* start = source + (n * from.batch + c * from.channel + y * from.y) * e;
                       copy_rows(row, to.x * e, start, from.x * e, (last ? channels : 1) * e, width, streamed);
                     }
                     if (streamed) end_stream();
                   });
}

Tensor up_conv_crop_concat_cpu(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, const Tensor& skip) {
  for (const Tensor* tensor : {&x, &weight, &skip}) checks::rank(*tensor, 4, 4, "up_conv_crop_concat: a tensor");
  checks::same_dtype(x, skip, "up_conv_crop_concat");
  STD_TORCH_CHECK(skip.size(0) == x.size(0) && skip.size(2) >= 2 * x.size(2) && skip.size(3) >= 2 * x.size(3),
                  "up_conv_crop_concat: skip must have the batch of x, and at least twice its height and width");
  const Tensor out = new_tensor(x, {x.size(0), skip.size(1) + weight.size(1), 2 * x.size(2), 2 * x.size(3)},
                                std::nullopt, dense_format(is_channels_last(x)));
  if (out.numel() == 0) return out;
  if (skip.size(1) > 0) copy_crop(skip, out);
  up_conv_into_cpu(x, weight, bias, out);
  return out;
}

}  // namespace

UF_OPERATOR_ON(CPU, up_conv_into, up_conv_into_cpu)
UF_OPERATOR_ON(CPU, up_conv, up_conv_cpu)
UF_OPERATOR_ON(CPU, up_conv_into_backward, up_conv_into_backward_cpu)
UF_OPERATOR_ON(CPU, up_conv_crop_concat, up_conv_crop_concat_cpu)

}  // namespace uf::bindings
