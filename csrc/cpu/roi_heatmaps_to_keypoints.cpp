#include "ops/roi_heatmaps_to_keypoints.h"

#include <limits>
#include <vector>

#include "common/bicubic_math.h"
#include "common/parallel.h"
#include "common/vector_math.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

// The targets along one side of a box: their weights, and which of them each cell has.
template <typename A>
struct Side {
  std::vector<A> weight[kCubicTaps];  // of each target, and a vector more
  std::vector<int64_t> first;         // cell c has targets first[c] to first[c + 1] - 1

  void set(int64_t size, int64_t targets) {
    for (std::vector<A>& weights : weight) weights.assign(size_t(targets + kWidth<A>), A(0));
    first.assign(size_t(size + 2), targets);
    for (int64_t i = targets - 1; i >= 0; --i) {
      const CubicTaps<A> taps = cubic_taps<A>(i, size, targets);
      for (int tap = 0; tap < kCubicTaps; ++tap) weight[tap][size_t(i)] = taps.weight[tap];
      first[size_t(taps.cell)] = i;
    }
    for (int64_t cell = size; cell >= 0; --cell)
      if (first[size_t(cell)] > first[size_t(cell + 1)]) first[size_t(cell)] = first[size_t(cell + 1)];
  }
};

// Searches one resized map for its first maximum without storing it: only cells whose bound reaches the best value so far
// are resized, beginning with the one of the largest bound.
template <typename A>
class MapSearch {
 public:
  MapSearch(int64_t height, int64_t width)
      : height_(height),
        width_(width),
        stride_((width + 4) / kWidth<A> * kWidth<A> + 2 * kWidth<A>),  // whole vectors from the fourth tap of the last cell on
        pixels_(size_t((height + 4) * stride_)),
        low_(pixels_.size()),
        high_(pixels_.size()) {}

  void set_box(int64_t rows, int64_t columns) {
    rows_.set(height_, rows);
    columns_.set(width_, columns);
  }

  template <typename T>
  ResizedPeak<A> run(const T* heatmap, int64_t row_stride, int64_t column_stride) {
    copy_pixels(heatmap, row_stride, column_stride);
    bound_cells();
    ResizedPeak<A> best;
    Vector<A> most = broadcast(-std::numeric_limits<A>::infinity());
    for (int64_t y = 0; y <= height_; ++y)
      for (int64_t x = 0; x <= width_; x += kWidth<A>) most = larger(load_vector(bound(y) + x), most);
    const A largest = maximum_of(most);
    search_cells(largest, &best);
    search_cells(-std::numeric_limits<A>::infinity(), &best);
    return best;
  }

  // The sum over the map of e^(value - maximum), and the maximum; NaN has no weight.
  A exponential_sum(A* maximum) const {
    Vector<A> most = broadcast(-std::numeric_limits<A>::infinity()), sum{};
    for_pixels([&](Vector<A> values) { most = larger(values, most); });
    *maximum = maximum_of(most);
    const A scale = A(1.4426950408889634074);
    for_pixels([&](Vector<A> values) { sum += exp2_vector((values - *maximum) * scale); });
    return sum_of(sum);
  }

 private:
  A* bound(int64_t y) { return high_.data() + y * stride_; }  // in the place of a row that is not read again

  // The map with two pixels more on each side, its edge repeated; NaN beyond them, which the bounds leave out.
  template <typename T>
  void copy_pixels(const T* heatmap, int64_t row_stride, int64_t column_stride) {
    for (int64_t y = 0; y < height_ + 4; ++y) {
      const T* from = heatmap + tap_pixel(y, 0, height_) * row_stride;
      A* to = pixels_.data() + y * stride_;
      int64_t x = 0;
      if (column_stride == 1)
        for (; x + kWidth<A> <= width_; x += kWidth<A>) store_vector(load_vector(from + x), to + 2 + x);
      for (; x < width_; ++x) to[2 + x] = load(from[x * column_stride]);
      to[0] = to[1] = to[2];
      to[width_ + 2] = to[width_ + 3] = to[width_ + 1];
      for (x = width_ + 4; x < stride_; ++x) to[x] = std::numeric_limits<A>::quiet_NaN();
    }
  }

  template <typename Body>
  void for_pixels(const Body& body) const {
    for (int64_t y = 2; y < height_ + 2; ++y) {
      const A* row = pixels_.data() + y * stride_ + 2;
      for (int64_t x = 0; x < width_; x += kWidth<A>) {
        const Vector<A> values = load_vector(row + x);
        body(lane_numbers<A>() < A(width_ - x) ? values : broadcast(-std::numeric_limits<A>::infinity()));
      }
    }
  }

