// elastic_warp for NumPy arrays. Arrays arrive C-contiguous: images (N, C, H, W), displacement (N, 2, gh, gw) and matrix
// (N, 2, 3) float64. The names were turned into numbers by unet_fast/numpy.py.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "bindings/numpy_array.h"
#include "bindings/numpy_pool.h"
#include "cpu/elastic_warp.h"

namespace uf::bindings {

namespace py = pybind11;

inline std::vector<py::array> elastic_warp_arrays(const std::vector<py::array>& inputs,
                                                  const py::array_t<double, py::array::c_style>& displacement,
                                                  const std::optional<py::array_t<double, py::array::c_style>>& matrix,
                                                  const std::vector<int64_t>& output_size,
                                                  const std::vector<int64_t>& interpolation,
                                                  const std::vector<double>& fill, int64_t field, int64_t padding) {
  WarpFrame frame{};
  frame.batch = inputs[0].shape(0);
  frame.height = inputs[0].shape(2);
  frame.width = inputs[0].shape(3);
  frame.displacement = {displacement.data(), true};
  frame.grid_height = displacement.shape(2);
  frame.grid_width = displacement.shape(3);
  frame.matrix = {matrix ? matrix->data() : nullptr, true};
  frame.field = static_cast<Field>(field);
  frame.padding = static_cast<Padding>(padding);
  std::vector<py::array> outputs;
  std::vector<WarpImage> images;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const py::array& input = inputs[i];
    WarpImage image{};
    image.out_height = output_size[2 * i];
    image.out_width = output_size[2 * i + 1];
    image.channels = input.shape(1);
    outputs.emplace_back(input.dtype(),
                         std::vector<py::ssize_t>{input.shape(0), input.shape(1), image.out_height, image.out_width});
    image.input = input.data();
    image.element_size = input.itemsize();
    for (int d = 0; d < 4; ++d) image.stride[d] = input.strides(d) / input.itemsize();
    image.output = outputs.back().mutable_data();
    image.type = dtype_of(input);
    image.interpolation = static_cast<Interpolation>(interpolation[i]);
    image.fill = fill[i];
    frame.wide = frame.wide || image.type == DType::kFloat64;
    images.push_back(image);
  }
  {
    py::gil_scoped_release release;
    elastic_warp(frame, images.data(), static_cast<int>(images.size()), pool_parallel());
  }
  return outputs;
}

inline void define_elastic_warp(py::module_& m) {
  m.def("elastic_warp", &elastic_warp_arrays, py::arg("inputs"), py::arg("displacement"), py::arg("matrix"),
        py::arg("output_size"), py::arg("interpolation"), py::arg("fill"), py::arg("field"), py::arg("padding"));
}

}  // namespace uf::bindings
