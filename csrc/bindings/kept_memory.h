// Memory of large tensors on a CPU, used again without a detour through the kernel.
//
// A network allocates the same maps again and again. The C library cuts them from one heap, where an aligned block rarely
// fits into the gap that an equal one left: the heap of a training step grows to twice what lives at any time. What it takes
// from the kernel instead, and gives back, costs a fault and zeros for each page, every time. Here maps lie in segments of
// huge pages, each at the lowest address where there is room, and gaps next to each other are one; what is free stays, up to
// a limit.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#define UF_KEEPS_MEMORY 1
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <vector>
#endif

namespace uf::bindings {

#ifdef UF_KEEPS_MEMORY

class KeptMemory {
 public:
  // Lives as long as the process: tensors may be freed after everything else.
  static KeptMemory& get() {
    static auto* const kept = new KeptMemory();
    return *kept;
  }

  // A block of so many bytes, or null where they are too few or too many for it, or memory is short.
  void* take(int64_t bytes) {
    if (limit_ == 0 || bytes < kLeast || bytes > kSegment / 4) return nullptr;
    const std::lock_guard lock(mutex_);
    for (Segment& segment : segments_)
      if (void* const block = segment.take(size_of(bytes))) return block;
    void* const begin = reserve();
    if (!begin) return nullptr;
    segments_.push_back({static_cast<char*>(begin), 0, {}});
    return segments_.back().take(size_of(bytes));
  }

  void give(void* block, int64_t bytes) {
    const std::lock_guard lock(mutex_);
    for (Segment& segment : segments_)
      if (const int64_t at = static_cast<char*>(block) - segment.begin; at >= 0 && at < kSegment) {
        segment.give(at, size_of(bytes), limit_);
        return;
      }
  }

 private:
  static constexpr int64_t kLeast = 1 << 18, kSegment = int64_t{1} << 30, kHuge = 1 << 21;  // bytes

  struct Segment {
    char* begin;
    int64_t top;                      // from here on nothing was used yet
    std::map<int64_t, int64_t> gaps;  // below: where they begin, and their bytes

    void* take(int64_t size) {
      for (auto gap = gaps.begin(); gap != gaps.end(); ++gap) {
        const auto [at, room] = *gap;
        const bool last = at + room == top;
        if (room < size && !(last && at + size <= kSegment)) continue;
        gaps.erase(gap);
        if (room > size) gaps.emplace(at + size, room - size);
        if (room < size) top = at + size;
        return begin + at;
      }
      if (top + size > kSegment) return nullptr;
      top += size;
      return begin + top - size;
    }

    void give(int64_t at, int64_t size, int64_t limit) {
      auto next = gaps.lower_bound(at);
      if (next != gaps.end() && next->first == at + size) {
        size += next->second;
        next = gaps.erase(next);
      }
      if (next != gaps.begin())
        if (const auto before = std::prev(next); before->first + before->second == at) {
          at = before->first;
          size += before->second;
          gaps.erase(before);
        }
      if (at + size == top && size > limit) {  // to the kernel, in whole huge pages
        const int64_t end = (at + limit + kHuge - 1) / kHuge * kHuge;
        if (end < top) madvise(begin + end, static_cast<size_t>(top - end), MADV_DONTNEED);
        top = std::min(top, end);
        size = top - at;
      }
      gaps.emplace(at, size);
    }
  };

  // UNET_FAST_KEPT_MEMORY: the most megabytes that stay when they are free; 0: torch allocates everything, as a profiler of
  // its memory needs it.
  KeptMemory() {
    if (const char* const wish = std::getenv("UNET_FAST_KEPT_MEMORY"))
      limit_ = std::min<int64_t>(std::max<int64_t>(0, std::atoll(wish)), kSegment >> 20) << 20;
    // a child of fork must not find it locked by a thread that it does not have
    pthread_atfork([] { get().mutex_.lock(); }, [] { get().mutex_.unlock(); }, [] { get().mutex_.unlock(); });
  }

  static int64_t size_of(int64_t bytes) { return (bytes + 63) / 64 * 64; }

  // Addresses for a segment, from the begin of a huge page on. Pages come when they are written.
  static void* reserve() {
    constexpr int64_t kRoom = kSegment + kHuge;
    void* const room = mmap(nullptr, kRoom, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) return nullptr;
    auto* const first = static_cast<char*>(room);
    const auto before = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(first) % kHuge);
    if (before > 0) munmap(first, static_cast<size_t>(before));
    if (before < kHuge) munmap(first + before + kSegment, static_cast<size_t>(kHuge - before));
#ifdef MADV_HUGEPAGE
    madvise(first + before, kSegment, MADV_HUGEPAGE);
#endif
    return first + before;
  }

  std::mutex mutex_;
  std::vector<Segment> segments_;
  int64_t limit_ = int64_t{256} << 20;
};

#endif

}  // namespace uf::bindings
