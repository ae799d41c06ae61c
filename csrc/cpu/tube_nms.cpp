#include "ops/tube_nms.h"

#include "cpu/suppression.h"

namespace pyposeext::PYPOSEEXT_LEVEL {

void tube_nms(const TubeNmsArguments& a) {
  dispatch_floating(a.suppression.dtype, [&](auto zero) { suppress(a.suppression, TubeSimilarity<decltype(zero)>(a)); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
