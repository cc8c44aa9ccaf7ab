// How a CPU kernel runs in parallel without knowing who calls it: the torch binding supplies torch's own thread pool
// (so that torch.set_num_threads rules), the NumPy module a small pool of its own. Never a second OpenMP runtime.
#pragma once

#include <cstdint>
#include <type_traits>

namespace uf {

class Parallel {
 public:
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  using Runner = void (*)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);

  Parallel(Runner runner, int threads) : runner_(runner), threads_(threads) {}

  int threads() const { return threads_; }

  // Calls f(begin, end) for pieces of [0, count) of at least `grain` iterations, from several threads; returns when
  // all are done. f must not throw.
  template <class F>
  void operator()(int64_t count, int64_t grain, F&& f) const {
    if (count <= 0) return;
    if (threads_ <= 1 || count <= grain) {
      f(int64_t{0}, count);
      return;
    }
    using Function = std::remove_reference_t<F>;
    runner_(
        0, count, grain, [](int64_t b, int64_t e, void* context) { (*static_cast<Function*>(context))(b, e); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  Runner runner_;
  int threads_;
};

}  // namespace uf
