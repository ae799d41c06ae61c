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
enum class QuarterGuard : int32_t { hrnet, mmpose, inside, separate };
enum class NonPositive : int32_t { keep, zero, minus_one };

constexpr int kMaximumBlurRadius = 15;
constexpr int kPeakSide = 5;  // the blurred values around a maximum: 5 x 5
constexpr int kBlurSide = 2 * kMaximumBlurRadius + kPeakSide;  // the values these are blurred from, at most

// The maps that both kinds of kernel read. Where `flipped` is given, a map means the average of itself and of the mirrored
// image's map of the joint's counterpart, mirrored back: the flip test, whose averages are never stored.
struct HeatmapMaps {
  DType dtype;
  int64_t batch, joints, height, width;
  const void* heatmaps;              // [B, K, H, W]
  int64_t stride[4];                 // in elements
  const void* flipped;               // [B, K, H, W], or null
  int64_t flipped_stride[4];
  const int64_t* flip_permutation;   // [K], each joint's counterpart
  int64_t flip_shift;                // 0 or 1: pixels by which the mirrored-back map moves to the right; column 0 stays
  const void* affine;                // [B, 2, 3], of float, or double where dtype is float64: applied to coordinates; or null
};

struct HeatmapArgmaxArguments : HeatmapMaps {
  Refinement refine;
  QuarterGuard quarter_guard;
  NonPositive nonpositive;
  int64_t blur_radius;
  double blur_weight[kMaximumBlurRadius + 1];  // by distance from the centre
  void* coordinates;                 // [B, K, 2]: x, y, of the affine's type
  void* scores;                      // [B, K], of the same type
};

struct HeatmapSoftArgmaxArguments : HeatmapMaps {
  double temperature;
  void* coordinates;                 // [B, K, 2], written in the forward
  void* scores;                      // [B, K], the maxima, likewise
  void* statistics;                  // [B, K, 4], SoftStatistics: written in the forward, read in the backward
  const void* gradient;              // [B, K, 2], of the coordinates
  void* out;                         // [B, K, H, W], the gradient of the heatmaps
  int64_t out_stride[4];
  void* flipped_out;                 // [B, K, H, W], of `flipped`
  int64_t flipped_out_stride[4];
};

