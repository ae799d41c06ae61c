#include "ops/nms.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/box_math.h"
#include "common/parallel.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

// For a value of type A, value > threshold exactly when value > the largest A that is not above the double threshold.
template <typename A>
A threshold_as(double threshold) {
  A rounded = A(threshold);
  return double(rounded) > threshold ? std::nextafter(rounded, -std::numeric_limits<A>::infinity()) : rounded;
}

// Positions in the order of falling score, of one group of boxes. Marks in `kept` those that nothing above suppresses.
template <typename A>
void suppress(const NmsArguments& a, const int64_t* positions, int64_t n, A threshold, uint8_t* kept) {
  std::vector<A> columns(size_t(5 * n));
  A *x1 = columns.data(), *y1 = x1 + n, *x2 = y1 + n, *y2 = x2 + n, *area = y2 + n;
  for (int64_t i = 0; i < n; ++i) {
    const A* box = static_cast<const A*>(a.boxes) + 4 * a.order[positions[i]];
    x1[i] = box[0], y1[i] = box[1], x2[i] = box[2], y2[i] = box[3];
    area[i] = box_area(box[0], box[1], box[2], box[3]);
  }
  std::vector<uint8_t> suppressed(size_t(n), 0);
  for (int64_t i = 0; i < n; ++i) {
    if (suppressed[i]) continue;
    kept[positions[i]] = 1;
    const A ax1 = x1[i], ay1 = y1[i], ax2 = x2[i], ay2 = y2[i], a_area = area[i];
    for (int64_t j = i + 1; j < n; ++j)
      suppressed[j] |= uint8_t(box_iou(ax1, ay1, ax2, ay2, a_area, x1[j], y1[j], x2[j], y2[j], area[j]) > threshold);
  }
}

// Positions 0..N-1 with equal groups next to each other, falling score inside a group; and where each group begins.
void split_groups(const NmsArguments& a, std::vector<int64_t>* positions, std::vector<int64_t>* begins) {
  positions->resize(size_t(a.boxes_count));
  for (int64_t i = 0; i < a.boxes_count; ++i) (*positions)[i] = i;
  begins->assign(1, 0);
  if (a.group != nullptr) {
    const auto group_at = [&](int64_t position) { return a.group[a.order[position]]; };
    std::stable_sort(positions->begin(), positions->end(), [&](int64_t left, int64_t right) { return group_at(left) < group_at(right); });
    for (int64_t i = 1; i < a.boxes_count; ++i)
      if (group_at((*positions)[i]) != group_at((*positions)[i - 1])) begins->push_back(i);
  }
  begins->push_back(a.boxes_count);
}

template <typename A>
void run(const NmsArguments& a) {
  std::vector<int64_t> positions, begins;
  split_groups(a, &positions, &begins);
  std::vector<uint8_t> kept(size_t(a.boxes_count), 0);
  const A threshold = threshold_as<A>(a.iou_threshold);
  parallel_for(0, int64_t(begins.size()) - 1, 1, [&](int64_t from, int64_t to) {
    for (int64_t g = from; g < to; ++g) suppress(a, positions.data() + begins[g], begins[g + 1] - begins[g], threshold, kept.data());
  });
  int64_t count = 0;
  for (int64_t i = 0; i < a.boxes_count; ++i)
    if (kept[i]) a.kept[count++] = a.order[i];
  *a.count = count;
  std::fill(a.kept + count, a.kept + a.boxes_count, int64_t(-1));
}

}  // namespace

void nms(const NmsArguments& arguments) {
  if (arguments.dtype == DType::float64)
    run<double>(arguments);
  else
    run<float>(arguments);
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
