// What every torch binding needs: torch's thread pool as uf::Parallel, the layout of a tensor, allocation.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cpu/huge_pages.h"
#include "cpu/parallel.h"

// Raises an error that is the caller's. unet_fast/ops/_record.py knows it by this code and makes an InputError of the rest.
#define UF_CHECK_INPUT(condition, ...) STD_TORCH_CHECK(condition, "[unet_fast.InputError] ", __VA_ARGS__)

namespace uf::bindings {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Parallel torch_parallel() {
  return Parallel(
      [](int64_t begin, int64_t end, int64_t grain, Parallel::Body body, void* context) {
        torch::stable::parallel_for(begin, end, grain, [&](int64_t b, int64_t e) { body(b, e, context); });
      },
      static_cast<int>(torch::stable::get_num_threads()));
}

// Sizes and strides as owned values: the views that sizes() returns die with the tensor.
inline std::vector<int64_t> sizes(const Tensor& tensor) {
  const auto view = tensor.sizes();
  return {view.begin(), view.end()};
}

inline std::vector<int64_t> strides(const Tensor& tensor) {
  const auto view = tensor.strides();
  return {view.begin(), view.end()};
}

inline MemoryFormat channels_last_format(int64_t dims) {
  return dims == 5 ? MemoryFormat::ChannelsLast3d : MemoryFormat::ChannelsLast;
}

// A new tensor of this shape on the device of `like`, uninitialised, in the dtype of `like` unless one is given.
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape,
                         std::optional<ScalarType> dtype = std::nullopt,
                         MemoryFormat format = MemoryFormat::Contiguous) {
  Tensor tensor = torch::stable::empty(shape, dtype.value_or(like.scalar_type()), std::nullopt, like.device(), std::nullopt,
                                       format);
  if (tensor.is_cpu()) {
    prefer_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * static_cast<int64_t>(tensor.element_size()));
  }
  return tensor;
}

// Whether a (N, C, [D,] H, W) tensor steps through memory channels first of all, as torch's channels-last formats do.
// Tensors with one channel or one pixel fit both layouts and count as planar.
inline bool is_channels_last(const Tensor& tensor) {
  const auto stride = strides(tensor);
  const auto size = sizes(tensor);
  const size_t last = stride.size() - 1;
  if (stride.size() < 4 || size[1] == 1 || stride[1] != 1) return false;
  int64_t pixels = 1;
  for (size_t d = 2; d <= last; ++d) pixels *= size[d];
  return pixels > 1 && stride[last] >= size[1];
}

}  // namespace uf::bindings
