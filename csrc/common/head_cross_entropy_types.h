// The shapes, pointers and options of the 1x1 head with its loss, for the kernels of every device.
#pragma once

#include <cstdint>

#include "common/cross_entropy_types.h"

namespace uf {

// Strides count elements; the spatial dimensions are flattened to `pixels` and step evenly. The gradient of the features
// is dense: planar, or pixel after pixel with channels_last.
struct HeadCrossEntropyShape {
  int64_t batch, channels, classes, pixels;
  int64_t batch_stride, channel_stride, pixel_stride;
  bool channels_last;
};

// "Wide" is double for float64 features and float for all others.
struct HeadCrossEntropyArguments {
  DType float_type;      // of the features; their gradient has the same, but float32 for float16
  DType class_type;      // of the target
  const void* features;      // (N, C, P)
  const void* feature_bias;  // (C) wide, or null for 0
  bool relu;                 // of features + feature_bias
  const void* weight;        // (K, C) wide, dense
  const void* bias;          // (K) wide, or null for 0
  const void* target;        // (N, P) dense
  const void* pixel_weight;  // (N, P) dense, wide, or null for 1
  int64_t ignore_index;
  Reduction reduction;       // not kNone
  void* loss;                // wide: one value
  void* grad_features;       // (N, C, P); null, as all below, where nobody needs gradients
  double* grad_weight;       // (K, C)
  double* grad_bias;         // (K)
  double* grad_feature_bias; // (C)
};

}  // namespace uf
