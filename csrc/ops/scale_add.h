// The kernel behind scale_add.
#pragma once
#include "common/cpu_level.h"
#include "common/numeric.h"

namespace pyposeext {

struct ScaleAddArguments {
  DType dtype;
  int64_t count;
  const void *x, *y;  // [count], in one and the same layout
  double alpha;
  void* out;          // [count]
};

}  // namespace pyposeext

PYPOSEEXT_KERNEL(scale_add, ScaleAddArguments)
