#include "ops/scale_add.h"

#include "common/parallel.h"
#include "common/scale_add_math.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements below which a second thread costs more than it gives

template <typename T>
void run(const ScaleAddArguments& a) {
  const T *x = static_cast<const T*>(a.x), *y = static_cast<const T*>(a.y);
  T* out = static_cast<T*>(a.out);
  const auto alpha = Accumulate<T>(a.alpha);
  parallel_for(0, a.count, kGrain, [=](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) scale_add_element(x[i], y[i], alpha, out + i);
  });
}

}  // namespace

void scale_add(const ScaleAddArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { run<decltype(zero)>(arguments); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
