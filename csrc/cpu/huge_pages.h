// Large fresh buffers in huge pages. The C library takes a large allocation (from 32 MB on: every one) straight from the
// kernel and gives it back when it is freed, so each call of an op that returns a large tensor touches new pages: a fault and
// 4 KB of zeros for each, which takes several times as long as the work of an op that only copies. With pages of 2 MB there
// is one fault where there were 512. Most Linux systems give them only to those who ask (transparent_hugepage = madvise);
// NumPy asks in the same way, torch does not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace uf {

// Asks for huge pages for a buffer that is about to be written. Only a wish: where the kernel knows none, nothing changes.
// A buffer that has its pages already (one system call finds out) and a small one are left alone.
inline void prefer_huge_pages(void* buffer, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kWorthwhile = int64_t{1} << 22;  // holds one whole huge page at least, wherever it begins
  if (bytes < kWorthwhile) return;
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t address = reinterpret_cast<uintptr_t>(buffer);
  const uintptr_t begin = (address + page - 1) / page * page, end = (address + static_cast<uintptr_t>(bytes)) / page * page;
  const uintptr_t middle = (begin + (end - begin) / 2) / page * page;
  unsigned char resident = 0;
  if (mincore(reinterpret_cast<void*>(middle), page, &resident) == 0 && (resident & 1)) return;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// An uninitialised array that is about to be written.
template <class T>
std::unique_ptr<T[]> fresh_array(int64_t count) {
  auto array = std::make_unique_for_overwrite<T[]>(static_cast<size_t>(count));
  prefer_huge_pages(array.get(), count * static_cast<int64_t>(sizeof(T)));
  return array;
}

}  // namespace uf
