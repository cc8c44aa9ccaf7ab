// Normalisation over an image, groups of its channels, or the batch, then an affine map and an activation: shape and kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/dtype.h"
#include "common/kernel.h"
#include "common/macros.h"
#include "common/softmax.h"

namespace uf {

enum class Activation : int32_t { kNone, kRelu, kLeaky, kSilu };

// A map (N, C, pixels), or (N, pixels, C) with channels_last, without gaps.
//
// A set is what has one mean and one variance: C / groups channels of one image, or, for groups = 0, one channel of the batch.
struct NormActivationShape {
  int64_t batch, channels, pixels, groups;
  bool channels_last;
  bool fixed;  // mean and var are given, of each channel (groups = 0), and constants of the gradient
  Activation activation;
  double eps, slope;  // kLeaky: the factor of negative numbers where no slope of each channel is given

  UF_HD int64_t sets() const { return groups == 0 ? channels : batch * groups; }
};

// Wide numbers of each channel (C): weight, bias, slope, null for 1, 0, NormActivationShape::slope. Of each set: mean, var.
struct NormActivationChannels {
  const void* weight;
  const void* bias;
  const void* slope;
};

// The activation of z, and the factor of its gradient, which is that of torch at 0.
template <Activation kind, class A>
UF_HD_INLINE A activated(A z, A slope) {
  if constexpr (kind == Activation::kRelu) return z < 0 ? A(0) : z;
  if constexpr (kind == Activation::kLeaky) return z < 0 ? slope * z : z;
  if constexpr (kind == Activation::kSilu) {
    const A e = exp_nonpositive(z < 0 ? z : -z), inverse = A(1) / (A(1) + e);
    return z * (z < 0 ? e * inverse : inverse);
  }
  return z;
}

template <Activation kind, class A>
UF_HD_INLINE A activation_slope(A z, A slope) {
  if constexpr (kind == Activation::kRelu) return z > 0 ? A(1) : A(0);
  if constexpr (kind == Activation::kLeaky) return z > 0 ? A(1) : slope;
  if constexpr (kind == Activation::kSilu) {
    const A e = exp_nonpositive(z < 0 ? z : -z), inverse = A(1) / (A(1) + e);
    const A sigmoid = z < 0 ? e * inverse : inverse;
    return sigmoid * (A(1) + z * (A(1) - sigmoid));
  }
  return A(1);
}

}  // namespace uf

// On a GPU, both kernels need so many doubles of workspace beside these tensors, of the dtype: x, y; or grad, x, grad_x. None on a CPU.
#if defined(USE_CUDA) || defined(__CUDACC__)
namespace uf::cuda {
int64_t norm_activation_workspace(const NormActivationShape& shape, DType type, const void* a, const void* b, const void* c,
                                  bool backward);
}  // namespace uf::cuda
#else
namespace uf {
inline int64_t norm_activation_workspace(const NormActivationShape&, DType, const void*, const void*, const void*, bool) { return 0; }
}  // namespace uf
#endif

// y = activation((x - mean) / sqrt(var + eps) * weight + bias). mean and var (sets) are written unless they are fixed.
UF_KERNEL(norm_activation, const uf::NormActivationShape& shape, uf::DType type, const void* x,
          const uf::NormActivationChannels& channels, void* mean, void* var, void* y, double* workspace)

// grad_x, and the wide gradients of weight, bias and slope (null: not wanted).
UF_KERNEL(norm_activation_backward, const uf::NormActivationShape& shape, uf::DType type, const void* grad, const void* x,
          const uf::NormActivationChannels& channels, const void* mean, const void* var, void* grad_x, void* grad_weight,
          void* grad_bias, void* grad_slope, double* workspace)
