#include "ops/roi_heatmaps_to_keypoints.h"

#include <limits>
#include <vector>

#include "common/bicubic_math.h"
#include "common/parallel.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

template <typename A>
struct Peak {
  A value = -std::numeric_limits<A>::infinity();
  int64_t row = 0, column = 0;
};

// Searches one resized map for its first maximum without storing it. A row can only win if its bound reaches the best
// value so far, so rows are visited outward from the low-resolution peak, where the best value is met at once.
template <typename A>
class MapSearch {
 public:
  MapSearch(int64_t height, int64_t width) : height_(height), width_(width), map_(size_t(height * width)), row_(size_t(width)) {}

  void set_box(int64_t rows, int64_t columns) {
    rows_.clear();
    columns_.clear();
    for (int64_t i = 0; i < rows; ++i) rows_.push_back(cubic_taps<A>(i, height_, rows));
    for (int64_t i = 0; i < columns; ++i) columns_.push_back(cubic_taps<A>(i, width_, columns));
  }

  template <typename T>
  Peak<A> run(const T* heatmap, int64_t row_stride, int64_t column_stride) {
    int64_t peak_row = 0;
    A highest = -std::numeric_limits<A>::infinity();
    for (int64_t y = 0; y < height_; ++y)
      for (int64_t x = 0; x < width_; ++x) {
        const A value = load(heatmap[y * row_stride + x * column_stride]);
        map_[size_t(y * width_ + x)] = value;
        if (value > highest) highest = value, peak_row = y;
      }
    Peak<A> best;
    const int64_t rows = int64_t(rows_.size()), start = (2 * peak_row + 1) * rows / (2 * height_);
    for (int64_t down = start, up = start - 1; down < rows || up >= 0; ++down, --up) {
      if (down < rows) search_row(down, &best);
      if (up >= 0) search_row(up, &best);
    }
    return best;
  }

 private:
  void search_row(int64_t row, Peak<A>* best) {
    const CubicTaps<A>& taps = rows_[size_t(row)];
    A low = std::numeric_limits<A>::infinity(), high = -low;
    for (int64_t x = 0; x < width_; ++x) {
      A sum = A(0);
      for (int i = 0; i < 4; ++i) sum += taps.weight[i] * map_[size_t(taps.pixel[i] * width_ + x)];
      row_[size_t(x)] = sum;
      low = sum < low ? sum : low;
      high = sum > high ? sum : high;
    }
    // 0.1875 is the largest negative mass of the kernel; the margin covers the rounding of four products.
    const A margin = A(16) * std::numeric_limits<A>::epsilon() * (std::abs(low) + std::abs(high));
    if (high + A(0.1875) * (high - low) + margin < best->value) return;
    for (int64_t x = 0; x < int64_t(columns_.size()); ++x) {
      const CubicTaps<A>& column = columns_[size_t(x)];
      A value = A(0);
      for (int i = 0; i < 4; ++i) value += column.weight[i] * row_[size_t(column.pixel[i])];
      if (value > best->value || (value == best->value && (row < best->row || (row == best->row && x < best->column)))) *best = {value, row, x};
    }
  }

  int64_t height_, width_;
  std::vector<A> map_, row_;
  std::vector<CubicTaps<A>> rows_, columns_;
};

template <typename T>
void run(const RoiHeatmapsArguments& a) {
  using A = Accumulate<T>;
  parallel_for(0, a.rois, 1, [&](int64_t from, int64_t to) {
    MapSearch<A> search(a.height, a.width);
    for (int64_t n = from; n < to; ++n) {
      const A* box = static_cast<const A*>(a.boxes) + 4 * n;
      const A width = box[2] - box[0] > A(1) ? box[2] - box[0] : A(1), height = box[3] - box[1] > A(1) ? box[3] - box[1] : A(1);
      const int64_t columns = target_size(box[2] - box[0]), rows = target_size(box[3] - box[1]);
      A *keypoint = static_cast<A*>(a.keypoints) + 2 * n * a.joints, *score = static_cast<A*>(a.scores) + n * a.joints;
      const bool decodes = columns > 0 && rows > 0 && is_finite_box(box);
      if (decodes) search.set_box(rows, columns);
      for (int64_t k = 0; k < a.joints; ++k, keypoint += 2, ++score) {
        if (!decodes) {
          keypoint[0] = keypoint[1] = *score = A(0);
          continue;
        }
        const T* heatmap = static_cast<const T*>(a.heatmaps) + n * a.stride[0] + k * a.stride[1];
        const Peak<A> peak = search.run(heatmap, a.stride[2], a.stride[3]);
        keypoint[0] = (A(peak.column) + A(0.5)) * (width / A(columns)) + box[0];
        keypoint[1] = (A(peak.row) + A(0.5)) * (height / A(rows)) + box[1];
        *score = peak.value;
      }
    }
  });
}

}  // namespace

void roi_heatmaps_to_keypoints(const RoiHeatmapsArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { run<decltype(zero)>(arguments); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
