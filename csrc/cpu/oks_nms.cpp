#include "ops/oks_nms.h"

#include "cpu/suppression.h"

namespace pyposeext::PYPOSEEXT_LEVEL {

void oks_nms(const OksNmsArguments& a) {
  dispatch_floating(a.suppression.dtype, [&](auto zero) { suppress(a.suppression, OksSimilarity<decltype(zero)>(a)); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
