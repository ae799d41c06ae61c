// What heatmap_argmax does around a maximum, shared by the CPU and CUDA kernels.
//
// DARK fits a parabola to the logarithm of the blurred map. It reads 13 blurred values (7 in the UDP variant), so only the
// window around the maximum is blurred. The published code then rescales the blurred map to its old maximum; that factor
// is a constant in the logarithm and cancels, except where a value lies below the floor of the logarithm (or above the
// UDP variant's ceiling). Only then is the factor needed, and with it the whole map blurred.
#pragma once
#include "common/numeric.h"

namespace pyposeext {

enum class Refinement : int32_t { none, quarter, dark, dark_udp };
enum class NonPositive : int32_t { keep, zero, minus_one };

constexpr int kMaximumBlurRadius = 15;
constexpr int kPeakSide = 5;  // the blurred values around a maximum: 5 x 5
constexpr int kBlurRows = 2 * kMaximumBlurRadius + kPeakSide;

struct HeatmapArgmaxArguments {
  DType dtype;
  int64_t batch, joints, height, width;
  const void* heatmaps;  // [B, K, H, W]
  int64_t stride[4];     // in elements
  Refinement refine;
  bool mmpose_guard;     // the quarter offset's border rule: mmpose's, or HRNet's
  NonPositive nonpositive;
  int64_t blur_radius;
  double blur_weight[kMaximumBlurRadius + 1];  // by distance from the centre
  void* coordinates;     // [B, K, 2]: x, y, of float, or double where dtype is float64
  void* scores;          // [B, K], of the same type
};

struct HeatmapSoftArgmaxArguments {
  DType dtype;
  int64_t batch, joints, height, width;
  const void* heatmaps;  // [B, K, H, W]
  int64_t stride[4];
  double temperature;
  void* coordinates;     // [B, K, 2]: written in the forward, read in the backward
  void* scores;          // [B, K], the maxima
  void* sums;            // [B, K], of exp(temperature * (value - maximum)); 0 where that has no meaning, and no gradient
  const void* gradient;  // [B, K, 2], of the coordinates
  void* out;             // [B, K, H, W], the gradient of the heatmaps
  int64_t out_stride[4];
};

inline namespace PYPOSEEXT_LEVEL {

template <typename T> struct MapView {
  const T* data;
  int64_t height, width, stride_y, stride_x;
  PYPOSEEXT_HOST_DEVICE Accumulate<T> at(int64_t y, int64_t x) const { return load(data[y * stride_y + x * stride_x]); }
};

template <typename T, typename Arguments>
PYPOSEEXT_HOST_DEVICE MapView<T> map_view(const Arguments& a, int64_t map) {
  const T* data = static_cast<const T*>(a.heatmaps) + map / a.joints * a.stride[0] + map % a.joints * a.stride[1];
  return {data, a.height, a.width, a.stride[2], a.stride[3]};
}

template <typename A> struct Peak {
  A value;        // minus infinity where the map has nothing above it
  int64_t index;  // y * W + x, or -1
};

template <typename A> struct Offset {
  A x, y;
};

template <typename A> PYPOSEEXT_HOST_DEVICE A quarter_of(A difference) { return difference > A(0) ? A(0.25) : difference < A(0) ? A(-0.25) : A(0); }

// A quarter of a pixel towards the larger neighbour. The guards are those of the published code.
template <typename T>
PYPOSEEXT_HOST_DEVICE Offset<Accumulate<T>> quarter_offset(const MapView<T>& map, int64_t y, int64_t x, bool mmpose_guard) {
  using A = Accumulate<T>;
  const bool inner_x = x > 1 && x < map.width - 1, inner_y = y > 1 && y < map.height - 1;
  const bool along_x = inner_x && (mmpose_guard ? y > 0 : inner_y), along_y = inner_y && (mmpose_guard ? x > 0 : inner_x);
  return {along_x ? quarter_of(map.at(y, x + 1) - map.at(y, x - 1)) : A(0), along_y ? quarter_of(map.at(y + 1, x) - map.at(y - 1, x)) : A(0)};
}

// Whether DARK refines at all: the UDP variant everywhere, the original at two pixels from the border.
PYPOSEEXT_HOST_DEVICE bool dark_applies(const HeatmapArgmaxArguments& a, int64_t y, int64_t x) {
  return a.refine == Refinement::dark_udp || (x > 1 && x < a.width - 2 && y > 1 && y < a.height - 2);
}

// One row of the map blurred along x; rows and columns outside the map are 0.
template <typename T>
PYPOSEEXT_HOST_DEVICE Accumulate<T> blur_along_x(const HeatmapArgmaxArguments& a, const MapView<T>& map, int64_t y, int64_t x) {
  using A = Accumulate<T>;
  A sum = A(0);
  if (y < 0 || y >= a.height) return sum;
  const int64_t first = x < a.blur_radius ? -x : -a.blur_radius, last = a.width - 1 - x < a.blur_radius ? a.width - 1 - x : a.blur_radius;
  for (int64_t i = first; i <= last; ++i) sum = multiply_add(A(a.blur_weight[i < 0 ? -i : i]), map.at(y, x + i), sum);
  return sum;
}

// The row or column nearest to `at` that the map has: the UDP variant repeats the blurred map's edge.
PYPOSEEXT_HOST_DEVICE int64_t nearest_inside(int64_t at, int64_t size) { return at < 0 ? 0 : at < size ? at : size - 1; }

// The map blurred along x, around (y, x): [i][j] is row y - 2 - radius + i and column x - 2 + j.
template <typename A> struct BlurRows {
  A value[kBlurRows][kPeakSide];
};

template <typename T>
PYPOSEEXT_HOST_DEVICE void fill_blur_row(const HeatmapArgmaxArguments& a, const MapView<T>& map, int64_t y, int64_t x, int64_t i,
                                         BlurRows<Accumulate<T>>* rows) {
  for (int64_t j = 0; j < kPeakSide; ++j)
    rows->value[i][j] = blur_along_x(a, map, y - 2 - a.blur_radius + i, nearest_inside(x - 2 + j, a.width));
}

// The blurred values around a maximum at (y, x), by their distance from it.
template <typename A> struct PeakWindow {
  A value[kPeakSide][kPeakSide];
  PYPOSEEXT_HOST_DEVICE A at(int dy, int dx) const { return value[2 + dy][2 + dx]; }
};

template <typename A>
PYPOSEEXT_HOST_DEVICE A blur_along_y(const HeatmapArgmaxArguments& a, const BlurRows<A>& rows, int64_t y, int64_t i, int64_t j) {
  const int64_t centre = nearest_inside(y - 2 + i, a.height) - (y - 2) + a.blur_radius;
  A sum = A(0);
  for (int64_t k = -a.blur_radius; k <= a.blur_radius; ++k)
    sum = multiply_add(A(a.blur_weight[k < 0 ? -k : k]), rows.value[centre + k][j], sum);
  return sum;
}

PYPOSEEXT_HOST_DEVICE bool dark_reads(Refinement refine, int dy, int dx) {
  const int distance = (dy < 0 ? -dy : dy) + (dx < 0 ? -dx : dx);
  return refine == Refinement::dark ? distance <= 2 : dy * dx >= 0 && dy * dy <= 1 && dx * dx <= 1;
}

template <typename A> PYPOSEEXT_HOST_DEVICE A logarithm_floor(Refinement refine) { return refine == Refinement::dark ? A(1e-10) : A(1e-3); }
constexpr double kUdpCeiling = 50;

enum class WindowState { usable, needs_factor, broken };

// broken: a value is not finite. needs_factor: some value may meet the floor or the ceiling of the logarithm. The factor is
// at least 1, but for the published code's guard against division by 0, which the 2 is for.
template <typename A>
PYPOSEEXT_HOST_DEVICE WindowState window_state(Refinement refine, const PeakWindow<A>& window, A maximum) {
  const A floor = 2 * logarithm_floor<A>(refine);
  bool usable = refine == Refinement::dark || maximum <= A(kUdpCeiling);
  for (int dy = -2; dy <= 2; ++dy) {
    for (int dx = -2; dx <= 2; ++dx) {
      if (!dark_reads(refine, dy, dx)) continue;
      const A value = window.at(dy, dx);
      if (!is_finite(value)) return WindowState::broken;
      usable = usable && value >= floor;
    }
  }
  return usable ? WindowState::usable : WindowState::needs_factor;
}

// Replaces the values by logarithms.
template <typename A>
PYPOSEEXT_HOST_DEVICE void take_logarithms(Refinement refine, A factor, PeakWindow<A>* window) {
  const A floor = logarithm_floor<A>(refine);
  for (int i = 0; i < kPeakSide; ++i) {
    for (int j = 0; j < kPeakSide; ++j) {
      A value = window->value[i][j] * factor;
      if (!(value > floor)) value = floor;
      if (refine == Refinement::dark_udp && value > A(kUdpCeiling)) value = A(kUdpCeiling);
      window->value[i][j] = std::log(value);
    }
  }
}

// One Newton step to the maximum of the parabola through the logarithms; 0 where that has none.
template <typename A>
PYPOSEEXT_HOST_DEVICE Offset<A> newton_step(Refinement refine, const PeakWindow<A>& log) {
  const A gx = (log.at(0, 1) - log.at(0, -1)) / 2, gy = (log.at(1, 0) - log.at(-1, 0)) / 2, centre = log.at(0, 0);
  A xx, yy, xy;
  if (refine == Refinement::dark) {
    xx = (log.at(0, 2) - 2 * centre + log.at(0, -2)) / 4;
    yy = (log.at(2, 0) - 2 * centre + log.at(-2, 0)) / 4;
    xy = (log.at(1, 1) - log.at(-1, 1) - log.at(1, -1) + log.at(-1, -1)) / 4;
  } else {
    const A epsilon = A(1.1920928955078125e-07);  // float32's, as published
    xx = log.at(0, 1) - 2 * centre + log.at(0, -1) + epsilon;
    yy = log.at(1, 0) - 2 * centre + log.at(-1, 0) + epsilon;
    xy = (log.at(1, 1) - log.at(0, 1) - log.at(1, 0) + 2 * centre - log.at(0, -1) - log.at(-1, 0) + log.at(-1, -1)) / 2;
  }
  const A determinant = xx * yy - xy * xy;
  const Offset<A> step{-(yy * gx - xy * gy) / determinant, -(xx * gy - xy * gx) / determinant};
  return is_finite(step.x) && is_finite(step.y) ? step : Offset<A>{A(0), A(0)};  // also where the determinant is 0
}

// Writes the result of one map: an offset from the maximum, or what the rule for maps without a positive value says.
template <typename A>
PYPOSEEXT_HOST_DEVICE void write_peak(const HeatmapArgmaxArguments& a, int64_t map, const Peak<A>& peak, const Offset<A>& offset) {
  A* out = static_cast<A*>(a.coordinates) + 2 * map;
  if (peak.index < 0 || (a.nonpositive != NonPositive::keep && peak.value <= A(0))) {
    out[0] = out[1] = a.nonpositive == NonPositive::zero ? A(0) : A(-1);
  } else {
    out[0] = A(peak.index % a.width) + offset.x;
    out[1] = A(peak.index / a.width) + offset.y;
  }
  static_cast<A*>(a.scores)[map] = peak.value;
}

// e^x for x <= 0 and for NaN, which gives 0. On the CPU in float32 to 2 units in the last place, without a branch or a
// call, so that loops over it are vectorised; below -87 it is 0.
PYPOSEEXT_HOST_DEVICE float exp_nonpositive(float x) {
#if defined(__CUDA_ARCH__)
  return x <= 0.0f ? expf(x) : 0.0f;
#else
  const float bounded = x > -87.0f ? x : -87.0f;
  const float shifted = multiply_add(bounded, 1.44269504088896341f, 12582912.0f);  // 1.5 * 2^23 rounds to a whole number
  const float power = shifted - 12582912.0f;
  const float rest = multiply_add(power, 2.12194440e-4f, multiply_add(power, -0.693359375f, bounded));
  float series = 1.9875691500e-4f;  // Cephes' expf
  series = multiply_add(series, rest, 1.3981999507e-3f);
  series = multiply_add(series, rest, 8.3334519073e-3f);
  series = multiply_add(series, rest, 4.1665795894e-2f);
  series = multiply_add(series, rest, 1.6666665459e-1f);
  series = multiply_add(series, rest, 5.0000001201e-1f);
  series = multiply_add(series * rest, rest, rest) + 1.0f;
  const float scale = float_from_bits((bits_of_float(shifted) << 23) + 0x3f800000u);
  return x > -87.0f ? series * scale : 0.0f;
#endif
}

PYPOSEEXT_HOST_DEVICE double exp_nonpositive(double x) { return x <= 0.0 ? exp(x) : 0.0; }

// Writes the result of one map from the sums over it of w, w * x and w * y, w being exp(temperature * (value - maximum)).
// A map whose maximum is not finite has no softmax: its first maximum is taken, without a gradient.
template <typename A, typename Sum>
PYPOSEEXT_HOST_DEVICE void write_mean(const HeatmapSoftArgmaxArguments& a, int64_t map, const Peak<A>& peak, Sum total, Sum x, Sum y) {
  A* out = static_cast<A*>(a.coordinates) + 2 * map;
  const bool finite = is_finite(peak.value), found = peak.index >= 0;
  out[0] = finite ? A(x / total) : found ? A(peak.index % a.width) : A(-1);
  out[1] = finite ? A(y / total) : found ? A(peak.index / a.width) : A(-1);
  static_cast<A*>(a.scores)[map] = peak.value;
  static_cast<A*>(a.sums)[map] = finite ? A(total) : A(0);
}

// What the backward reads of one map: d value = weight(value) * (along_x * (x - mean_x) + along_y * (y - mean_y)).
template <typename A> struct SoftGradient {
  A maximum, mean_x, mean_y, along_x, along_y;
};

template <typename A>
PYPOSEEXT_HOST_DEVICE SoftGradient<A> soft_gradient(const HeatmapSoftArgmaxArguments& a, int64_t map) {
  const A sum = static_cast<const A*>(a.sums)[map];
  if (!(sum > A(0))) return {A(INFINITY), A(0), A(0), A(0), A(0)};  // every weight is then 0
  const A *mean = static_cast<const A*>(a.coordinates) + 2 * map, *gradient = static_cast<const A*>(a.gradient) + 2 * map;
  const A scale = A(a.temperature) / sum;
  return {static_cast<const A*>(a.scores)[map], mean[0], mean[1], scale * gradient[0], scale * gradient[1]};
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
