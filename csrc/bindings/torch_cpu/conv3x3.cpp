// Winograd's convolution over tensors. Maps lie channels-last for the kernels; others are copied, and the result is copied back.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bindings/shape_checks.h"
#include "bindings/tensor.h"
#include "common/crop.h"
#include "cpu/winograd.h"

namespace uf::bindings {
namespace {

using winograd::Activation;
using winograd::Level;
using winograd::Source;

// In front of transformed weights: the level that they are for, the fingerprint of the weights that they were made of, and
// whether a call has found that these have changed since, so that somebody makes new ones. A line of the cache.
struct Header {
  int32_t level;
  int32_t stale;
  uint64_t fingerprint;
};
constexpr int64_t kHeader = 16;  // floats
static_assert(sizeof(Header) <= kHeader * sizeof(float));

constexpr uint64_t kNoFingerprint = 14695981039346656037u;

// Some numbers of the tensors, spread over all of them, as one: other tensors give another one. It finds what a version counter
// does not see, such as an optimizer that writes through .data.
uint64_t fingerprint_of(const Tensor& dense, uint64_t hash = kNoFingerprint) {
  constexpr int64_t kSamples = 64;
  const auto* bytes = static_cast<const unsigned char*>(dense.const_data_ptr());
  const int64_t size = static_cast<int64_t>(dense.element_size()), step = std::max<int64_t>(1, dense.numel() / kSamples);
  for (int64_t i = 0; i < dense.numel(); i += step) {
    uint64_t number = 0;
    std::memcpy(&number, bytes + i * size, static_cast<size_t>(size));
    hash = (hash ^ number) * 1099511628211u;
  }
  return hash;
}

Tensor fingerprint_cpu(std::vector<Tensor> tensors) {
  STD_TORCH_CHECK(!tensors.empty(), "fingerprint: expected at least one tensor");
  uint64_t hash = kNoFingerprint;
  for (const Tensor& tensor : tensors)
    hash = fingerprint_of(torch::stable::contiguous(tensor, dense_format(tensor)), hash);
  const Tensor result = new_tensor(tensors[0], {}, ScalarType::Long);
  std::memcpy(result.mutable_data_ptr(), &hash, sizeof hash);
  return result;
}

winograd::Taps taps_of(const Tensor& weight) {
  return {static_cast<const float*>(weight.const_data_ptr()), weight.stride(0), weight.stride(1), weight.stride(2),
          weight.stride(3)};
}

// For the gradient of the input: in and out change places, and the kernel is turned round.
winograd::Taps taps_back(const winograd::Taps& taps) {
  return winograd::turned({taps.data, taps.in_step, taps.out_step, taps.y_step, taps.x_step});
}

void check(const Tensor& weight, const std::vector<int64_t>& channels) {
  int64_t sum = 0;
  for (const int64_t count : channels) sum += count;
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == sum && weight.size(2) == 3 && weight.size(3) == 3,
                  "conv3x3: weight must have shape (K, ", sum, ", 3, 3)");
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float, "conv3x3: tensors must be float32");
}

const std::vector<Tensor>& checked(const std::vector<Tensor>& inputs, const Tensor& weight, int64_t padding,
                                   int64_t activation) {
  checks::conv3x3(inputs, weight, padding, activation);
  return inputs;
}

std::vector<int64_t> channels_of(const std::vector<Tensor>& inputs) {
  std::vector<int64_t> channels;
  for (const Tensor& input : inputs) channels.push_back(input.size(1));
  return channels;
}

// The map itself where its channels are next to each other, else a channels-last copy.
Tensor channels_innermost(const Tensor& map) {
  STD_TORCH_CHECK(map.dim() == 4 && map.scalar_type() == ScalarType::Float, "conv3x3: maps must be (N, C, H, W) float32");
  if (map.numel() == 0 || map.size(1) == 1 || map.stride(1) == 1) return map;
  return torch::stable::contiguous(map, MemoryFormat::ChannelsLast);
}

Source source_of(const Tensor& map) {
  return {static_cast<const float*>(map.const_data_ptr()), nullptr, map.size(1), map.stride(0), map.stride(2),
          map.stride(3)};
}

