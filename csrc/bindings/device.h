// The device of an operator whose binding is written once. A file in bindings/torch is compiled twice: as part of _torch_cpu,
// and, with USE_CUDA, as part of _torch_cuda. There `kernels` are those of the device, `Device` is where they run, and
// UF_OPERATOR(NAME, FUNCTION) registers a function for it.
#pragma once

#ifdef USE_CUDA

#include "bindings/tensor_cuda.h"

namespace uf {
namespace kernels = cuda;
}

namespace uf::bindings {

using Device = OnDevice;
inline constexpr bool kOnGpu = true;

// Runs `kernel(arguments..., stream)`.
template <class Kernel, class... Arguments>
void run(const Device& device, Kernel kernel, Arguments&&... arguments) {
  STD_CUDA_CHECK(kernel(arguments..., device.stream()));
}

}  // namespace uf::bindings

#define UF_OPERATOR(NAME, FUNCTION) UF_OPERATOR_ON(CUDA, NAME, FUNCTION)

#else

#include "bindings/tensor.h"

namespace uf {
namespace kernels = uf;
}

namespace uf::bindings {

class Device {
 public:
  explicit Device(const Tensor&) {}
};
inline constexpr bool kOnGpu = false;

// Runs `kernel(arguments..., torch's threads)`.
template <class Kernel, class... Arguments>
void run(const Device&, Kernel kernel, Arguments&&... arguments) {
  kernel(arguments..., torch_parallel());
}

}  // namespace uf::bindings

#define UF_OPERATOR(NAME, FUNCTION) UF_OPERATOR_ON(CPU, NAME, FUNCTION)

#endif
