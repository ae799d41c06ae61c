// What the CUDA kernels of paste_masks read of a mask.
#pragma once
#include "common/paste_masks_math.h"

namespace pyposeext::cuda {

template <typename C> struct PasteBox {
  PasteAxis<C> x, y;
};

// By two warps of a block, each one axis, into shared memory. The block synchronises afterwards.
template <typename C>
__device__ void find_box(const PasteMasksArguments& a, int64_t n, PasteBox<C>* box) {
  if (threadIdx.x == 0) box->x = paste_axis<C>(a, n, 0);
  if (threadIdx.x == 32) box->y = paste_axis<C>(a, n, 1);
}

template <typename C>
__device__ bool is_empty(const PasteBox<C>& box) { return box.x.first >= box.x.last || box.y.first >= box.y.last; }

template <typename T>
struct MaskReader {
  const T* mask;
  int64_t side, row_stride, column_stride;

  __device__ MaskReader(const PasteMasksArguments& a, int64_t n)
      : mask(static_cast<const T*>(a.masks) + n * a.stride[0]), side(a.side), row_stride(a.stride[1]), column_stride(a.stride[2]) {}

  // Element (row, column), 0 outside the mask.
  __device__ Accumulate<T> at(int64_t row, int64_t column) const {
    if (row < 0 || row >= side || column < 0 || column >= side) return Accumulate<T>(0);
    return load(mask[row * row_stride + column * column_stride]);
  }
  __device__ Accumulate<T> blended(int64_t row, const PasteSample<Accumulate<T>>& column) const {
    return paste_blend(at(row, column.low), at(row, column.low + 1), column.fraction);
  }
};

}  // namespace pyposeext::cuda
