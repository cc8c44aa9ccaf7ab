// What the bindings for NumPy share, as tensor.h is for torch's: the dtype and the shape of an array.
#pragma once

#include <pybind11/numpy.h>

#include <vector>

#include "common/dtype.h"

namespace uf::bindings {

namespace py = pybind11;

inline std::vector<py::ssize_t> shape_of(const py::array& array) {
  return {array.shape(), array.shape() + array.ndim()};
}

inline DType dtype_of(const py::array& array) {
  const char kind = array.dtype().kind();
  const auto bytes = array.itemsize();
  if (kind == 'f') return bytes == 2 ? DType::kFloat16 : bytes == 4 ? DType::kFloat32 : DType::kFloat64;
  if (kind == 'i')
    return bytes == 1 ? DType::kInt8 : bytes == 2 ? DType::kInt16 : bytes == 4 ? DType::kInt32 : DType::kInt64;
  if (kind == 'u' && bytes <= 2) return bytes == 1 ? DType::kUInt8 : DType::kUInt16;
  return DType::kOther;
}

}  // namespace uf::bindings
