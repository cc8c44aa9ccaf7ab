// Included before the CUDA bindings: registers their kernels for the CPU, in a namespace of their own.
#pragma once

#include <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) _STABLE_TORCH_LIBRARY_IMPL(unet_fast_emulated, CPU, m, C10_UID)
