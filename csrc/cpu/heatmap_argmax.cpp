#include "ops/heatmap_argmax.h"

#include <limits>
#include <vector>

#include "common/lanes.h"
#include "common/parallel.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kLanes = 16;   // values compared or summed side by side
constexpr int64_t kBlock = 256;  // values after which a running maximum is looked at

template <typename A> constexpr A kNothing = -std::numeric_limits<A>::infinity();

template <typename A> A larger(A a, A b) { return a > b ? a : b; }  // b where a is NaN

// Updates `peak` by `count` values that begin at number `first` of the map. Maxima are compared once a block, and the
// place of the largest is looked up at the end. The first maximum wins, and NaN never does.
template <typename T, typename A>
void scan(const T* values, int64_t stride, int64_t count, int64_t first, Peak<A>* peak) {
  int64_t found = -1;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t size = count - begin < kBlock ? count - begin : kBlock;
    const T* block = values + begin * stride;
    A lane[kLanes], value[kLanes], top = kNothing<A>;
    PYPOSEEXT_LANES(j, kLanes) lane[j] = kNothing<A>;
    int64_t i = 0;
    if (stride == 1) {
      for (; i + kLanes <= size; i += kLanes) {
        load_lanes<kLanes>(block + i, value);
        PYPOSEEXT_LANES(j, kLanes) lane[j] = larger(value[j], lane[j]);
      }
    }
    for (; i < size; ++i) top = larger(A(load(block[i * stride])), top);
    PYPOSEEXT_LANES(j, kLanes) top = larger(lane[j], top);
    if (!(top > peak->value)) continue;
    peak->value = top;
    found = begin;
  }
  if (found < 0) return;
  while (A(load(values[found * stride])) != peak->value) ++found;
  peak->index = first + found;
}

template <typename T>
Peak<Accumulate<T>> find_peak(const MapView<T>& map) {
  Peak<Accumulate<T>> peak{kNothing<Accumulate<T>>, -1};
  if (map.stride_y == map.width * map.stride_x) {
    scan(map.data, map.stride_x, map.height * map.width, 0, &peak);
  } else {
    for (int64_t y = 0; y < map.height; ++y) scan(map.data + y * map.stride_y, map.stride_x, map.width, y * map.width, &peak);
  }
  return peak;
}

// The peaks of kLanes maps whose channels lie next to each other, beginning with this one.
template <typename T, typename A>
void find_packed_peaks(const MapView<T>& map, Peak<A>* peaks) {
  A best[kLanes], lane[kLanes], value[kLanes];
  int64_t row[kLanes];
  PYPOSEEXT_LANES(j, kLanes) best[j] = kNothing<A>, row[j] = -1;
  for (int64_t y = 0; y < map.height; ++y) {
    PYPOSEEXT_LANES(j, kLanes) lane[j] = kNothing<A>;
    for (int64_t x = 0; x < map.width; ++x) {
      load_lanes<kLanes>(map.data + y * map.stride_y + x * map.stride_x, value);
      PYPOSEEXT_LANES(j, kLanes) lane[j] = larger(value[j], lane[j]);
    }
    PYPOSEEXT_LANES(j, kLanes)
      if (lane[j] > best[j]) best[j] = lane[j], row[j] = y;
  }
  PYPOSEEXT_LANES(j, kLanes) {
    peaks[j] = {best[j], -1};
    if (row[j] < 0) continue;
    int64_t x = 0;
    while (A(load(map.data[row[j] * map.stride_y + x * map.stride_x + j])) != best[j]) ++x;
    peaks[j].index = row[j] * map.width + x;
  }
}

// body(map, count, peaks) for all maps: `count` maps from this one on, with their peaks.
template <typename T, typename Arguments, typename Body>
void for_peaks(const Arguments& a, const Body& body) {
  using A = Accumulate<T>;
  if (a.stride[1] != 1 || a.joints < kLanes) {
    parallel_for(0, a.batch * a.joints, 1, [&](int64_t from, int64_t to) {
      for (int64_t map = from; map < to; ++map) {
        const Peak<A> peak = find_peak(map_view<T>(a, map));
        body(map, 1, &peak);
      }
    });
    return;
  }
  // The last block of an image's channels overlaps the one before: those maps are computed twice, to the same result.
  const int64_t blocks = (a.joints + kLanes - 1) / kLanes;
  parallel_for(0, a.batch * blocks, 1, [&](int64_t from, int64_t to) {
    Peak<A> peaks[kLanes];
    for (int64_t task = from; task < to; ++task) {
      const int64_t block = task % blocks * kLanes, channel = block + kLanes <= a.joints ? block : a.joints - kLanes;
      const int64_t map = task / blocks * a.joints + channel;
      find_packed_peaks(map_view<T>(a, map), peaks);
      const int64_t skipped = block - channel;
      body(map + skipped, kLanes - skipped, peaks + skipped);
    }
  });
}

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
    for (int64_t x = 0; x < a.width; ++x) maximum = larger(sum[x], maximum);
  }
  return maximum;
}

