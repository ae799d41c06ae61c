#include "ops/heatmap_argmax.h"

#include <cmath>
#include <type_traits>

#include "cuda/heatmap_lanes.cuh"

namespace pyposeext::cuda {
namespace {

constexpr int kManyMaps = 2000;       // from here on each map has one warp, below a block: both fill the device
constexpr int kWarpsOfBlock = 8;
constexpr int kPackedThreads = 512;   // of a block that has an image whose channels lie next to each other
constexpr int kPackedWarps = kPackedThreads / kWarp;

// What a warp keeps in shared memory while it refines a maximum.
template <typename A> struct DarkScratch {
  A blurred[kPeakSide][kBlurSide];  // along y
  PeakWindow<A> window;
};

// The maximum of the whole blurred map, the same in every lane of the warp. Seldom needed, and slow.
template <typename T>
__device__ Accumulate<T> blurred_maximum(const HeatmapArgmaxArguments& a, const MapView<T>& map) {
  using A = Accumulate<T>;
  A maximum = -A(INFINITY);
  for (int64_t i = threadIdx.x % kWarp; i < map.height * map.width; i += kWarp) {
    const int64_t y = i / map.width, x = i % map.width, radius = a.blur_radius;
    A value = A(0);
    for (int64_t row = y < radius ? 0 : y - radius; row <= y + radius && row < map.height; ++row) {
      A along_x = A(0);
      for (int64_t column = x < radius ? 0 : x - radius; column <= x + radius && column < map.width; ++column)
        along_x = multiply_add(A(a.blur_weight[column < x ? x - column : column - x]), map.at(row, column), along_x);
      value = multiply_add(A(a.blur_weight[row < y ? y - row : row - y]), along_x, value);
    }
    if (value > maximum) maximum = value;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(kAllLanes, maximum, step);
    if (other > maximum) maximum = other;
  }
  return maximum;
}

// The blurred values around (y, x), by one warp: a lane has a column and blurs it along y, then a value and blurs along x.
template <typename T>
__device__ void blur_window(const HeatmapArgmaxArguments& a, const MapView<T>& map, int64_t y, int64_t x, DarkScratch<Accumulate<T>>* scratch) {
  using A = Accumulate<T>;
  const int lane = threadIdx.x % kWarp, radius = int(a.blur_radius), side = kPeakSide + 2 * radius;
  for (int column = lane; column < side; column += kWarp) {
    const int64_t from = x - 2 - radius + column;
    A sums[kPeakSide] = {};
    for (int row = 0; row < side; ++row) {
      const int64_t at = y - 2 - radius + row;
      if (at < 0 || at >= map.height || from < 0 || from >= map.width) continue;
      const A value = map.at(at, from);
#pragma unroll
      for (int i = 0; i < kPeakSide; ++i) {
        const int64_t distance = at - nearest_inside(y - 2 + i, map.height);
        if (distance >= -radius && distance <= radius) sums[i] = multiply_add(A(a.blur_weight[distance < 0 ? -distance : distance]), value, sums[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kPeakSide; ++i) scratch->blurred[i][column] = sums[i];
  }
  __syncwarp();
  if (lane < kPeakSide * kPeakSide) {
    const int i = lane / kPeakSide, j = lane % kPeakSide, left = int(nearest_inside(x - 2 + j, map.width) - (x - 2));
    A sum = A(0);
    for (int k = 0; k <= 2 * radius; ++k) sum = multiply_add(A(a.blur_weight[k < radius ? radius - k : k - radius]), scratch->blurred[i][left + k], sum);
    scratch->window.value[i][j] = sum;
  }
  __syncwarp();
}

// Called by a whole warp with the same peak; every lane gets the offset.
template <typename T>
__device__ Offset<Accumulate<T>> dark_offset(const HeatmapArgmaxArguments& a, const MapView<T>& map, const Peak<Accumulate<T>>& peak,
                                             DarkScratch<Accumulate<T>>* scratch) {
  using A = Accumulate<T>;
  blur_window(a, map, peak.index / a.width, peak.index % a.width, scratch);
  A factor = A(1);
  const WindowState state = window_state(a.refine, scratch->window, peak.value);
  Offset<A> offset{A(0), A(0)};
  if (state == WindowState::needs_factor) factor = peak.value / (blurred_maximum(a, map) + A(1e-12));
  __syncwarp();
  const int lane = threadIdx.x % kWarp;
  if (lane < kPeakSide * kPeakSide) {
    A* value = &scratch->window.value[lane / kPeakSide][lane % kPeakSide];
    *value = bounded_logarithm(a.refine, factor * *value);
  }
  __syncwarp();
  if (state != WindowState::broken) offset = newton_step(a.refine, scratch->window);
  __syncwarp();  // before the warp's next map overwrites the window
  return offset;
}

template <typename T>
__device__ void finish(const HeatmapArgmaxArguments& a, int64_t map, const MapView<T>& view, const PeakFinder<Accumulate<T>>& finder,
                       DarkScratch<Accumulate<T>>* scratch) {
  using A = Accumulate<T>;
  const Peak<A> peak = finder.peak;
  Offset<A> offset{A(0), A(0)};
  if (peak.index >= 0 && a.refine != Refinement::none) {  // the same for the whole warp
    const int64_t y = peak.index / a.width, x = peak.index % a.width;
    if (a.refine == Refinement::quarter)
      offset = quarter_offset(view, y, x, a.quarter_guard);
    else if (peak.value > A(0) && dark_applies(a, y, x))
      offset = dark_offset(a, view, peak, scratch);
  }
  if (threadIdx.x % kWarp == 0) write_peak(a, map, peak, offset);
}

struct NoScratch {};

template <typename T>
__device__ void finish(const HeatmapSoftArgmaxArguments& a, int64_t map, const MapView<T>&, const MeanFinder<Accumulate<T>>& finder, NoScratch*) {
  if (threadIdx.x % kWarp == 0) write_mean(a, map, finder.peak, finder.total, finder.along_x, finder.along_y);
}

template <typename Arguments, typename A>
using Scratch = std::conditional_t<std::is_same_v<Arguments, HeatmapArgmaxArguments>, DarkScratch<A>, NoScratch>;

// Each map has `kWarpsOfMap` warps: one of a block's, which then never waits for the others, or all.
template <typename T, typename Finder, typename Arguments, int kWarpsOfMap>
__global__ void __launch_bounds__(kWarpsOfBlock* kWarp) map_kernel(const Arguments a) {
  constexpr int kMaps = kWarpsOfBlock / kWarpsOfMap, kThreadsOfMap = kWarpsOfMap * kWarp;
  __shared__ Scratch<Arguments, Accumulate<T>> scratch[kMaps];
  alignas(16) __shared__ unsigned char storage[kWarpsOfMap * sizeof(Finder)];
  const int slot = threadIdx.x / kThreadsOfMap, thread = threadIdx.x % kThreadsOfMap;
  Finder* parts = reinterpret_cast<Finder*>(storage);
  for (int64_t map = int64_t(blockIdx.x) * kMaps + slot; map < a.batch * a.joints; map += int64_t(gridDim.x) * kMaps) {
    const MapView<T> view = map_view<T>(a, map);
    Finder finder(a);
    add_part(view, thread, kThreadsOfMap, &finder);
    merge_warp(&finder);
    if constexpr (kWarpsOfMap > 1) {
      if (thread % kWarp == 0) parts[thread / kWarp] = finder;
      __syncthreads();
      finder = parts[0];
      for (int warp = 1; warp < kWarpsOfMap; ++warp) finder.merge(parts[warp]);
    }
    if (thread < kWarp) finish(a, map, view, finder, &scratch[slot]);
    if constexpr (kWarpsOfMap > 1) __syncthreads();  // before the next map's parts are written
  }
}

// An image whose channels lie next to each other has one block. A thread has one joint, and neighbouring threads read
// neighbouring joints of a pixel; then a warp brings together what the threads of one joint found.
template <typename T, typename Finder, typename Arguments>
__global__ void __launch_bounds__(kPackedThreads) packed_kernel(const Arguments a) {
  __shared__ Scratch<Arguments, Accumulate<T>> scratch[kPackedWarps];
  alignas(16) __shared__ unsigned char storage[kPackedThreads * sizeof(Finder)];
  Finder* parts = reinterpret_cast<Finder*>(storage);
  const unsigned joints = unsigned(a.joints), width = unsigned(a.width), count = unsigned(a.height) * width, sharing = kPackedThreads / joints;
  const unsigned joint = threadIdx.x % joints, first = threadIdx.x / joints, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int64_t image = blockIdx.x; image < a.batch; image += gridDim.x) {
    const MapView<T> view = map_view<T>(a, image * a.joints + joint);
    Finder finder(a);
#pragma unroll 8
    for (unsigned i = first < sharing ? first : count; i < count; i += sharing) {
      const unsigned y = i / width, x = i - y * width;
      finder.add(view.at(y, x), i, y, x);
    }
    parts[threadIdx.x] = finder;
    __syncthreads();
    for (unsigned k = warp; k < joints; k += kPackedWarps) {
      Finder merged(a);
      for (unsigned i = lane; i < sharing; i += kWarp) merged.merge(parts[i * joints + k]);
      merge_warp(&merged);
      finish(a, image * a.joints + k, map_view<T>(a, image * a.joints + k), merged, &scratch[warp]);
    }
    __syncthreads();  // before the next image's parts are written
  }
}

template <typename T, template <typename> typename Finder, typename Arguments>
void launch(const Arguments& a, void* stream) {
  using Found = Finder<Accumulate<T>>;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const int64_t maps = a.batch * a.joints;
  if (a.stride[1] < a.stride[3] && a.joints <= kPackedThreads && a.height * a.width < (int64_t(1) << 31))
    packed_kernel<T, Found, Arguments><<<blocks_for(a.batch, 1), kPackedThreads, 0, on>>>(a);
  else if (maps >= kManyMaps)
    map_kernel<T, Found, Arguments, 1><<<blocks_for(maps, kWarpsOfBlock), kWarpsOfBlock * kWarp, 0, on>>>(a);
  else
    map_kernel<T, Found, Arguments, kWarpsOfBlock><<<blocks_for(maps, 1), kWarpsOfBlock * kWarp, 0, on>>>(a);
}

}  // namespace

void heatmap_argmax(const HeatmapArgmaxArguments& a, void* stream) {
  dispatch_floating(a.dtype, [&](auto zero) { launch<decltype(zero), PeakFinder>(a, stream); });
  check_launch("heatmap_argmax");
}

void heatmap_soft_argmax(const HeatmapSoftArgmaxArguments& a, void* stream) {
  dispatch_floating(a.dtype, [&](auto zero) { launch<decltype(zero), MeanFinder>(a, stream); });
  check_launch("heatmap_soft_argmax");
}

}  // namespace pyposeext::cuda