winograd::Target target_of(const Tensor& map) {
  return {static_cast<float*>(map.mutable_data_ptr()), map.size(1), map.stride(0), map.stride(2), map.stride(3)};
}

std::vector<Tensor> all_innermost(const std::vector<Tensor>& maps) {
  std::vector<Tensor> result;
  for (const Tensor& map : maps) {
    result.push_back(channels_innermost(map));
    STD_TORCH_CHECK(map.size(0) == maps[0].size(0) && map.size(2) == maps[0].size(2) && map.size(3) == maps[0].size(3),
                    "conv3x3: inputs must have one batch, height and width");
  }
  return result;
}

// A map of this shape that the kernels can write.
Tensor new_map(const Tensor& like, const std::vector<int64_t>& shape) {
  return new_tensor(like, shape, std::nullopt, MemoryFormat::ChannelsLast);
}

// The layout of the result: that of the first input. A single channel fits both, and says by its step, or by that of its
// weights, which one is meant; that is also torch's rule.
MemoryFormat result_format(const Tensor& input, const Tensor& weight) {
  return dense_format(input.size(1) == 1 ? input.stride(1) == 1 || weight.stride(1) == 1 : is_channels_last(input));
}

Tensor in_layout(const Tensor& map, MemoryFormat format) {
  return format == MemoryFormat::ChannelsLast ? map : torch::stable::contiguous(map, format);
}

Tensor conv3x3_weights_cpu(const Tensor& weight_in, std::vector<int64_t> channels) {
  check(weight_in, channels);
  const Tensor weight = torch::stable::contiguous(weight_in, dense_format(weight_in));
  const Level level = winograd::best_level();
  const std::vector<int64_t> out_channels = {weight.size(0)};
  const Tensor result = new_tensor(weight, {kHeader + winograd::weight_floats(level, channels, out_channels)});
  auto* floats = static_cast<float*>(result.mutable_data_ptr());
  std::fill_n(floats, kHeader, 0.0f);
  const Header header = {static_cast<int32_t>(level), 0, fingerprint_of(weight)};
  std::memcpy(floats, &header, sizeof header);
  winograd::transform_weights(level, taps_of(weight), channels, out_channels, floats + kHeader, torch_parallel());
  return result;
}

// The transformed weights in this tensor, or null where they are none for this shape and level, or of other weights than these.
const float* transformed_of(const Tensor& transformed, const Tensor& weight, const std::vector<int64_t>& channels, Level level) {
  if (transformed.scalar_type() != ScalarType::Float ||
      transformed.numel() != kHeader + winograd::weight_floats(level, channels, {weight.size(0)}))
    return nullptr;
  const auto* floats = static_cast<const float*>(transformed.const_data_ptr());
  Header header;
  std::memcpy(&header, floats, sizeof header);
  if (header.level != static_cast<int32_t>(level)) return nullptr;
  if (header.fingerprint == fingerprint_of(weight)) return floats + kHeader;
  const int32_t stale = 1;
  std::memcpy(static_cast<char*>(transformed.mutable_data_ptr()) + offsetof(Header, stale), &stale, sizeof stale);
  return nullptr;
}

// A convolution of maps to weight.size(0) channels; the targets are up to the caller.
struct Call {
  std::vector<int64_t> channels;
  std::vector<Tensor> maps;
  Tensor weight;
  std::optional<Tensor> bias;
  winograd::FirstLayer first;
  winograd::Convolution work;

  Call(const Call&) = delete;  // work points to first

  Call(const std::vector<Tensor>& inputs, const Tensor& weight_in, const std::optional<Tensor>& bias_in, int64_t padding,
       int64_t activation, double slope)
      : channels(channels_of(checked(inputs, weight_in, padding, activation))), maps(all_innermost(inputs)),
        weight(torch::stable::contiguous(weight_in, dense_format(weight_in))),
        bias(dense_wide(bias_in, maps[0], weight_in.size(0), "conv3x3: bias")) {
    check(weight, channels);
    work = {{}, {}, maps[0].size(0), maps[0].size(2), maps[0].size(3), padding, nullptr,
            static_cast<Activation>(activation), static_cast<float>(slope)};
    for (const Tensor& map : maps) work.sources.push_back(source_of(map));
    work.bias = static_cast<const float*>(data_or_null(bias));
  }

