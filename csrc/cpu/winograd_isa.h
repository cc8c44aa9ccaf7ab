// The kernels of csrc/cpu/winograd_kernels.h in vectors of kLanes floats, once for each instruction set. A file that includes
// this defines UF_WINOGRAD_NAMESPACE, UF_TARGET (the attribute of every function), kLanes, kMaxRows, kTapRows, and, for the
// channels that fill no vector, load_some and store_some; rectified is ReLU; stream stores past the caches.
//
// With a tile's 6x6 input D, a kernel's 3x3 taps g and the matrices of Toom and Cook for the points of `Points`,
//     output (4x4) = A^T [ sum over channels of (G g G^T) . (B^T D B) ] A
// which takes 36 multiplications where the direct form takes 144. Between the transforms stand 36 matrix products over the
// channels, (tiles x in) (in x out), whose operands are kept so that all accesses are consecutive:
//     transformed inputs   [slice of input channels][point][group of rows][input vector][row][lane]
//     transformed weights  [panel][slice][point][input channel][output channel of the panel]
//     products of a panel  [point][tile][output channel]
// The transpose of all this takes a tile of 4x4 numbers of the input to the 6x6 of the output that they reach,
//     output (6x6, added up where tiles meet) = B [ sum over channels of (G g' G^T) . (A D A^T) ] B^T,   g' = g turned round,
// which needs fewer tiles where the output is the larger one, as the gradient of a small input is.
// Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016), with the points of `Points`.
#include "cpu/winograd/forward.h"
#include "cpu/winograd/tap_gradient.h"
#include "cpu/winograd/thin.h"
#include "cpu/winograd/up_convolution.h"
#include "cpu/winograd/weights.h"

namespace uf::winograd::UF_WINOGRAD_NAMESPACE {

constexpr Kernels kKernels = {kLanes, kMaxRows, kTapRows, &weights, &convolve, &tap_inputs, &tap_products, &tap_results,
                              &thin, &thin_taps, kThinVectors * kLanes, &up_weights, &up_convolve};

}  // namespace uf::winograd::UF_WINOGRAD_NAMESPACE