template <typename T>
Offset<Accumulate<T>> dark_offset(const HeatmapArgmaxArguments& a, const MapView<T>& map, const Peak<Accumulate<T>>& peak) {
  using A = Accumulate<T>;
  const int64_t y = peak.index / a.width, x = peak.index % a.width;
  BlurRows<A> rows;
  PeakWindow<A> window;
  for (int64_t i = 0; i < kPeakSide + 2 * a.blur_radius; ++i) fill_blur_row(a, map, y, x, i, &rows);
  for (int64_t i = 0; i < kPeakSide; ++i)
    for (int64_t j = 0; j < kPeakSide; ++j) window.value[i][j] = blur_along_y(a, rows, y, i, j);
  A factor = A(1);
  const WindowState state = window_state(a.refine, window, peak.value);
  if (state == WindowState::broken) return {A(0), A(0)};
  if (state == WindowState::needs_factor) factor = peak.value / (blurred_maximum(a, map) + A(1e-12));
  take_logarithms(a.refine, factor, &window);
  return newton_step(a.refine, window);
}

template <typename T>
Offset<Accumulate<T>> offset_of(const HeatmapArgmaxArguments& a, int64_t map, const Peak<Accumulate<T>>& peak) {
  using A = Accumulate<T>;
  if (peak.index < 0 || a.refine == Refinement::none) return {A(0), A(0)};
  const int64_t y = peak.index / a.width, x = peak.index % a.width;
  const MapView<T> view = map_view<T>(a, map);
  if (a.refine == Refinement::quarter) return quarter_offset(view, y, x, a.mmpose_guard);
  if (!(peak.value > A(0)) || !dark_applies(a, y, x)) return {A(0), A(0)};
  return dark_offset(a, view, peak);
}

template <typename T>
void argmax(const HeatmapArgmaxArguments& a) {
  for_peaks<T>(a, [&](int64_t map, int64_t count, const Peak<Accumulate<T>>* peaks) {
    for (int64_t i = 0; i < count; ++i) write_peak(a, map + i, peaks[i], offset_of<T>(a, map + i, peaks[i]));
  });
}

// Sums of w, w * x and w * y over one map. Rows are summed in the accumulation type, and their sums in double.
template <typename T>
void sum_map(const HeatmapSoftArgmaxArguments& a, const MapView<T>& map, Accumulate<T> maximum, double* total, double* along_x, double* along_y) {
  using A = Accumulate<T>;
  const A temperature = A(a.temperature);
  *total = *along_x = *along_y = 0;
  for (int64_t y = 0; y < map.height; ++y) {
    const T* row = map.data + y * map.stride_y;
    A sum[kLanes] = {}, moment[kLanes] = {}, value[kLanes];
    int64_t x = 0;
    if (map.stride_x == 1) {
      for (; x + kLanes <= map.width; x += kLanes) {
        load_lanes<kLanes>(row + x, value);
        PYPOSEEXT_LANES(j, kLanes) {
          const A weight = exp_nonpositive(temperature * (value[j] - maximum));
          sum[j] += weight;
          moment[j] = multiply_add(weight, A(int(x + j)), moment[j]);
        }
      }
    }
    for (; x < map.width; ++x) {
      const A weight = exp_nonpositive(temperature * (A(load(row[x * map.stride_x])) - maximum));
      sum[0] += weight;
      moment[0] = multiply_add(weight, A(x), moment[0]);
    }
    A row_sum = A(0), row_moment = A(0);
    PYPOSEEXT_LANES(j, kLanes) row_sum += sum[j], row_moment += moment[j];
    *total += double(row_sum);
    *along_x += double(row_moment);
    *along_y += double(y) * double(row_sum);
  }
}

// The same for kLanes maps whose channels lie next to each other, beginning with this one.
template <typename T, typename A>
void sum_packed_maps(const HeatmapSoftArgmaxArguments& a, const MapView<T>& map, const Peak<A>* peaks, double* total, double* along_x,
                     double* along_y) {
  const A temperature = A(a.temperature);
  A maximum[kLanes];
  PYPOSEEXT_LANES(j, kLanes) maximum[j] = peaks[j].value, total[j] = along_x[j] = along_y[j] = 0;
  for (int64_t y = 0; y < map.height; ++y) {
    A sum[kLanes] = {}, moment[kLanes] = {}, value[kLanes];
    for (int64_t x = 0; x < map.width; ++x) {
      load_lanes<kLanes>(map.data + y * map.stride_y + x * map.stride_x, value);
      PYPOSEEXT_LANES(j, kLanes) {
        const A weight = exp_nonpositive(temperature * (value[j] - maximum[j]));
        sum[j] += weight;
        moment[j] = multiply_add(weight, A(x), moment[j]);
      }
    }
    PYPOSEEXT_LANES(j, kLanes) {
      total[j] += double(sum[j]);
      along_x[j] += double(moment[j]);
      along_y[j] += double(y) * double(sum[j]);
    }
  }
}