  // Of the output of another convolution, with a ReLU, of one image of few channels, which must outlive this.
  Call(const Call& front, const Tensor& weight_in, const std::optional<Tensor>& bias_in)
      : channels{front.weight.size(0)}, weight(torch::stable::contiguous(weight_in, dense_format(weight_in))),
        bias(dense_wide(bias_in, front.maps[0], weight_in.size(0), "conv3x3_pool: bias")) {
    const winograd::Convolution& image = front.work;
    STD_TORCH_CHECK(image.sources.size() == 1 && front.channels[0] >= 1 && front.channels[0] <= winograd::kThin,
                    "conv3x3_pool: a first layer must have one input, of 1 to ", winograd::kThin, " channels");
    check(weight, channels);
    first = {image.sources[0], image.height, image.width, image.padding, taps_of(front.weight), image.bias};
    work = {{{nullptr, nullptr, channels[0], 0, 0, 0}}, {}, image.batch, image.out_height(), image.out_width(),
            image.padding, static_cast<const float*>(data_or_null(bias)), Activation::kRelu};
    work.first = &first;
  }

  void run(const std::optional<Tensor>& transformed) const {
    const Level level = winograd::best_level();
    const float* weights = transformed.has_value() && !winograd::is_thin(work)
                               ? transformed_of(*transformed, weight, channels, level)
                               : nullptr;
    if (weights)
      winograd::convolve(level, work, weights, torch_parallel());
    else
      winograd::convolve(level, work, taps_of(weight), torch_parallel());
  }
};

Tensor conv3x3_cpu(std::vector<Tensor> inputs, const Tensor& weight, std::optional<Tensor> bias,
                   std::optional<Tensor> transformed, int64_t padding, int64_t activation, double slope) {
  Call call(inputs, weight, bias, padding, activation, slope);
  const Tensor out =
      new_map(call.maps[0], {call.work.batch, weight.size(0), call.work.out_height(), call.work.out_width()});
  call.work.targets.push_back(target_of(out));
  if (out.numel() > 0) call.run(transformed);
  return in_layout(out, result_format(inputs[0], weight));
}

// With a ReLU: its 2x2 max-pool, and the centre of it in the first channels of a map with room for up_channels more. With
// first_weight, of the output of a convolution by those, with a ReLU and the same padding, which is never written.
std::tuple<Tensor, Tensor> conv3x3_pool_cpu(std::vector<Tensor> inputs, const Tensor& weight, std::optional<Tensor> bias,
                                            std::optional<Tensor> transformed, int64_t padding,
                                            std::vector<int64_t> skip_size, int64_t up_channels,
                                            std::optional<Tensor> first_weight, std::optional<Tensor> first_bias) {
  const auto relu = static_cast<int64_t>(Activation::kRelu);
  const Call front(inputs, first_weight.value_or(weight), first_weight.has_value() ? first_bias : bias, padding, relu, 0);
  Call call = first_weight.has_value() ? Call(front, weight, bias) : Call(inputs, weight, bias, padding, relu, 0);
  const Tensor& image = front.maps[0];
  const int64_t height = call.work.out_height(), width = call.work.out_width(), channels = weight.size(0);
  checks::sides(skip_size, 0, height, width, "conv3x3_pool: skip_size");
  STD_TORCH_CHECK(height >= 2 && width >= 2 && up_channels >= 0 && up_channels <= (int64_t{1} << 31),
                  "conv3x3_pool: expected an output of at least 2 x 2, and up_channels of at least 0");
  const Tensor pooled = new_map(image, {call.work.batch, channels, height / 2, width / 2});
  const Tensor buffer = new_map(image, {call.work.batch, channels + up_channels, skip_size[0], skip_size[1]});
  winograd::PoolTargets pool = {target_of(pooled), target_of(buffer), crop_start(height, skip_size[0]),
                                crop_start(width, skip_size[1]), skip_size[0], skip_size[1]};
  pool.skip.channels = channels;
  call.work.targets.push_back(pool.skip);
  call.work.pool = &pool;
  if (call.work.batch > 0) call.run(transformed);
  const MemoryFormat format = result_format(inputs[0], first_weight.value_or(weight));
  return {in_layout(pooled, format), in_layout(buffer, format)};
}

