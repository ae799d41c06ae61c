// The geometry of paste_masks, shared by the CPU and CUDA kernels that write pixels and by those that write runs.
//
// Both axes work alike and apart from each other: a pixel samples the mask at position low + fraction, between the
// elements low and low + 1, which are 0 outside the mask. Columns are blended first, then rows, with the same operations
// everywhere, so that pixels and runs agree to the last bit.
#pragma once
#include "common/numeric.h"

namespace pyposeext {

enum class PasteRule : int32_t { torchvision, detectron2 };

struct PasteMasksArguments {
  DType dtype;        // of the masks
  bool double_boxes;  // boxes are double, otherwise float: positions are computed in that type
  PasteRule rule;
  int64_t count, side, height, width;  // of masks, of a mask's rows and columns, of the image
  const void* masks;                   // [N, M, M]
  int64_t stride[3];                   // in elements
  const void* boxes;                   // [N, 4], row-major
  double threshold;
  bool soft;  // the blended values themselves in the masks' dtype, no comparison
  void* out;  // [N, H, W], row-major: bytes of 0 and 1, or soft values
};

struct PasteMasksRunsArguments {
  PasteMasksArguments paste;
  int64_t capacity;
  int32_t* counts;     // [N, capacity]: lengths of runs down the columns, of zeros first
  int64_t* lengths;    // [N]: how many runs there are, also where that is more than the capacity
  int32_t* first_row;  // CUDA, [N, M + 3]: scratch, see paste_first_rows
};

inline namespace PYPOSEEXT_LEVEL {

template <typename A> struct PasteSample {
  int64_t low;  // -1 to `side`
  A fraction;
};

// One axis of one box.
template <typename C> struct PasteAxis {
  PasteRule rule;
  int64_t side;
  int64_t start;        // torchvision: the first pixel of the whole-numbered box
  C origin;             // detectron2: the box's lower edge
  C scale;              // torchvision: mask elements in a pixel; detectron2: the box's length
  int64_t first, last;  // pixels [first, last) of the image are blended, all others are 0
};

template <typename C>
PYPOSEEXT_HOST_DEVICE C paste_position(const PasteAxis<C>& axis, int64_t pixel) {
  if (axis.rule == PasteRule::detectron2) return (C(pixel) + C(0.5) - axis.origin) / axis.scale * C(axis.side) - C(0.5);
  const C padded = axis.scale * (C(pixel - axis.start) + C(0.5)) - C(0.5);  // in the mask with its border of zeros
  return (padded > C(0) ? padded : C(0)) - C(1);
}

template <typename A, typename C>
PYPOSEEXT_HOST_DEVICE PasteSample<A> paste_sample(const PasteAxis<C>& axis, int64_t pixel) {
  C position = paste_position(axis, pixel);
  if (!(position > C(-1))) position = C(-1);
  if (position > C(axis.side)) position = C(axis.side);
  const C low = floor(position);
  return {int64_t(low), A(position - low)};
}

// The first pixel of 0..size whose position is above `position`, or reaches it. Positions rise with the pixels.
template <typename C>
PYPOSEEXT_HOST_DEVICE int64_t paste_search(const PasteAxis<C>& axis, int64_t size, C position, bool reaches) {
  int64_t low = 0, high = size;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    const C there = paste_position(axis, middle);
    if (there > position || (reaches && there == position))
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// torchvision pads the mask by a zero on every side, enlarges the box alike and cuts its corners to whole numbers.
template <typename C>
PYPOSEEXT_HOST_DEVICE PasteAxis<C> torchvision_axis(C from, C to, int64_t side, int64_t size) {
  PasteAxis<C> axis{PasteRule::torchvision, side, 0, C(0), C(0), 0, 0};
  const C centre = (to + from) * C(0.5), half = (to - from) * C(0.5) * C(double(side + 2) / double(side));
  const C low = centre - half, high = centre + half, limit = C(int64_t(1) << 60);
  if (!(low > -limit && low < limit && high > -limit && high < limit)) return axis;  // NaN and infinity too
  const int64_t end = int64_t(high) + 1;
  axis.start = int64_t(low);
  axis.scale = C(side + 2) / C(end - axis.start > 1 ? end - axis.start : 1);
  axis.first = axis.start > 0 ? axis.start : 0;
  axis.last = end < size ? end : size;
  if (axis.last < axis.first) axis.last = axis.first = 0;
  return axis;
}

// detectron2 samples at pixel centres, the box's edges being those of the mask; elements outside the mask are 0.
template <typename C>
PYPOSEEXT_HOST_DEVICE PasteAxis<C> detectron2_axis(C from, C to, int64_t side) {
  return {PasteRule::detectron2, side, 0, from, to - from, 0, 0};
}

template <typename C>
PYPOSEEXT_HOST_DEVICE bool paste_axis_is_valid(const PasteAxis<C>& axis) {
  return axis.scale > C(0) && is_finite(axis.scale) && is_finite(axis.origin);
}

// Axis 0 is x, 1 is y. Where one of them is empty the box has no pixel.
template <typename C>
PYPOSEEXT_HOST_DEVICE PasteAxis<C> paste_axis(const PasteMasksArguments& a, int64_t n, int dimension) {
  const C* box = static_cast<const C*>(a.boxes) + 4 * n + dimension;
  const int64_t size = dimension == 0 ? a.width : a.height;
  if (a.rule == PasteRule::torchvision) return torchvision_axis(box[0], box[2], a.side, size);
  PasteAxis<C> axis = detectron2_axis(box[0], box[2], a.side);
  if (!paste_axis_is_valid(axis)) return axis;
  axis.first = paste_search(axis, size, C(-1), false);
  axis.last = paste_search(axis, size, C(a.side), true);
  return axis;
}

template <typename A>
PYPOSEEXT_HOST_DEVICE A paste_blend(A low, A high, A fraction) {
  return multiply_add(fraction, high - low, low);
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
