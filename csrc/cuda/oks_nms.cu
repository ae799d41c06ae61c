#include "ops/oks_nms.h"

#include "cuda/suppression.cuh"

namespace pyposeext::cuda {

void oks_nms(const OksNmsArguments& a, void* stream) {
  dispatch_floating(a.suppression.dtype, [&](auto zero) { suppress("oks_nms", a.suppression, OksSimilarity<decltype(zero)>(a), stream); });
}

}  // namespace pyposeext::cuda
