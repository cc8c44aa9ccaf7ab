// Two ways to the same taps. Vector code serves blocks whose coordinates are finite and near enough to the image for
// 32-bit indices and a single reflection; a plain loop serves the rest.
#include "cpu/elastic_taps.h"

#include <cmath>
#include <limits>

#include "common/warp_taps.h"

namespace uf::warp {
namespace {

template <class A>
using Lanes = A[kBlock];

// The first tap of each pixel and the weights; the lowest and highest first tap. False when a coordinate is not near.
// __restrict: the outputs are one struct, which the coordinates are no part of.
template <Interpolation Kind, class A>
UF_INLINE bool first_taps(int64_t origin, const A* __restrict relative, int32_t* __restrict first,
                          Lanes<A>* __restrict weight, int32_t& low, int32_t& high) {
  constexpr A near = A(kNear);
  const int32_t from = static_cast<int32_t>(origin) + first_tap(Kind);
  int far = 0;
  int32_t least = std::numeric_limits<int32_t>::max(), most = std::numeric_limits<int32_t>::min();
  for (int k = 0; k < kBlock; ++k) {
    const A q = relative[k] >= -near && relative[k] <= near ? relative[k] : near + A(1);  // also for a NaN
    far |= q > near;
    const A whole = std::floor(q), t = q - whole;
    int32_t i = from + static_cast<int32_t>(whole);
    if constexpr (Kind == Interpolation::kNearest) {
      i += t >= A(0.5) ? 1 : 0;
    } else if constexpr (Kind == Interpolation::kBilinear) {
      weight[0][k] = A(1) - t;
      weight[1][k] = t;
    } else {
      A w[4];
      keys_weights(t, w);
      weight[0][k] = w[0];
      weight[1][k] = w[1];
      weight[2][k] = w[2];
      weight[3][k] = w[3];
    }
    first[k] = i;
    least = i < least ? i : least;
    most = i > most ? i : most;
  }
  low = least;
  high = most;
  return far == 0;
}

// False where a single reflection or 32-bit indices do not suffice: the taps are then unset.
template <Interpolation Kind, class A>
UF_INLINE bool vector_taps(Padding padding, int64_t origin, const A* relative, int32_t n, AxisTaps<A>& out) {
  constexpr int taps = tap_count(Kind);
  int32_t* first = out.index[0];
  int32_t low, high;
  if (!first_taps<Kind>(origin, relative, first, out.weight, low, high)) return false;
  high += taps - 1;
  out.consecutive = low >= 0 && high < n;
  out.outside = padding == Padding::kZeros && !out.consecutive;
  if (out.consecutive) return true;
  if (padding == Padding::kMirror && (low < 1 - n || high > 2 * (n - 1))) return false;
  for (int t = taps - 1; t >= 0; --t) {  // the first row, which the others are made from, comes last
    int32_t* index = out.index[t];
    if (padding == Padding::kMirror) {
      for (int k = 0; k < kBlock; ++k) index[k] = mirror_once(first[k] + t, n);
    } else {
      int32_t* inside = out.inside[t];
      for (int k = 0; k < kBlock; ++k) {
        const int32_t i = first[k] + t, positive = i < 0 ? 0 : i, nearest = positive < n ? positive : n - 1;
        inside[k] = i == nearest ? 1 : 0;
        index[k] = nearest;
      }
    }
  }
  return true;
}

template <Interpolation Kind, class A>
void scalar_taps(Padding padding, int64_t origin, const A* relative, int32_t n, AxisTaps<A>& out) {
  out.outside = padding == Padding::kZeros;
  out.consecutive = false;
  for (int k = 0; k < kBlock; ++k) {
    const AxisPoint<A> point = axis_point(padding, origin, relative[k], n);
    A weight[kMaxTaps];
    tap_weights<Kind>(point.rest, weight);
    for (int tap = 0; tap < tap_count(Kind); ++tap) {
      const int32_t i = first_index<Kind>(point) + tap;
      out.index[tap][k] = tap_index(padding, i, n);
      out.inside[tap][k] = i >= 0 && i < n ? 1 : 0;
      out.weight[tap][k] = weight[tap];
    }
  }
}

#define UF_TAPS(name, kind)                                                                            \
  UF_MULTIVERSION bool name(Padding padding, int64_t origin, const float* relative, int32_t n,         \
                            AxisTaps<float>& out) {                                                    \
    return vector_taps<Interpolation::kind>(padding, origin, relative, n, out);                        \
  }
UF_TAPS(nearest_taps, kNearest)
UF_TAPS(linear_taps, kBilinear)
UF_TAPS(cubic_taps, kBicubic)
#undef UF_TAPS

bool fast_taps(Interpolation kind, Padding padding, int64_t origin, const float* relative, int32_t n,
               AxisTaps<float>& out) {
  switch (kind) {
    case Interpolation::kNearest: return nearest_taps(padding, origin, relative, n, out);
    case Interpolation::kBilinear: return linear_taps(padding, origin, relative, n, out);
    default: return cubic_taps(padding, origin, relative, n, out);
  }
}
bool fast_taps(Interpolation kind, Padding padding, int64_t origin, const double* relative, int32_t n,
               AxisTaps<double>& out) {
  switch (kind) {
    case Interpolation::kNearest: return vector_taps<Interpolation::kNearest>(padding, origin, relative, n, out);
    case Interpolation::kBilinear: return vector_taps<Interpolation::kBilinear>(padding, origin, relative, n, out);
    default: return vector_taps<Interpolation::kBicubic>(padding, origin, relative, n, out);
  }
}

}  // namespace

template <class A>
void make_taps(Interpolation kind, Padding padding, int64_t origin, const A* relative, int64_t n, AxisTaps<A>& out) {
  const int32_t side = static_cast<int32_t>(n);
  if (fast_taps(kind, padding, origin, relative, side, out)) return;
  switch (kind) {
    case Interpolation::kNearest: return scalar_taps<Interpolation::kNearest>(padding, origin, relative, side, out);
    case Interpolation::kBilinear: return scalar_taps<Interpolation::kBilinear>(padding, origin, relative, side, out);
    default: return scalar_taps<Interpolation::kBicubic>(padding, origin, relative, side, out);
  }
}

template void make_taps<float>(Interpolation, Padding, int64_t, const float*, int64_t, AxisTaps<float>&);
template void make_taps<double>(Interpolation, Padding, int64_t, const double*, int64_t, AxisTaps<double>&);

}  // namespace uf::warp
