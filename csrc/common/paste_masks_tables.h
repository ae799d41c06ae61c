// What the CPU kernels of paste_masks prepare for each box: where its columns sample, and the mask with a border.
#pragma once
#include <vector>

#include "common/paste_masks_math.h"

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

// Samples of the pixels [first, last) of one axis; `low` counts in the bordered mask.
template <typename A> struct PasteTable {
  std::vector<int32_t> low;
  std::vector<A> fraction;

  template <typename C> void fill(const PasteAxis<C>& axis) {
    low.resize(size_t(axis.last - axis.first));
    fraction.resize(low.size());
    for (int64_t pixel = axis.first; pixel < axis.last; ++pixel) {
      const PasteSample<A> sample = paste_sample<A>(axis, pixel);
      low[pixel - axis.first] = int32_t(sample.low + 1);
      fraction[pixel - axis.first] = sample.fraction;
    }
  }
  int64_t size() const { return int64_t(low.size()); }
};

PYPOSEEXT_HOST_DEVICE int64_t bordered_side(int64_t side) { return side + 3; }

// Mask n with one row and column of zeros before it and two after it, so that every sample has both its neighbours.
// Transposed, columns of the mask are rows of the result.
template <typename T, typename A>
void fill_bordered(const PasteMasksArguments& a, int64_t n, bool transposed, std::vector<A>* bordered) {
  const int64_t side = bordered_side(a.side);
  bordered->assign(size_t(side * side), A(0));
  const T* mask = static_cast<const T*>(a.masks) + n * a.stride[0];
  const int64_t outer = a.stride[transposed ? 2 : 1], inner = a.stride[transposed ? 1 : 2];
  for (int64_t i = 0; i < a.side; ++i)
    for (int64_t j = 0; j < a.side; ++j) (*bordered)[(i + 1) * side + j + 1] = load(mask[i * outer + j * inner]);
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
