// The last step of a sum over all pixels of each channel, on a stream.
#pragma once

#include <cuda_runtime.h>

#include "common/dtype.h"

namespace uf::cuda {

// sums (images, channels) of this dtype <- partial (images, parts, channels); 0 where there are no parts.
cudaError_t channel_sums(const double* partial, int64_t parts, int64_t channels, DType type, void* sums,
                         cudaStream_t stream, int64_t images = 1);

}  // namespace uf::cuda
