#include "ops/nms.h"

#include "cpu/suppression.h"

namespace pyposeext::PYPOSEEXT_LEVEL {

void nms(const NmsArguments& a) {
  dispatch_floating(a.suppression.dtype, [&](auto zero) { suppress(a.suppression, BoxSimilarity<decltype(zero)>(a)); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