template <typename T>
void soft_argmax(const HeatmapSoftArgmaxArguments& a) {
  for_peaks<T>(a, [&](int64_t map, int64_t count, const Peak<Accumulate<T>>* peaks) {
    double total[kLanes], x[kLanes], y[kLanes];
    if (count == kLanes)
      sum_packed_maps(a, map_view<T>(a, map), peaks, total, x, y);
    else
      for (int64_t i = 0; i < count; ++i) sum_map(a, map_view<T>(a, map + i), peaks[i].value, total + i, x + i, y + i);
    for (int64_t i = 0; i < count; ++i) write_mean(a, map + i, peaks[i], total[i], x[i], y[i]);
  });
}

template <typename A>
A pixel_gradient(A temperature, A value, A maximum, A along_x, A along_y, A from_mean_x, A from_mean_y) {
  return exp_nonpositive(temperature * (value - maximum)) * (along_x * from_mean_x + along_y * from_mean_y);
}

// One row of one map's gradient.
template <typename T>
void gradient_row(const HeatmapSoftArgmaxArguments& a, int64_t map, int64_t y, const T* row, T* out) {
  using A = Accumulate<T>;
  const SoftGradient<A> soft = soft_gradient<A>(a, map);
  const A temperature = A(a.temperature), from_mean_y = A(y) - soft.mean_y;
  A value[kLanes], result[kLanes];
  int64_t x = 0;
  if (a.stride[3] == 1 && a.out_stride[3] == 1) {
    for (; x + kLanes <= a.width; x += kLanes) {
      load_lanes<kLanes>(row + x, value);
      PYPOSEEXT_LANES(j, kLanes)
        result[j] = pixel_gradient(temperature, value[j], soft.maximum, soft.along_x, soft.along_y, A(int(x + j)) - soft.mean_x, from_mean_y);
      PYPOSEEXT_LANES(j, kLanes) store(result[j], out + x + j);
    }
  }
  for (; x < a.width; ++x)
    store(pixel_gradient(temperature, A(load(row[x * a.stride[3]])), soft.maximum, soft.along_x, soft.along_y, A(x) - soft.mean_x, from_mean_y),
          out + x * a.out_stride[3]);
}

// One row of the gradient of kLanes maps whose channels lie next to each other.
template <typename T>
void gradient_packed_row(const HeatmapSoftArgmaxArguments& a, int64_t map, int64_t y, const T* row, T* out) {
  using A = Accumulate<T>;
  const A temperature = A(a.temperature);
  A maximum[kLanes], mean_x[kLanes], from_mean_y[kLanes], along_x[kLanes], along_y[kLanes], value[kLanes], result[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) {
    const SoftGradient<A> soft = soft_gradient<A>(a, map + j);
    maximum[j] = soft.maximum, mean_x[j] = soft.mean_x, from_mean_y[j] = A(y) - soft.mean_y;
    along_x[j] = soft.along_x, along_y[j] = soft.along_y;
  }
  for (int64_t x = 0; x < a.width; ++x, row += a.stride[3], out += a.out_stride[3]) {
    load_lanes<kLanes>(row, value);
    PYPOSEEXT_LANES(j, kLanes) result[j] = pixel_gradient(temperature, value[j], maximum[j], along_x[j], along_y[j], A(x) - mean_x[j], from_mean_y[j]);
    PYPOSEEXT_LANES(j, kLanes) store(result[j], out + j);
  }
}

template <typename T>
void soft_argmax_backward(const HeatmapSoftArgmaxArguments& a) {
  const bool packed = a.stride[1] == 1 && a.out_stride[1] == 1 && a.joints >= kLanes;
  parallel_for(0, a.batch * a.height, 1 + (1 << 13) / (a.joints * a.width), [&](int64_t from, int64_t to) {
    for (int64_t task = from; task < to; ++task) {
      const int64_t b = task / a.height, y = task % a.height, map = b * a.joints;
      const T* row = static_cast<const T*>(a.heatmaps) + b * a.stride[0] + y * a.stride[2];
      T* out = static_cast<T*>(a.out) + b * a.out_stride[0] + y * a.out_stride[2];
      for (int64_t k = 0; k < a.joints; k += packed ? kLanes : 1) {
        const int64_t channel = packed && k + kLanes > a.joints ? a.joints - kLanes : k;
        if (packed)
          gradient_packed_row(a, map + channel, y, row + channel, out + channel);
        else
          gradient_row(a, map + k, y, row + k * a.stride[1], out + k * a.out_stride[1]);
      }
    }
  });
}

}  // namespace

void heatmap_argmax(const HeatmapArgmaxArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { argmax<decltype(zero)>(arguments); });
}

void heatmap_soft_argmax(const HeatmapSoftArgmaxArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { soft_argmax<decltype(zero)>(arguments); });
}

void heatmap_soft_argmax_backward(const HeatmapSoftArgmaxArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { soft_argmax_backward<decltype(zero)>(arguments); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
