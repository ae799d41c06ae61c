#include "ops/heatmap_argmax.h"

#include <cmath>

#include "common/cuda_launch.cuh"

namespace pyposeext::cuda {
namespace {

constexpr int kMapThreads = 128;  // a block has one map: a row of it to a warp at a time
constexpr int kWarp = 32;
constexpr int kWarps = kMapThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

// The larger value, and of equal ones the first. An index of -1 stands for nothing and comes with minus infinity.
template <typename A>
__device__ Peak<A> better(const Peak<A>& a, const Peak<A>& b) {
  if (b.index < 0) return a;
  return a.index < 0 || b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

template <typename A>
__device__ Peak<A> reduce_in_warp(Peak<A> peak) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    peak = better(peak, {__shfl_xor_sync(kAllLanes, peak.value, step), int64_t(__shfl_xor_sync(kAllLanes, (long long)(peak.index), step))});
  return peak;
}

template <typename A>
__device__ A sum_in_warp(A value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// The first maximum of the map, the same in every thread of the block; NaN never wins.
template <typename T>
__device__ Peak<Accumulate<T>> find_peak(const MapView<T>& map) {
  using A = Accumulate<T>;
  __shared__ A values[kWarps];
  __shared__ int64_t indices[kWarps];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  Peak<A> peak{-A(INFINITY), -1};
  for (int64_t y = warp; y < map.height; y += kWarps) {
    for (int64_t x = lane; x < map.width; x += kWarp) {
      const A value = map.at(y, x);
      if (value > peak.value) peak = {value, y * map.width + x};  // a thread meets its pixels in rising order
    }
  }
  peak = reduce_in_warp(peak);
  if (lane == 0) {
    values[warp] = peak.value;
    indices[warp] = peak.index;
  }
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) peak = better(peak, {values[w], indices[w]});
  __syncthreads();  // before the next map overwrites them
  return peak;
}

// The maximum of the whole blurred map, the same in every thread of the block.
template <typename T>
__device__ Accumulate<T> blurred_maximum(const HeatmapArgmaxArguments& a, const MapView<T>& map) {
  using A = Accumulate<T>;
  __shared__ A values[kWarps];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  A maximum = -A(INFINITY);
  for (int64_t y = warp; y < map.height; y += kWarps) {
    for (int64_t x = lane; x < map.width; x += kWarp) {
      A value = A(0);
      for (int64_t i = -a.blur_radius; i <= a.blur_radius; ++i) {
        if (y + i < 0 || y + i >= map.height) continue;
        value += A(a.blur_weight[i < 0 ? -i : i]) * blur_along_x(a, map, y + i, x);
      }
      if (value > maximum) maximum = value;
    }
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(kAllLanes, maximum, step);
    if (other > maximum) maximum = other;
  }
  if (lane == 0) values[warp] = maximum;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w)
    if (values[w] > maximum) maximum = values[w];
  __syncthreads();
  return maximum;
}

// Called by the whole block with the same peak; every thread gets the offset.
template <typename T>
__device__ Offset<Accumulate<T>> dark_offset(const HeatmapArgmaxArguments& a, const MapView<T>& map, const Peak<Accumulate<T>>& peak) {
  using A = Accumulate<T>;
  __shared__ BlurRows<A> rows;
  __shared__ PeakWindow<A> window;
  const int64_t y = peak.index / a.width, x = peak.index % a.width;
  for (int64_t i = threadIdx.x; i < kPeakSide + 2 * a.blur_radius; i += kMapThreads) fill_blur_row(a, map, y, x, i, &rows);
  __syncthreads();
  if (threadIdx.x < kPeakSide * kPeakSide)
    window.value[threadIdx.x / kPeakSide][threadIdx.x % kPeakSide] = blur_along_y(a, rows, y, threadIdx.x / kPeakSide, threadIdx.x % kPeakSide);
  __syncthreads();
  PeakWindow<A> log = window;
  __syncthreads();  // before the next map overwrites the window
  A factor = A(1);
  const WindowState state = window_state(a.refine, log, peak.value);
  if (state == WindowState::broken) return {A(0), A(0)};
  if (state == WindowState::needs_factor) factor = peak.value / (blurred_maximum(a, map) + A(1e-12));
  take_logarithms(a.refine, factor, &log);
  return newton_step(a.refine, log);
}

template <typename T>
__global__ void argmax_kernel(const HeatmapArgmaxArguments a) {
  using A = Accumulate<T>;
  for (int64_t map = blockIdx.x; map < a.batch * a.joints; map += gridDim.x) {
    const MapView<T> view = map_view<T>(a, map);
    const Peak<A> peak = find_peak(view);
    Offset<A> offset{A(0), A(0)};
    if (peak.index >= 0 && a.refine != Refinement::none) {  // the same for the whole block
      const int64_t y = peak.index / a.width, x = peak.index % a.width;
      if (a.refine == Refinement::quarter)
        offset = quarter_offset(view, y, x, a.mmpose_guard);
      else if (peak.value > A(0) && dark_applies(a, y, x))
        offset = dark_offset(a, view, peak);
    }
    if (threadIdx.x == 0) write_peak(a, map, peak, offset);
  }
}

template <typename T>
__global__ void soft_argmax_kernel(const HeatmapSoftArgmaxArguments a) {
  using A = Accumulate<T>;
  __shared__ A sums[kWarps][3];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const A temperature = A(a.temperature);
  for (int64_t map = blockIdx.x; map < a.batch * a.joints; map += gridDim.x) {
    const MapView<T> view = map_view<T>(a, map);
    const Peak<A> peak = find_peak(view);
    A total = A(0), along_x = A(0), along_y = A(0);
    for (int64_t y = warp; y < view.height; y += kWarps) {
      A sum = A(0);
      for (int64_t x = lane; x < view.width; x += kWarp) {
        const A weight = exp_nonpositive(temperature * (view.at(y, x) - peak.value));
        sum += weight;
        along_x += weight * A(x);
      }
      total += sum;
      along_y += sum * A(y);
    }
    total = sum_in_warp(total);
    along_x = sum_in_warp(along_x);
    along_y = sum_in_warp(along_y);
    if (lane == 0) sums[warp][0] = total, sums[warp][1] = along_x, sums[warp][2] = along_y;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < kWarps; ++w) total += sums[w][0], along_x += sums[w][1], along_y += sums[w][2];
      write_mean(a, map, peak, total, along_x, along_y);
    }
    __syncthreads();
  }
}

