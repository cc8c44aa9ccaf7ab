// Stands in for CUDA's header of this name, so that the host compiler turns the very kernels of csrc/cuda into code for the
// CPU, one block after the other. A thread of a block is a coroutine that runs until a barrier or an exchange of lanes,
// in rising or falling order by turns, so that a result which depends on the order of the threads is found; threads that
// wait at different barriers stop the program. Memory is that of the host: misaligned vectors trap when compiled with
// -fsanitize=alignment.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulation {

constexpr unsigned kWarp = 32, kMostThreads = 1024;
constexpr size_t kStack = 256 * 1024;

enum class State { kReady, kAtWarpBarrier, kAtBlockBarrier, kDone };

struct Thread {
  State state = State::kDone;
  bool started = false;
  unsigned exchanges = 0;  // of lanes, in this block
  dim3 index;
  jmp_buf resume_at;
  ucontext_t start;
  std::unique_ptr<char[]> stack;
};

struct Machine {
  std::vector<Thread> threads = std::vector<Thread>(kMostThreads);
  std::function<void()> body;
  unsigned current = 0;
  jmp_buf scheduler;
  uint64_t lanes[2][kMostThreads];  // values under exchange, and those of the exchange before, which may not all be read yet
};

inline Machine machine;

// setjmp and longjmp instead of swapcontext, which asks the kernel to change the signal mask every time.
inline void leave(State state) {
  Thread& thread = machine.threads[machine.current];
  thread.state = state;
  if (!_setjmp(thread.resume_at)) _longjmp(machine.scheduler, 1);
}

inline void run_bodies() {
  for (;;) {
    machine.body();
    leave(State::kDone);
  }
}

inline void resume(unsigned index) {
  Thread& thread = machine.threads[index];
  machine.current = index;
  threadIdx = thread.index;
  if (_setjmp(machine.scheduler)) return;
  if (thread.started) _longjmp(thread.resume_at, 1);
  thread.started = true;
  thread.stack = std::make_unique<char[]>(kStack);
  getcontext(&thread.start);
  thread.start.uc_stack.ss_sp = thread.stack.get();
  thread.start.uc_stack.ss_size = kStack;
  makecontext(&thread.start, run_bodies, 0);
  setcontext(&thread.start);
}

// Lets the threads [begin, end) go on when all that are not done wait at `barrier`.
inline bool release(unsigned begin, unsigned end, State barrier) {
  bool waiting = false;
  for (unsigned i = begin; i < end; ++i) {
    const State state = machine.threads[i].state;
    if (state != barrier && state != State::kDone) return false;
    waiting |= state == barrier;
  }
  for (unsigned i = begin; waiting && i < end; ++i)
    if (machine.threads[i].state == barrier) machine.threads[i].state = State::kReady;
  return waiting;
}

inline void run_block(unsigned threads, bool falling) {
  for (unsigned i = 0; i < threads; ++i) {
    machine.threads[i].state = State::kReady;
    machine.threads[i].exchanges = 0;
  }
  for (;;) {
    for (unsigned i = 0; i < threads; ++i) {
      const unsigned index = falling ? threads - 1 - i : i;
      if (machine.threads[index].state == State::kReady) resume(index);
    }
    bool any = release(0, threads, State::kAtBlockBarrier), done = true;
    for (unsigned i = 0; i < threads; i += kWarp)
      any |= release(i, i + kWarp < threads ? i + kWarp : threads, State::kAtWarpBarrier);
    for (unsigned i = 0; i < threads; ++i) done &= machine.threads[i].state == State::kDone;
    if (done) return;
    if (!any) {
      std::fputs("CUDA emulation: the threads of a block wait at different barriers\n", stderr);
      std::abort();
    }
  }
}

template <class T>
T exchange(T value, unsigned other_lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const unsigned self = machine.current;
  uint64_t* lanes = machine.lanes[machine.threads[self].exchanges++ % 2];
  std::memcpy(&lanes[self], &value, sizeof value);
  leave(State::kAtWarpBarrier);
  std::memcpy(&value, &lanes[self / kWarp * kWarp + other_lane], sizeof value);
  return value;
}

}  // namespace cuda_emulation

inline void __syncthreads() { cuda_emulation::leave(cuda_emulation::State::kAtBlockBarrier); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  if (mask != 0xffffffffu) std::abort();  // no kernel here exchanges lanes of half a warp
  return cuda_emulation::exchange(value, cuda_emulation::machine.current % cuda_emulation::kWarp ^ lane_mask);
}

// Threads take turns at barriers only, so that plain arithmetic is atomic.
template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}

template <class T>
T atomicMax(T* address, T value) {
  const T before = *address;
  if (value > before) *address = value;
  return before;
}

template <class T>
T atomicOr(T* address, T value) {
  const T before = *address;
  *address = before | value;
  return before;
}

inline cudaError_t cudaMemsetAsync(void* address, int byte, size_t count, cudaStream_t) {
  std::memset(address, byte, count);
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  const dim3 grid = config->gridDim, block = config->blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535 ||
      threads == 0 || threads > cuda_emulation::kMostThreads)
    return cudaErrorInvalidConfiguration;
  gridDim = grid;
  blockDim = block;
  for (unsigned i = 0; i < threads; ++i)
    cuda_emulation::machine.threads[i].index = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
  cuda_emulation::machine.body = [&] { kernel(static_cast<Parameters>(arguments)...); };
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        cuda_emulation::run_block(static_cast<unsigned>(threads), x % 2 == 1);
      }
  return cudaSuccess;
}
