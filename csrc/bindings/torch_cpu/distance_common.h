// What the CPU bindings of the distance ops share besides bindings/distance_call.h.
#pragma once

#include "bindings/distance_call.h"
#include "cpu/distance_grid.h"

namespace uf::bindings {

inline void check_labels(const BadLabel& bad) {
  UF_CHECK_INPUT(!bad.found, "instances contains ", bad.value,
                  ", expected labels 0 (background) to 2147483647; relabel the cells");
}

}  // namespace uf::bindings
