// Large outputs on the CPU: memory fresh from the system is handed over page by page at the first write, which takes
// several times longer than the writing. Asking for 2 MB pages makes that cost small.
#pragma once
#include <cstddef>
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pyposeext {

constexpr int64_t kWorthHugePages = int64_t(4) << 20;  // bytes; below, the call costs more than it saves

// A hint for the whole 2 MB pages that lie inside [data, data + bytes). What the system answers makes no difference.
inline void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < kWorthHugePages) return;
  constexpr uintptr_t kPage = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace pyposeext
