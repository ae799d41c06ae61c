#include "ops/nms.h"

#include "cuda/suppression.cuh"

namespace pyposeext::cuda {

void nms(const NmsArguments& a, void* stream) {
  dispatch_floating(a.suppression.dtype, [&](auto zero) { suppress("nms", a.suppression, BoxSimilarity<decltype(zero)>(a), stream); });
}

}  // namespace pyposeext::cuda