inline namespace PYPOSEEXT_LEVEL {

// The column of the mirrored image's map that falls on column x of the map. Columns 0 and 1 share one under the shift.
PYPOSEEXT_HOST_DEVICE int64_t mirrored_column(int64_t x, int64_t width, int64_t shift) { return width - 1 - x + (x > 0 ? shift : 0); }

template <typename T> struct MapView {
  const T* data;
  int64_t height, width, stride_y, stride_x;
  const T* mirrored;  // null where nothing is averaged
  int64_t mirrored_stride_y, mirrored_stride_x, shift;

  PYPOSEEXT_HOST_DEVICE Accumulate<T> at(int64_t y, int64_t x) const {
    const Accumulate<T> value = load(data[y * stride_y + x * stride_x]);
    if (mirrored == nullptr) return value;
    return (value + load(mirrored[y * mirrored_stride_y + mirrored_column(x, width, shift) * mirrored_stride_x])) / 2;
  }
};

// A joint that `flip_permutation` gives no counterpart inside 0..K-1 is its own: nothing outside the maps is ever read.
PYPOSEEXT_HOST_DEVICE int64_t counterpart(const HeatmapMaps& a, int64_t joint) {
  const int64_t other = a.flip_permutation[joint];
  return other >= 0 && other < a.joints ? other : joint;
}

template <typename T>
PYPOSEEXT_HOST_DEVICE MapView<T> map_view(const HeatmapMaps& a, int64_t map) {
  const int64_t image = map / a.joints, joint = map % a.joints;
  const T* data = static_cast<const T*>(a.heatmaps) + image * a.stride[0] + joint * a.stride[1];
  MapView<T> view{data, a.height, a.width, a.stride[2], a.stride[3], nullptr, a.flipped_stride[2], a.flipped_stride[3], a.flip_shift};
  if (a.flipped != nullptr)
    view.mirrored = static_cast<const T*>(a.flipped) + image * a.flipped_stride[0] + counterpart(a, joint) * a.flipped_stride[1];
  return view;
}

template <typename A> struct Peak {
  A value;        // minus infinity where the map has nothing above it
  int64_t index;  // y * W + x, or -1
};

template <typename A> struct Offset {
  A x, y;
};

template <typename A> PYPOSEEXT_HOST_DEVICE A quarter_of(A difference) { return difference > A(0) ? A(0.25) : difference < A(0) ? A(-0.25) : A(0); }

// A quarter of a pixel towards the larger neighbour. At the border the published codes differ in where it applies; in all of
// them it applies along an axis only where both neighbours exist.
template <typename T>
PYPOSEEXT_HOST_DEVICE Offset<Accumulate<T>> quarter_offset(const MapView<T>& map, int64_t y, int64_t x, QuarterGuard guard) {
  using A = Accumulate<T>;
  const int64_t first = guard == QuarterGuard::inside ? 1 : 2;
  const bool inner_x = x >= first && x < map.width - 1, inner_y = y >= first && y < map.height - 1;
  bool along_x = inner_x && inner_y, along_y = along_x;
  if (guard == QuarterGuard::mmpose) along_x = inner_x && y > 0, along_y = inner_y && x > 0;
  if (guard == QuarterGuard::separate) along_x = inner_x, along_y = inner_y;
  return {along_x ? quarter_of(map.at(y, x + 1) - map.at(y, x - 1)) : A(0), along_y ? quarter_of(map.at(y + 1, x) - map.at(y - 1, x)) : A(0)};
}

// Whether DARK refines at all: the UDP variant everywhere, the original at two pixels from the border.
PYPOSEEXT_HOST_DEVICE bool dark_applies(const HeatmapArgmaxArguments& a, int64_t y, int64_t x) {
  return a.refine == Refinement::dark_udp || (x > 1 && x < a.width - 2 && y > 1 && y < a.height - 2);
}

// The row or column nearest to `at` that the map has: the UDP variant repeats the blurred map's edge.
PYPOSEEXT_HOST_DEVICE int64_t nearest_inside(int64_t at, int64_t size) { return at < 0 ? 0 : at < size ? at : size - 1; }

// The blurred values around a maximum at (y, x), by their distance from it.
template <typename A> struct PeakWindow {
  A value[kPeakSide][kPeakSide];
  PYPOSEEXT_HOST_DEVICE A at(int dy, int dx) const { return value[2 + dy][2 + dx]; }
};

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

// The logarithm of a blurred value that was rescaled, between its floor and its ceiling.
template <typename A>
PYPOSEEXT_HOST_DEVICE A bounded_logarithm(Refinement refine, A value) {
  const A floor = logarithm_floor<A>(refine);
  if (!(value > floor)) value = floor;
  if (refine == Refinement::dark_udp && value > A(kUdpCeiling)) value = A(kUdpCeiling);
  return std::log(value);
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

// Writes the place of one map's maximum, through the image's affine map where there is one.
template <typename A>
PYPOSEEXT_HOST_DEVICE void write_place(const HeatmapMaps& a, void* coordinates, int64_t map, A x, A y) {
  A* out = static_cast<A*>(coordinates) + 2 * map;
  if (a.affine == nullptr) {
    out[0] = x;
    out[1] = y;
    return;
  }
  const A* m = static_cast<const A*>(a.affine) + 6 * (map / a.joints);
  out[0] = multiply_add(m[0], x, multiply_add(m[1], y, m[2]));
  out[1] = multiply_add(m[3], x, multiply_add(m[4], y, m[5]));
}

// Writes the result of one map: an offset from the maximum, or what the rule for maps without a positive value says.
template <typename A>
PYPOSEEXT_HOST_DEVICE void write_peak(const HeatmapArgmaxArguments& a, int64_t map, const Peak<A>& peak, const Offset<A>& offset) {
  A x = a.nonpositive == NonPositive::zero ? A(0) : A(-1), y = x;
  if (peak.index >= 0 && (a.nonpositive == NonPositive::keep || peak.value > A(0))) {
    x = A(peak.index % a.width) + offset.x;
    y = A(peak.index / a.width) + offset.y;
  }
  write_place(a, a.coordinates, map, x, y);
  static_cast<A*>(a.scores)[map] = peak.value;
}

// The weight of a value is 2^(scale * value + shift): e^(temperature * (value - maximum)), up to a factor near 1 that all
// values of a map share.
template <typename A> struct SoftExponent {
  A scale, shift;
};

template <typename A>
PYPOSEEXT_HOST_DEVICE SoftExponent<A> soft_exponent(const HeatmapSoftArgmaxArguments& a, A maximum) {
  const A scale = A(a.temperature * 1.4426950408889634074);
  return {scale, -(scale * maximum)};
}

// What the backward needs of each map. The sum of its weights is 0 where softmax has no meaning, and there is no gradient.
template <typename A> struct SoftStatistics {
  A mean_x, mean_y, maximum, sum;
};

// Writes the result of one map from the sums over it of w, w * x and w * y, w being the weight of a value.
// A map whose maximum is not finite has no softmax: its first maximum is taken, without a gradient.
template <typename A, typename Sum>
PYPOSEEXT_HOST_DEVICE void write_mean(const HeatmapSoftArgmaxArguments& a, int64_t map, const Peak<A>& peak, Sum total, Sum along_x, Sum along_y) {
  const bool finite = is_finite(peak.value), found = peak.index >= 0;
  const A x = finite ? A(along_x / total) : found ? A(peak.index % a.width) : A(-1);
  const A y = finite ? A(along_y / total) : found ? A(peak.index / a.width) : A(-1);
  write_place(a, a.coordinates, map, x, y);
  static_cast<A*>(a.scores)[map] = peak.value;
  static_cast<SoftStatistics<A>*>(a.statistics)[map] = {x, y, peak.value, finite ? A(total) : A(0)};
}

// What the backward reads of one map: d value = weight(value) * (along_x * (x - mean_x) + along_y * (y - mean_y)).
template <typename A> struct SoftGradient {
  SoftExponent<A> exponent;
  A mean_x, mean_y, along_x, along_y;
};

template <typename A>
PYPOSEEXT_HOST_DEVICE SoftGradient<A> soft_gradient(const HeatmapSoftArgmaxArguments& a, int64_t map) {
  const SoftStatistics<A> s = static_cast<const SoftStatistics<A>*>(a.statistics)[map];
  if (!(s.sum > A(0))) return {{A(0), -A(INFINITY)}, A(0), A(0), A(0), A(0)};  // every weight is then 0
  const A* gradient = static_cast<const A*>(a.gradient) + 2 * map;
  const A *m = static_cast<const A*>(a.affine), along_x = gradient[0], along_y = gradient[1];
  // Of an average each of its two maps gets half.
  const A scale = A(a.temperature) / s.sum * (a.flipped != nullptr ? A(0.5) : A(1));
  if (m != nullptr) m += 6 * (map / a.joints);
  return {soft_exponent(a, s.maximum), s.mean_x, s.mean_y, scale * (m == nullptr ? along_x : m[0] * along_x + m[3] * along_y),
          scale * (m == nullptr ? along_y : m[1] * along_x + m[4] * along_y)};
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
