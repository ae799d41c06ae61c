#include <vector>

#include "cpu/heatmap_maps.h"
#include "ops/heatmap_argmax.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

// The maximum of the whole blurred map; NaN never wins.
template <typename T>
Accumulate<T> blurred_maximum(const HeatmapArgmaxArguments& a, const MapView<T>& map) {
  using A = Accumulate<T>;
  const int64_t padded = a.width + 2 * a.blur_radius;
  std::vector<A> source(size_t(padded), A(0)), rows(size_t(a.height * a.width), A(0)), sum(size_t(a.width), A(0));
  for (int64_t y = 0; y < a.height; ++y) {
    for (int64_t x = 0; x < a.width; ++x) source[a.blur_radius + x] = map.at(y, x);
    A* row = &rows[y * a.width];
    for (int64_t i = 0; i <= 2 * a.blur_radius; ++i) {
      const A weight = A(a.blur_weight[i < a.blur_radius ? a.blur_radius - i : i - a.blur_radius]);
      for (int64_t x = 0; x < a.width; ++x) row[x] = multiply_add(weight, source[x + i], row[x]);
    }
  }
  A maximum = kNothing<A>;
  for (int64_t y = 0; y < a.height; ++y) {
    for (int64_t x = 0; x < a.width; ++x) sum[x] = A(0);
    for (int64_t i = -a.blur_radius; i <= a.blur_radius; ++i) {
      if (y + i < 0 || y + i >= a.height) continue;
      const A weight = A(a.blur_weight[i < 0 ? -i : i]);
      const A* row = &rows[(y + i) * a.width];
      for (int64_t x = 0; x < a.width; ++x) sum[x] = multiply_add(weight, row[x], sum[x]);
    }
    for (int64_t x = 0; x < a.width; ++x) maximum = sum[x] > maximum ? sum[x] : maximum;
  }
  return maximum;
}

constexpr int64_t kWindowStride = 48;  // kBlurSide columns, and whole vectors from any of the first kPeakSide + 2 radius on

// Row y of the map from column x - 2 - radius on, 0 outside the map.
template <typename T>
void copy_window_row(const MapView<T>& map, int64_t y, int64_t first, int64_t count, Accumulate<T>* to) {
  for (int64_t i = 0; i < kWindowStride; ++i) to[i] = 0;
  if (y < 0 || y >= map.height) return;
  const int64_t from = first < 0 ? 0 : first, until = first + count < map.width ? first + count : map.width;
  const T* row = map.data + y * map.stride_y;
  for (int64_t x = from; x < until; ++x) to[x - first] = load(row[x * map.stride_x]);
}

// The blurred values around (y, x): first along y, then along x. Rows and columns outside the map are 0 in the blur; of the
// blurred map the UDP variant repeats the edge.
template <typename T>
PeakWindow<Accumulate<T>> blurred_window(const HeatmapArgmaxArguments& a, const MapView<T>& map, int64_t y, int64_t x) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kWidth<A>;
  const int64_t radius = a.blur_radius, side = kPeakSide + 2 * radius, reach = a.refine == Refinement::dark ? 2 : 1;
  A source[kBlurSide][kWindowStride], blurred[kWindowStride], sums[kWindowStride], weight[2 * kMaximumBlurRadius + 1];
  for (int64_t i = -radius; i <= radius; ++i) weight[radius + i] = A(a.blur_weight[i < 0 ? -i : i]);
  for (int64_t i = 2 - reach; i < side - 2 + reach; ++i) copy_window_row(map, y - 2 - radius + i, x - 2 - radius, side, source[i]);
  PeakWindow<A> window;
  for (int64_t i = 2 - reach; i <= 2 + reach; ++i) {
    const int64_t top = nearest_inside(y - 2 + i, a.height) - (y - 2);
    for (int64_t column = 0; column < kWindowStride; column += lanes) {
      Vector<A> sum{};
      if (column < side)
        for (int64_t k = 0; k <= 2 * radius; ++k) sum = multiply_add(broadcast(weight[k]), load_vector(&source[top + k][column]), sum);
      store_vector(sum, blurred + column);
    }
    for (int64_t column = 0; column < kPeakSide; column += lanes) {
      Vector<A> sum{};
      for (int64_t k = 0; k <= 2 * radius; ++k) sum = multiply_add(broadcast(weight[k]), load_vector(blurred + column + k), sum);
      store_vector(sum, sums + column);
    }
    for (int64_t j = 0; j < kPeakSide; ++j) window.value[i][j] = sums[nearest_inside(x - 2 + j, a.width) - (x - 2)];
  }
  return window;
}

template <typename T>
Offset<Accumulate<T>> dark_offset(const HeatmapArgmaxArguments& a, const MapView<T>& map, const Peak<Accumulate<T>>& peak) {
  using A = Accumulate<T>;
  PeakWindow<A> window = blurred_window(a, map, peak.index / a.width, peak.index % a.width);
  A factor = A(1);
  const WindowState state = window_state(a.refine, window, peak.value);
  if (state == WindowState::broken) return {A(0), A(0)};
  if (state == WindowState::needs_factor) factor = peak.value / (blurred_maximum(a, map) + A(1e-12));
  for (int dy = -2; dy <= 2; ++dy)
    for (int dx = -2; dx <= 2; ++dx)
      if (dark_reads(a.refine, dy, dx)) window.value[2 + dy][2 + dx] = bounded_logarithm(a.refine, factor * window.at(dy, dx));
  return newton_step(a.refine, window);
}

template <typename T>
Offset<Accumulate<T>> offset_of(const HeatmapArgmaxArguments& a, const MapView<T>& map, const Peak<Accumulate<T>>& peak) {
  using A = Accumulate<T>;
  if (peak.index < 0 || a.refine == Refinement::none) return {A(0), A(0)};
  const int64_t y = peak.index / a.width, x = peak.index % a.width;
  if (a.refine == Refinement::quarter) return quarter_offset(map, y, x, a.quarter_guard);
  if (!(peak.value > A(0)) || !dark_applies(a, y, x)) return {A(0), A(0)};
  return dark_offset(a, map, peak);
}

template <typename T>
void argmax(const HeatmapArgmaxArguments& a) {
  using A = Accumulate<T>;
  if (!are_packed(a)) {
    for_maps<T>(a, [&](int64_t map, const auto& view, std::vector<A>&) {
      const Peak<A> peak = find_peak(view);
      write_peak(a, map, peak, offset_of(a, view, peak));
    });
    return;
  }
  parallel_for(0, a.batch, 1, [&](int64_t from, int64_t to) {
    std::vector<A> scratch;
    std::vector<Peak<A>> peaks(size_t(a.joints));
    for (int64_t image = from; image < to; ++image) {
      find_packed_peaks<T>(a, image, &scratch, peaks.data());
      for (int64_t k = 0; k < a.joints; ++k) {
        const int64_t map = image * a.joints + k;
        write_peak(a, map, peaks[size_t(k)], offset_of(a, map_view<T>(a, map), peaks[size_t(k)]));
      }
    }
  });
}

}  // namespace

void heatmap_argmax(const HeatmapArgmaxArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { argmax<decltype(zero)>(arguments); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
