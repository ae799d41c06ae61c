#include "ops/roi_heatmaps_to_keypoints.h"

#include "common/bicubic_math.h"
#include "common/cuda_launch.cuh"

namespace pyposeext::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kStrip = 8;  // cells of a column that one thread bounds, walking down: it reads each row of them once
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T> struct RoiMap {
  const T* data;
  int64_t height, width, stride_y, stride_x;
  __device__ Accumulate<T> at(int64_t y, int64_t x) const { return load(data[y * stride_y + x * stride_x]); }
};

// The best of all threads' values, the same in each of them.
template <typename A>
__device__ ResizedPeak<A> best_of_block(ResizedPeak<A> best) {
  __shared__ A values[kWarps];
  __shared__ int64_t rows[kWarps], columns[kWarps];
  for (int step = kWarp / 2; step > 0; step /= 2) {
    ResizedPeak<A> other;
    other.value = __shfl_xor_sync(kAllLanes, best.value, step);
    other.row = __shfl_xor_sync(kAllLanes, (long long)(best.row), step);
    other.column = __shfl_xor_sync(kAllLanes, (long long)(best.column), step);
    best.keep_better(other);
  }
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) values[warp] = best.value, rows[warp] = best.row, columns[warp] = best.column;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) {
    ResizedPeak<A> other;
    other.value = values[w], other.row = rows[w], other.column = columns[w];
    best.keep_better(other);
  }
  __syncthreads();  // before the next call overwrites them
  return best;
}

// The first maximum of the map before it is resized.
template <typename T>
__device__ ResizedPeak<Accumulate<T>> map_maximum(const RoiMap<T>& map) {
  using A = Accumulate<T>;
  ResizedPeak<A> best;
  for (int64_t i = threadIdx.x; i < map.height * map.width; i += kThreads) {
    const int64_t y = i / map.width, x = i % map.width;
    const A value = map.at(y, x);
    if (value > best.value) best.value = value, best.row = y, best.column = x;
  }
  return best_of_block(best);
}

// The sum over the map of e^(value - maximum), valid in every thread; NaN has no weight.
template <typename T>
__device__ Accumulate<T> exponential_sum(const RoiMap<T>& map, Accumulate<T> maximum) {
  using A = Accumulate<T>;
  __shared__ A sums[kWarps];
  A sum = A(0);
  for (int64_t i = threadIdx.x; i < map.height * map.width; i += kThreads) {
    const A below = map.at(i / map.width, i % map.width) - maximum;
    if (below <= A(0)) sum += std::exp(below);
  }
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  sum = A(0);
  for (int w = 0; w < kWarps; ++w) sum += sums[w];
  __syncthreads();
  return sum;
}

// One warp resizes a cell: a lane has some of its targets.
template <typename T>
__device__ void search_cell(const RoiMap<T>& map, int64_t cell_y, int64_t cell_x, int64_t rows, int64_t columns, ResizedPeak<Accumulate<T>>* best) {
  using A = Accumulate<T>;
  const int64_t first_row = first_target<A>(cell_y, map.height, rows), row_count = first_target<A>(cell_y + 1, map.height, rows) - first_row;
  const int64_t first_column = first_target<A>(cell_x, map.width, columns);
  const int64_t column_count = first_target<A>(cell_x + 1, map.width, columns) - first_column;
  for (int64_t i = threadIdx.x % kWarp; i < row_count * column_count; i += kWarp) {
    ResizedPeak<A> found;
    found.row = first_row + i / column_count, found.column = first_column + i % column_count;
    const CubicTaps<A> row = cubic_taps<A>(found.row, map.height, rows), column = cubic_taps<A>(found.column, map.width, columns);
    A value = A(0);
    for (int x = 0; x < kCubicTaps; ++x) {
      A filtered = A(0);
      for (int y = 0; y < kCubicTaps; ++y)
        filtered = multiply_add(row.weight[y], map.at(tap_pixel(cell_y, y, map.height), tap_pixel(cell_x, x, map.width)), filtered);
      value = multiply_add(column.weight[x], filtered, value);
    }
    found.value = value;
    best->keep_better(found);
  }
}

