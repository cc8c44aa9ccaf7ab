// A mask deformed towards another one by flips that change no topology.
#pragma once

#include <cstdint>

namespace uf {

// Flips simple pixels of `mask` where it differs from `wanted`; all (height, width), with dark pixels all around. A
// simple pixel is one whose flip changes neither the 4-connected bright components nor the 8-connected dark ones.
// Sweeps visit the mismatches by falling `distance`, equally distant ones in the order of rows, and flip each that is
// simple at its turn, until a sweep changes nothing. Distances of mismatches are numbers, not NaN. out: the result.
void flip_simple_pixels(int64_t height, int64_t width, const bool* wanted, const double* distance, const bool* mask,
                        bool* out);

}  // namespace uf