  // What each row can give in a cell at least and at most, and from four rows the cell's bound.
  void bound_cells() {
    for (int64_t y = 0; y < height_ + 4; ++y) {
      const A* row = pixels_.data() + y * stride_;
      for (int64_t x = 0; x <= width_; x += kWidth<A>) {
        const Vector<A> a = load_vector(row + x), b = load_vector(row + x + 1), c = load_vector(row + x + 2), d = load_vector(row + x + 3);
        store_vector(cubic_lowest<A>(a, b, c, d), &low_[size_t(y * stride_ + x)]);
        store_vector(cubic_highest<A>(a, b, c, d), &high_[size_t(y * stride_ + x)]);
      }
    }
    for (int64_t y = 0; y <= height_; ++y) {
      for (int64_t x = 0; x <= width_; x += kWidth<A>) {
        const A *low = &low_[size_t(y * stride_ + x)], *high = &high_[size_t(y * stride_ + x)];
        store_vector(cell_bound<A>(load_vector(low), load_vector(high + stride_), load_vector(high + 2 * stride_), load_vector(low + 3 * stride_)),
                     bound(y) + x);
      }
    }
  }

  // Searches the cells whose bound reaches `least` and the best value, both.
  void search_cells(A least, ResizedPeak<A>* best) {
    for (int64_t y = 0; y <= height_; ++y) {
      const A* bounds = bound(y);
      for (int64_t x = 0; x <= width_; x += kWidth<A>) {
        const A needed = best->value > least ? best->value : least;
        if (!any_of(load_vector(bounds + x) >= broadcast(needed))) continue;
        for (int64_t cell = x; cell <= width_ && cell < x + kWidth<A>; ++cell)
          if (bounds[cell] >= needed) search_cell(y, cell, best);
      }
    }
  }

  void search_cell(int64_t cell_y, int64_t cell_x, ResizedPeak<A>* best) {
    const int64_t begin = columns_.first[size_t(cell_x)], end = columns_.first[size_t(cell_x + 1)];
    const A* pixels = pixels_.data() + cell_y * stride_ + cell_x;
    for (int64_t row = rows_.first[size_t(cell_y)]; row < rows_.first[size_t(cell_y + 1)]; ++row) {
      A filtered[kCubicTaps] = {};
      for (int64_t y = 0; y < kCubicTaps; ++y)
        for (int64_t x = 0; x < kCubicTaps; ++x) filtered[x] = multiply_add(rows_.weight[y][size_t(row)], pixels[y * stride_ + x], filtered[x]);
      for (int64_t column = begin; column < end; column += kWidth<A>) {
        Vector<A> values{};
        for (int64_t x = 0; x < kCubicTaps; ++x)
          values = multiply_add(load_vector(&columns_.weight[x][size_t(column)]), broadcast(filtered[x]), values);
        values = lane_numbers<A>() < A(end - column) ? values : broadcast(-std::numeric_limits<A>::infinity());
        if (!any_of(values >= broadcast(best->value))) continue;
        for (int64_t i = 0; i < kWidth<A>; ++i) best->keep_better({values[i], row, column + i});
      }
    }
  }

  int64_t height_, width_, stride_;
  std::vector<A> pixels_, low_, high_;
  Side<A> rows_, columns_;
};

template <typename T>
void run(const RoiHeatmapsArguments& a) {
  using A = Accumulate<T>;
  parallel_for(0, a.rois, 1, [&](int64_t from, int64_t to) {
    MapSearch<A> search(a.height, a.width);
    for (int64_t n = from; n < to; ++n) {
      const TargetBox<A> box = target_box(static_cast<const A*>(a.boxes) + 4 * n);
      if (box.decodes) search.set_box(box.rows, box.columns);
      for (int64_t map = n * a.joints; map < (n + 1) * a.joints; ++map) {
        if (!box.decodes) {
          write_undecoded<A>(a, map);
          continue;
        }
        const T* heatmap = static_cast<const T*>(a.heatmaps) + n * a.stride[0] + map % a.joints * a.stride[1];
        const ResizedPeak<A> peak = search.run(heatmap, a.stride[2], a.stride[3]);
        A maximum = A(0), sum = A(0);
        if (a.softmax) sum = search.exponential_sum(&maximum);
        write_keypoint(a, map, box, peak, maximum, sum);
      }
    }
  });
}

}  // namespace

void roi_heatmaps_to_keypoints(const RoiHeatmapsArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { run<decltype(zero)>(arguments); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
