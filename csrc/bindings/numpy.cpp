// The CPU kernels for NumPy arrays: the module unet_fast._numpy. Checks and defaults are in unet_fast/numpy.py; here
// arrays arrive C-contiguous and of the dtype named in each signature.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "bindings/numpy_distance.h"
#include "bindings/numpy_elastic_warp.h"
#include "bindings/numpy_pool.h"
#include "bindings/numpy_topology.h"

namespace py = pybind11;

PYBIND11_MODULE(_numpy, m) {
  m.doc() = "CPU kernels of unet_fast for NumPy arrays";
  m.def("threads", [] { return uf::bindings::Pool::instance().threads(); });
  m.def("set_threads", [](int wanted) { uf::bindings::Pool::instance().set_threads(wanted); });
  uf::bindings::define_distance_ops(m);
  uf::bindings::define_elastic_warp(m);
  uf::bindings::define_topology_ops(m);
}
