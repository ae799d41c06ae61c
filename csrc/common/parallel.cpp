#include "common/parallel.h"

#include <torch/csrc/stable/ops.h>

namespace pyposeext {

void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  if (begin < end) torch::stable::parallel_for(begin, end, grain, [&](int64_t from, int64_t to) { body(from, to, context); });
}

int64_t thread_count() { return torch::stable::get_num_threads(); }

}  // namespace pyposeext
