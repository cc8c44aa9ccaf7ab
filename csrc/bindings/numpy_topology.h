// The deformation behind the warping error, for NumPy arrays: C-contiguous (H, W).
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "cpu/simple_flips.h"

namespace uf::bindings {

namespace py = pybind11;
using MaskArray = py::array_t<bool, py::array::c_style>;

inline MaskArray flip_simple_pixels_array(const MaskArray& wanted,
                                          const py::array_t<double, py::array::c_style>& distance,
                                          const MaskArray& mask) {
  MaskArray out({mask.shape(0), mask.shape(1)});
  const bool *goal = wanted.data(), *from = mask.data();
  const double* far = distance.data();
  bool* to = out.mutable_data();
  py::gil_scoped_release release;
  flip_simple_pixels(mask.shape(0), mask.shape(1), goal, far, from, to);
  return out;
}

inline void define_topology_ops(py::module_& m) {
  m.def("flip_simple_pixels", &flip_simple_pixels_array, py::arg("wanted"), py::arg("distance"), py::arg("mask"));
}

}  // namespace uf::bindings
