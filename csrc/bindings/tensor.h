// What every torch binding needs, once: torch's thread pool as uf::Parallel, the dtype and the layout of a tensor, allocation.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <vector>

#include "bindings/kept_memory.h"
#include "common/dtype.h"
#include "cpu/huge_pages.h"
#include "cpu/parallel.h"

// Raises an error that is the caller's. unet_fast/ops/_record.py knows it by this code and makes an InputError of the rest.
#define UF_CHECK_INPUT(condition, ...) STD_TORCH_CHECK(condition, "[unet_fast.InputError] ", __VA_ARGS__)

// Makes `function` the kernel of torch.ops.unet_fast.NAME on a kind of device, CPU or CUDA.
#define UF_OPERATOR_ON(DEVICE, NAME, FUNCTION) \
  STABLE_TORCH_LIBRARY_IMPL(unet_fast, DEVICE, m) { m.impl(#NAME, TORCH_BOX(&FUNCTION)); }

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

// The number of elements of one channel.
inline int64_t pixels_of(const Tensor& tensor) {
  int64_t pixels = 1;
  for (int64_t d = 2; d < tensor.dim(); ++d) pixels *= tensor.size(d);
  return pixels;
}

// ---- dtypes

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Byte: return DType::kUInt8;
    case ScalarType::Char: return DType::kInt8;
    case ScalarType::UInt16: return DType::kUInt16;
    case ScalarType::Short: return DType::kInt16;
    case ScalarType::Int: return DType::kInt32;
    case ScalarType::Long: return DType::kInt64;
    default: return DType::kOther;
  }
}

// The dtype of a tensor that has one of these; `what` names the tensor and `expected` the dtypes in the error.
inline DType checked_dtype(const Tensor& tensor, std::initializer_list<DType> allowed, const char* what,
                           const char* expected) {
  const DType type = dtype_of(tensor);
  STD_TORCH_CHECK(std::find(allowed.begin(), allowed.end(), type) != allowed.end(), what, " must be ", expected);
  return type;
}

inline DType floating_dtype(const Tensor& tensor, const char* what) {
  return checked_dtype(tensor, {DType::kFloat64, DType::kFloat32, DType::kFloat16, DType::kBFloat16}, what,
                       "float64, float32, float16 or bfloat16");
}

// The dtype of sums, biases and losses beside a tensor, see Wide.
inline ScalarType wide_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// ---- layouts

// Whether a (N, C, [D,] H, W) tensor steps through memory channels first of all, as torch's channels-last formats do.
// Tensors with one channel or one pixel fit both layouts and count as planar.
inline bool is_channels_last(const Tensor& tensor) {
  const int64_t dims = tensor.dim();
  if (dims < 4 || tensor.size(1) == 1 || tensor.stride(1) != 1) return false;
  return pixels_of(tensor) > 1 && tensor.stride(dims - 1) >= tensor.size(1);
}

// Whether torch's own convolutions take a (N, C, H, W) tensor for channels-last. They go by the strides alone, so that one
// channel can be either.
inline bool suggests_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4 || tensor.stride(1) == 0) return false;
  int64_t least = 0;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (tensor.size(d) == 0 || tensor.stride(d) < least) return false;
    if (d == 0 && least == tensor.stride(1)) return false;  // one pixel: both layouts
    least = tensor.stride(d) * tensor.size(d);
  }
  return true;
}

inline MemoryFormat dense_format(bool channels_last, int64_t dims = 4) {
  if (!channels_last) return MemoryFormat::Contiguous;
  return dims == 5 ? MemoryFormat::ChannelsLast3d : MemoryFormat::ChannelsLast;
}

// The dense layout that is nearest to a tensor's.
inline MemoryFormat dense_format(const Tensor& tensor) { return dense_format(is_channels_last(tensor), tensor.dim()); }

// The tensor itself where it steps by one element along the innermost dimension of the layout, else a copy that does.
inline Tensor innermost_dense(const Tensor& tensor, bool channels_last) {
  const int64_t dim = channels_last ? 1 : tensor.dim() - 1;
  if (tensor.size(dim) <= 1 || tensor.stride(dim) == 1) return tensor;
  return torch::stable::contiguous(tensor, dense_format(channels_last, tensor.dim()));
}

// The step from pixel to pixel when it is the same all over the image, else 0; 0 for pixels that share memory, too.
inline int64_t even_step(const Tensor& tensor) {
  int64_t step = 1, next = 0;
  bool first = true;
  for (int64_t d = tensor.dim() - 1; d >= 2; --d) {
    if (tensor.size(d) == 1) continue;
    if (!first && tensor.stride(d) != next) return 0;
    if (first) step = tensor.stride(d);
    first = false;
    next = tensor.stride(d) * tensor.size(d);
  }
  return step;
}

// ---- memory

inline std::vector<int64_t> dense_strides(const std::vector<int64_t>& shape, MemoryFormat format) {
  std::vector<size_t> order(shape.size());  // dimensions, the innermost first
  for (size_t d = 0; d < shape.size(); ++d) order[d] = shape.size() - 1 - d;
  if (format != MemoryFormat::Contiguous) std::rotate(order.begin(), order.end() - 2, order.end() - 1);
  std::vector<int64_t> strides(shape.size());
  int64_t step = 1;
  for (const size_t d : order) {
    strides[d] = step;
    step *= shape[d];
  }
  return strides;
}

// A large one on a CPU in memory that is kept, or nothing.
inline std::optional<Tensor> kept_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype,
                                         MemoryFormat format) {
#ifdef UF_KEEPS_MEMORY
  if (!like.is_cpu()) return std::nullopt;
  int64_t bytes = dtype == like.scalar_type() ? static_cast<int64_t>(like.element_size()) : 0;
  for (const int64_t length : shape)
    if (length < 0 || __builtin_mul_overflow(bytes, length, &bytes)) return std::nullopt;  // torch says what is wrong
  void* const block = KeptMemory::get().take(bytes);
  if (!block) return std::nullopt;
  return torch::stable::from_blob(block, shape, dense_strides(shape, format), like.device(), dtype,
                                  [bytes](void* data) { KeptMemory::get().give(data, bytes); });
#else
  return std::nullopt;
#endif
}

// A new tensor of this shape on the device of `like`, uninitialised, in the dtype of `like` unless one is given.
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape,
                         std::optional<ScalarType> dtype = std::nullopt,
                         MemoryFormat format = MemoryFormat::Contiguous) {
  if (const auto kept = kept_tensor(like, shape, dtype.value_or(like.scalar_type()), format)) return *kept;
  Tensor tensor = torch::stable::empty(shape, dtype.value_or(like.scalar_type()), std::nullopt, like.device(), std::nullopt,
                                       format);
  if (tensor.is_cpu()) {
    prefer_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * static_cast<int64_t>(tensor.element_size()));
  }
  return tensor;
}

// `count` wide numbers beside `images`, dense; nothing where nothing was given. `what` names them in the error.
inline std::optional<Tensor> dense_wide(const std::optional<Tensor>& tensor, const Tensor& images, int64_t count,
                                        const char* what) {
  if (!tensor.has_value()) return std::nullopt;
  STD_TORCH_CHECK(tensor->scalar_type() == wide_type(images) && tensor->numel() == count, what, " must hold ", count,
                  " float32 numbers (float64 beside float64)");
  return torch::stable::contiguous(*tensor);
}

inline const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

}  // namespace uf::bindings
