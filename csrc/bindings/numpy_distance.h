// The distance ops for NumPy arrays: C-contiguous (N, H, W) or (N, D, H, W), in any dtype that the kernels take.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/numpy_array.h"
#include "bindings/numpy_pool.h"
#include "cpu/distance_transform.h"
#include "cpu/nearest_two.h"
#include "cpu/thin_borders.h"
#include "cpu/weight_map.h"

namespace uf::bindings {

namespace py = pybind11;
using FloatArray = py::array_t<float, py::array::c_style>;

inline DistanceGrid distance_grid(const py::array& array, const std::vector<double>& spacing) {
  const auto size = shape_of(array);
  for (const auto side : size) {
    if (side > kMaxSide) throw py::value_error("a side has " + std::to_string(side) + " pixels, at most 2^30 - 1 do");
  }
  if (size.size() == 3) return image_grid(size[0], size[1], size[2], spacing[0], spacing[1]);
  return {size[0], size[1], size[2], size[3], spacing[0], spacing[1], spacing[2]};
}

inline void check_labels(const BadLabel& bad) {
  if (!bad.found) return;
  throw py::value_error("instances contains " + std::to_string(bad.value) +
                        ", expected labels 0 (background) to 2147483647; relabel the cells");
}

inline std::pair<FloatArray, FloatArray> nearest_two_array(const py::array& instances,
                                                           const std::vector<double>& spacing) {
  const DistanceGrid grid = distance_grid(instances, spacing);
  FloatArray d1(shape_of(instances)), d2(shape_of(instances));
  const void* labels = instances.data();
  float *first = d1.mutable_data(), *second = d2.mutable_data();
  const DType type = dtype_of(instances);
  BadLabel bad;
  {
    py::gil_scoped_release release;
    bad = nearest_two(grid, labels, type, first, second, pool_parallel());
  }
  check_labels(bad);
  return {d1, d2};
}

inline FloatArray distance_transform_array(const py::array& mask, const std::vector<double>& spacing) {
  const DistanceGrid grid = distance_grid(mask, spacing);
  FloatArray out(shape_of(mask));
  const void* from = mask.data();
  float* to = out.mutable_data();
  const MaskElement element{mask.itemsize(), mask.dtype().kind() == 'f'};
  py::gil_scoped_release release;
  distance_transform(grid, from, element, to, pool_parallel());
  return out;
}

inline FloatArray weight_map_array(const py::array& instances, double w0, double sigma,
                                   std::optional<std::pair<float, float>> class_weights, bool balanced, bool inside) {
  const DistanceGrid grid = distance_grid(instances, {1.0, 1.0});
  const auto pair = class_weights.value_or(std::pair{1.0f, 1.0f});
  const WeightMapOptions options{w0, sigma, inside, balanced, {pair.first, pair.second}};
  FloatArray out(shape_of(instances));
  const void* labels = instances.data();
  float* to = out.mutable_data();
  const DType type = dtype_of(instances);
  BadLabel bad;
  {
    py::gil_scoped_release release;
    bad = weight_map(grid, labels, type, options, to, pool_parallel());
  }
  check_labels(bad);
  return out;
}

// (H, W) each
inline py::array_t<int32_t> thin_borders_array(const py::array_t<int32_t, py::array::c_style>& labels,
                                               const FloatArray& distance) {
  py::array_t<int32_t, py::array::c_style> out(shape_of(labels));
  const int32_t* from = labels.data();
  const float* far = distance.data();
  int32_t* to = out.mutable_data();
  py::gil_scoped_release release;
  thin_borders(labels.shape(0), labels.shape(1), from, far, to);
  return out;
}

inline void define_distance_ops(py::module_& m) {
  m.def("nearest_two", &nearest_two_array, py::arg("instances"), py::arg("spacing"));
  m.def("distance_transform", &distance_transform_array, py::arg("mask"), py::arg("spacing"));
  m.def("weight_map", &weight_map_array, py::arg("instances"), py::arg("w0"), py::arg("sigma"),
        py::arg("class_weights"), py::arg("balanced"), py::arg("inside"));
  m.def("thin_borders", &thin_borders_array, py::arg("labels"), py::arg("distance"));
}

}  // namespace uf::bindings
