// A 1x1 convolution and the weighted softmax cross-entropy of what it puts out, with all gradients, in one pass.
#pragma once

#include "common/head_cross_entropy_types.h"
#include "cpu/parallel.h"
#include "cpu/weighted_cross_entropy.h"

namespace uf {

// Workspace: at most 32 * (K C + K + C) doubles, 40 bytes for each block of up to 1,024 pixels, and some 64 KiB + 300 (K +
// C) wide numbers a thread. The result does not depend on the number of threads.
BadTarget head_cross_entropy(const HeadCrossEntropyShape& shape, const HeadCrossEntropyArguments& arguments,
                             const Parallel& parallel);

}  // namespace uf
