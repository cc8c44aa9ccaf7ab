// Threads of the NumPy module: started once, on the first call that is worth it, and kept. Torch brings its own pool;
// this one exists so that the same kernels run in parallel where torch is not installed.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>
#ifdef __linux__
#include <sched.h>
#endif

#include "cpu/parallel.h"

namespace uf::bindings {

class Pool {
 public:
  static Pool& instance() {
    // never destroyed: its threads wait for work until the process ends, and joining them at exit can deadlock
    static Pool* pool = new Pool(default_threads());
    return *pool;
  }

  int threads() const { return limit_; }

  // From now on work is done by so many threads, the caller among them; more are started where there are not enough.
  void set_threads(int wanted) {
    std::lock_guard<std::mutex> owner(owner_);  // nobody works
    if (getpid() == process_) grow(wanted);
    limit_ = std::min(wanted, threads_);
  }

  void run(int64_t begin, int64_t end, int64_t grain, Parallel::Body body, void* context) {
    const int64_t count = end - begin;
    const int64_t pieces = std::min<int64_t>(limit_, (count + grain - 1) / std::max<int64_t>(grain, 1));
    // one caller at a time owns the workers; a second one (another Python thread) does its work itself
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (pieces <= 1 || !owner.owns_lock() || getpid() != process_) {  // a forked child has none of the threads
      body(begin, end, context);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = {begin, end, (count + pieces - 1) / pieces, body, context};
      next_ = begin;
      active_ = threads_ - 1;
      ++generation_;
    }
    wake_.notify_all();
    work();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return active_ == 0; });
  }

 private:
  struct Job {
    int64_t begin = 0, end = 0, step = 1;
    Parallel::Body body = nullptr;
    void* context = nullptr;
  };

  // Where the system refuses a thread (a limit of processes or of memory), the work is done by those that there are.
  explicit Pool(int wanted) {
    grow(wanted);
    limit_ = threads_;
  }

  void grow(int wanted) {
    try {
      for (; threads_ < wanted; ++threads_) std::thread([this, seen = generation_] { loop(seen); }).detach();
    } catch (const std::system_error&) {
    }
  }

  // The CPUs that this process may run on; as for every OpenMP program, OMP_NUM_THREADS limits the threads.
  static int default_threads() {
    if (const char* text = std::getenv("OMP_NUM_THREADS")) {
      const int wanted = std::atoi(text);
      if (wanted > 0) return wanted;
    }
#ifdef __linux__
    cpu_set_t allowed;  // by taskset, a container or a job scheduler; more CPUs than it holds make the call fail
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return std::max(1, CPU_COUNT(&allowed));
#endif
    return std::max(1u, std::thread::hardware_concurrency());
  }

  void work() {
    for (;;) {
      const int64_t b = next_.fetch_add(job_.step);
      if (b >= job_.end) return;
      job_.body(b, std::min(b + job_.step, job_.end), job_.context);
    }
  }

  void loop(int64_t seen) {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        seen = generation_;
      }
      work();
      std::lock_guard<std::mutex> lock(mutex_);
      if (--active_ == 0) done_.notify_one();
    }
  }

  int threads_ = 1;  // that exist, the caller among them
  std::atomic<int> limit_{1};  // that work
  const pid_t process_ = getpid();
  std::mutex owner_, mutex_;
  std::condition_variable wake_, done_;
  std::atomic<int64_t> next_{0};
  Job job_;
  int active_ = 0;
  int64_t generation_ = 0;
};

inline Parallel pool_parallel() {
  return Parallel(
      [](int64_t begin, int64_t end, int64_t grain, Parallel::Body body, void* context) {
        Pool::instance().run(begin, end, grain, body, context);
      },
      Pool::instance().threads());
}

}  // namespace uf::bindings