// The gradient's pixels in the order in which they lie in memory, so that neighbouring threads write neighbouring elements.
template <typename T>
__global__ void soft_argmax_backward_kernel(const HeatmapSoftArgmaxArguments a, int64_t total) {
  using A = Accumulate<T>;
  const bool packed = a.out_stride[1] == 1;
  PYPOSEEXT_GRID_STRIDE(index, total) {
    int64_t rest = index, k = 0;
    if (packed) k = rest % a.joints, rest /= a.joints;
    const int64_t x = rest % a.width;
    rest /= a.width;
    const int64_t y = rest % a.height;
    rest /= a.height;
    if (!packed) k = rest % a.joints, rest /= a.joints;
    const SoftGradient<A> map = soft_gradient<A>(a, rest * a.joints + k);
    const A value = map_view<T>(a, rest * a.joints + k).at(y, x);
    const A weight = exp_nonpositive(A(a.temperature) * (value - map.maximum));
    store(weight * (map.along_x * (A(x) - map.mean_x) + map.along_y * (A(y) - map.mean_y)),
          static_cast<T*>(a.out) + rest * a.out_stride[0] + k * a.out_stride[1] + y * a.out_stride[2] + x * a.out_stride[3]);
  }
}

}  // namespace

void heatmap_argmax(const HeatmapArgmaxArguments& a, void* stream) {
  dispatch_floating(a.dtype, [&](auto zero) {
    argmax_kernel<decltype(zero)><<<blocks_for(a.batch * a.joints, 1), kMapThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
  check_launch("heatmap_argmax");
}

void heatmap_soft_argmax(const HeatmapSoftArgmaxArguments& a, void* stream) {
  dispatch_floating(a.dtype, [&](auto zero) {
    soft_argmax_kernel<decltype(zero)><<<blocks_for(a.batch * a.joints, 1), kMapThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
  check_launch("heatmap_soft_argmax");
}

void heatmap_soft_argmax_backward(const HeatmapSoftArgmaxArguments& a, void* stream) {
  const int64_t total = a.batch * a.joints * a.height * a.width;
  dispatch_floating(a.dtype, [&](auto zero) {
    soft_argmax_backward_kernel<decltype(zero)><<<blocks_for(total), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, total);
  });
  check_launch("heatmap_soft_argmax_backward");
}

}  // namespace pyposeext::cuda
