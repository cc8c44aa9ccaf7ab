// Where a centred crop starts. An odd difference leaves the extra pixel behind the crop, for every dimension alike.
#pragma once

#include "common/macros.h"

namespace uf {

UF_HD_INLINE int64_t crop_start(int64_t full, int64_t crop) { return (full - crop) / 2; }

}  // namespace uf