// The bounds of `kStrip` cells of one column.
template <typename T>
__device__ void bound_strip(const RoiMap<T>& map, int64_t first, int64_t cell_x, Accumulate<T> (&bounds)[kStrip]) {
  using A = Accumulate<T>;
  int64_t columns[kCubicTaps];
  for (int x = 0; x < kCubicTaps; ++x) columns[x] = tap_pixel(cell_x, x, map.width);
  A low[kStrip + kCubicTaps - 1], high[kStrip + kCubicTaps - 1];
#pragma unroll
  for (int i = 0; i < kStrip + kCubicTaps - 1; ++i) {
    const int64_t y = tap_pixel(first, i, map.height);
    const A a = map.at(y, columns[0]), b = map.at(y, columns[1]), c = map.at(y, columns[2]), d = map.at(y, columns[3]);
    low[i] = cubic_lowest<A>(a, b, c, d);
    high[i] = cubic_highest<A>(a, b, c, d);
  }
#pragma unroll
  for (int i = 0; i < kStrip; ++i) bounds[i] = cell_bound<A>(low[i], high[i + 1], high[i + 2], low[i + 3]);
}

// Lists the cells whose bound reaches the best value, a strip to a thread, and resizes these, a cell to a warp. The order of
// the list is not defined, but of all values the best one is, whatever the order.
template <typename T>
__device__ ResizedPeak<Accumulate<T>> search_map(const RoiMap<T>& map, int64_t rows, int64_t columns, ResizedPeak<Accumulate<T>> best) {
  using A = Accumulate<T>;
  __shared__ int64_t listed[kThreads * kStrip];
  __shared__ int count;
  const int64_t cell_columns = map.width + 1, cell_rows = map.height + 1, strips = (cell_rows + kStrip - 1) / kStrip * cell_columns;
  for (int64_t begin = 0; begin < strips; begin += kThreads) {
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    const int64_t strip = begin + threadIdx.x;
    if (strip < strips) {
      const int64_t first = strip / cell_columns * kStrip, cell_x = strip % cell_columns;
      A bounds[kStrip];
      bound_strip(map, first, cell_x, bounds);
#pragma unroll
      for (int i = 0; i < kStrip; ++i)
        if (first + i < cell_rows && bounds[i] >= best.value) listed[atomicAdd(&count, 1)] = (first + i) * cell_columns + cell_x;
    }
    __syncthreads();
    for (int i = threadIdx.x / kWarp; i < count; i += kWarps)
      search_cell(map, listed[i] / cell_columns, listed[i] % cell_columns, rows, columns, &best);
    best = best_of_block(best);
  }
  return best;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) search_kernel(const RoiHeatmapsArguments a) {
  using A = Accumulate<T>;
  for (int64_t task = blockIdx.x; task < a.rois * a.joints; task += gridDim.x) {
    const int64_t n = task / a.joints, k = task % a.joints;
    const TargetBox<A> box = target_box(static_cast<const A*>(a.boxes) + 4 * n);
    if (!box.decodes) {  // the same for the whole block
      if (threadIdx.x == 0) write_undecoded<A>(a, task);
      continue;
    }
    const RoiMap<T> map{static_cast<const T*>(a.heatmaps) + n * a.stride[0] + k * a.stride[1], a.height, a.width, a.stride[2], a.stride[3]};
    const ResizedPeak<A> highest = map_maximum(map);
    // Around the map's own maximum a value near the best one is found at once: by four warps, in the cells that meet there.
    ResizedPeak<A> best;
    const int warp = threadIdx.x / kWarp;
    if (warp < 4) search_cell(map, highest.row + warp / 2, highest.column + warp % 2, box.rows, box.columns, &best);
    best = search_map(map, box.rows, box.columns, best_of_block(best));
    const A sum = a.softmax ? exponential_sum(map, highest.value) : A(1);
    if (threadIdx.x == 0) write_keypoint(a, task, box, best, highest.value, sum);
  }
}

}  // namespace

void roi_heatmaps_to_keypoints(const RoiHeatmapsArguments& a, void* stream) {
  dispatch_floating(a.dtype, [&](auto zero) {
    search_kernel<decltype(zero)><<<blocks_for(a.rois * a.joints, 1), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
  check_launch("roi_heatmaps_to_keypoints");
}

}  // namespace pyposeext::cuda
