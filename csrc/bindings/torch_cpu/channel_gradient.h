// The sums that a CPU kernel makes in double, and the gradient of a bias that comes of them.
#pragma once

#include "bindings/junction_call.h"

namespace uf::bindings {

// Workspace and result of a bias gradient; null pointers and an empty tensor where nobody wants one.
class ChannelGradient {
 public:
  ChannelGradient(bool want, int64_t parts, int64_t channels)
      : channels_(channels), want_(want), values_(want ? static_cast<size_t>((parts + 1) * channels) : 0) {}

  // A network whose bias has no channels has no gradient to point at; the kernels then write nothing.
  double* sums() { return want_ ? values_.data() : nullptr; }
  double* workspace() { return want_ ? values_.data() + channels_ : nullptr; }

  Tensor tensor(const Tensor& like) const {
    const ScalarType type = wide_type(like);
    Tensor out = new_tensor(like, {want_ ? channels_ : 0}, type);
    for (int64_t c = 0; want_ && c < channels_; ++c) {
      if (type == ScalarType::Double)
        static_cast<double*>(out.mutable_data_ptr())[c] = values_[c];
      else
        static_cast<float*>(out.mutable_data_ptr())[c] = static_cast<float>(values_[c]);
    }
    return out;
  }

 private:
  int64_t channels_;
  bool want_;
  std::vector<double> values_;
};

}  // namespace uf::bindings
