// torch's thread pool and thread count, without a torch header: kernels compile in seconds and share nothing by accident.
#pragma once
#include <cstdint>

#include "common/host_device.h"

namespace pyposeext {

void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);
int64_t thread_count();

inline namespace PYPOSEEXT_LEVEL {

// body(begin, end) over parts of [begin, end) of at least `grain` each. An exception in a part reaches the caller.
template <typename Body>
inline void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  parallel_for(
      begin, end, grain, [](int64_t from, int64_t to, void* context) { (*static_cast<const Body*>(context))(from, to); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
