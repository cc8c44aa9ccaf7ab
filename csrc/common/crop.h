// Where a centre crop starts.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace uf {

// An odd difference leaves the extra pixel behind the crop, for every dimension alike.
UF_HD_INLINE int64_t crop_start(int64_t full, int64_t crop) { return (full - crop) / 2; }

}  // namespace uf
