#include "ops/tube_nms.h"

#include "cuda/suppression.cuh"

namespace pyposeext::cuda {

void tube_nms(const TubeNmsArguments& a, void* stream) {
  dispatch_floating(a.suppression.dtype, [&](auto zero) { suppress("tube_nms", a.suppression, TubeSimilarity<decltype(zero)>(a), stream); });
}

}  // namespace pyposeext::cuda