// The gradients of the inputs, of the weight and of the bias; those that are not wanted are empty.
std::vector<Tensor> conv3x3_backward_cpu(const Tensor& grad_in, std::vector<Tensor> inputs, const Tensor& weight_in,
                                         std::optional<Tensor> out_in, int64_t padding, double slope, bool want_inputs,
                                         bool want_weight, bool want_bias) {
  checks::conv3x3_backward(grad_in, inputs, weight_in, out_in, padding);
  const std::vector<int64_t> channels = channels_of(inputs);
  check(weight_in, channels);
  const Tensor weight = torch::stable::contiguous(weight_in, dense_format(weight_in));
  const Level level = winograd::best_level();
  std::optional<Tensor> out;
  Tensor grad = channels_innermost(grad_in);
  if (out_in.has_value()) {
    // gradient and mask are read together, so they must lie in one way
    out = channels_innermost(*out_in);
    if (strides(*out) != strides(grad)) {
      out = torch::stable::contiguous(*out_in, MemoryFormat::ChannelsLast);
      grad = torch::stable::contiguous(grad_in, MemoryFormat::ChannelsLast);
    }
  }
  Source gradient = source_of(grad);
  if (out.has_value()) gradient.mask = static_cast<const float*>(out->const_data_ptr());
  std::vector<Tensor> results;
  const auto none = [&] { return new_tensor(grad, {0}); };  // results must not share memory

  std::vector<Tensor> grad_inputs;
  for (const Tensor& input : inputs) grad_inputs.push_back(want_inputs ? new_map(grad, sizes(input)) : none());
  if (want_inputs && grad.numel() > 0) {
    winograd::Convolution back = {{gradient}, {}, grad.size(0), grad.size(2), grad.size(3), 2 - padding, nullptr};
    back.mask_slope = static_cast<float>(slope);
    back.sum = winograd::gradient_sum(grad.size(1));
    for (const Tensor& target : grad_inputs) back.targets.push_back(target_of(target));
    winograd::convolve(level, back, taps_back(taps_of(weight)), torch_parallel());
  }
  for (size_t i = 0; i < inputs.size(); ++i)
    results.push_back(want_inputs ? in_layout(grad_inputs[i], dense_format(inputs[i])) : grad_inputs[i]);

  const Tensor grad_weight = want_weight ? new_tensor(weight, sizes(weight), std::nullopt, dense_format(weight)) : none();
  const Tensor grad_bias = want_bias ? new_tensor(weight, {weight.size(0)}) : none();
  if (want_weight || want_bias) {
    const std::vector<Tensor> maps = all_innermost(inputs);
    // the sums of the bias fall out of the transforms for the weight's gradient, which is then computed in any case
    const Tensor sums = want_weight ? grad_weight : new_tensor(weight, sizes(weight), std::nullopt, dense_format(weight));
    winograd::TapGradient work = {{}, gradient, maps[0].size(0), maps[0].size(2), maps[0].size(3), padding,
                                  static_cast<float>(slope), static_cast<float*>(sums.mutable_data_ptr()),
                                  sums.stride(0), sums.stride(1), sums.stride(2), sums.stride(3),
                                  want_bias ? static_cast<float*>(grad_bias.mutable_data_ptr()) : nullptr};
    for (const Tensor& map : maps) work.sources.push_back(source_of(map));
    winograd::tap_gradient(level, work, torch_parallel());
  }
  results.push_back(grad_weight);
  results.push_back(grad_bias);
  return results;
}

}  // namespace

UF_OPERATOR_ON(CPU, conv3x3, conv3x3_cpu)
UF_OPERATOR_ON(CPU, conv3x3_pool, conv3x3_pool_cpu)
UF_OPERATOR_ON(CPU, fingerprint, fingerprint_cpu)
UF_OPERATOR_ON(CPU, conv3x3_weights, conv3x3_weights_cpu)
UF_OPERATOR_ON(CPU, conv3x3_backward, conv3x3_backward_cpu)

}  // namespace uf::bindings
