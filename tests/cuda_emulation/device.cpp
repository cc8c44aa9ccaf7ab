// The functions of torch's CUDA library that the bindings call, for a machine without it: one device, one stream.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdio>
#include <cstdlib>

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return 0;
}

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char*, const char* function, uint32_t, bool, char** text) {
  *text = nullptr;
  if (error != cudaSuccess) {
    *text = static_cast<char*>(std::malloc(100));
    std::snprintf(*text, 100, "CUDA error %d in %s", error, function);
  }
  return 0;
}

void torch_c10_cuda_free_error_msg(char* text) { std::free(text); }

AOTITorchError aoti_torch_cuda_mm_out(AtenTensorHandle out, AtenTensorHandle left, AtenTensorHandle right) {
  return aoti_torch_cpu_mm_out(out, left, right);
}

AOTITorchError aoti_torch_cuda_bmm_out(AtenTensorHandle out, AtenTensorHandle left, AtenTensorHandle right) {
  return aoti_torch_cpu_bmm_out(out, left, right);
}
