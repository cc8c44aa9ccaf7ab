// Cells grown over the background, nearest first, until one pixel of border is left between them.
#pragma once

#include <cstdint>

namespace uf {

// A watershed with lines of `distance`, which every background pixel has to the nearest cell, from `labels`, 0 =
// background; all (height, width). out: the grown labels, 0 on the lines; cells keep their pixels. Neighbours share an
// edge. Pixels are flooded by distance, equally near ones in the order in which they were reached, the cells' own pixels
// in the order of rows.
void thin_borders(int64_t height, int64_t width, const int32_t* labels, const float* distance, int32_t* out);

}  // namespace uf
