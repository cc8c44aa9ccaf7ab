// The border term of the U-Net's loss weight, w0 * exp(-(d1 + d2)^2 / (2 sigma^2)) (Ronneberger, Fischer, Brox 2015),
// from squared distances to the nearest and the second nearest cell.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"
#include "common/softmax.h"

namespace uf {

// d1 + d2 beyond this many sigma makes the exponential smaller than 1e-7: nothing beside a class weight in float32.
inline constexpr double kBorderReach = 5.7;

struct ClassWeights {
  float background, cells;
};

// Each class present weighs pixels / (classes present * its pixels), so the mean over the image is 1.
UF_HD_INLINE ClassWeights balanced_weights(int64_t cells, int64_t pixels) {
  if (cells == 0 || cells == pixels) return {1.0f, 1.0f};
  const double half = 0.5 * static_cast<double>(pixels);
  return {static_cast<float>(half / static_cast<double>(pixels - cells)),
          static_cast<float>(half / static_cast<double>(cells))};
}

struct BorderTerm {
  float w0;
  float scale;  // -1 / (2 sigma^2)

  BorderTerm(double w0, double sigma)
      : w0(static_cast<float>(w0)), scale(static_cast<float>(-0.5 / (sigma * sigma))) {}

  UF_HD_INLINE float operator()(float squared1, float squared2) const {
    const float sum = std::sqrt(squared1) + std::sqrt(squared2);
    return w0 * exp_nonpositive(scale * (sum * sum));
  }
};

}  // namespace uf
