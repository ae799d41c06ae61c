// The gradient of the input of flow_warp and flow_warp_pool. Output pixels are listed by the cell they sample, in a fixed
// order; every input pixel then gathers from the lists of its four cells. No atomics on floats, the same bits every time.
#include "ops/flow_warp.h"

#include "common/cuda_launch.cuh"
#include "cuda/flow_warp.cuh"

namespace pyposeext::cuda {
namespace {

constexpr int kChannelsPerThread = 8;
constexpr int64_t kMostCells = 11 * 1024;  // whose counters fit the 48 KB of shared memory that every block may have

// One block per frame sorts its pixels by cell, counting: all threads count, the first warp then places the pixels in
// rising order, so that every list rises.
template <typename A>
__global__ void __launch_bounds__(kThreads) lists_kernel(const FlowWarpArguments a, int32_t pixels, int32_t cells) {
  extern __shared__ int32_t next[];  // [cells + 1], then one number per warp
  int32_t* of_warp = next + cells + 1;
  const int32_t thread = int32_t(threadIdx.x), lane = thread % 32, width = int32_t(a.width);
  for (int64_t frame = blockIdx.x; frame < a.batch * a.steps; frame += gridDim.x) {
    const int64_t b = frame / a.steps, s = frame % a.steps;
    int32_t* begin = a.begin + frame * (cells + 1);
    int32_t* order = a.order + frame * pixels;
    __syncthreads();
    for (int32_t i = thread; i <= cells; i += kThreads) next[i] = 0;
    __syncthreads();
    for (int32_t p = thread; p < pixels; p += kThreads) atomicAdd(&next[flow_cell(a, flow_sample<A>(a, b, s, p / width, p % width))], 1);
    __syncthreads();
    // Where each list begins: every thread sums a stretch of cells, the warps scan the sums.
    const int32_t stretch = (cells + kThreads) / kThreads, first = thread * stretch;
    const int32_t last = first + stretch < cells + 1 ? first + stretch : cells + 1;
    int32_t own = 0;
    for (int32_t i = first; i < last; ++i) own += next[i];
    int32_t sum = own;
    for (int step = 1; step < 32; step *= 2) {
      const int32_t before = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += before;
    }
    if (lane == 31) of_warp[thread / 32] = sum;
    __syncthreads();
    int32_t start = sum - own;
    for (int32_t i = 0; i < thread / 32; ++i) start += of_warp[i];
    for (int32_t i = first; i < last; ++i) {
      const int32_t count = next[i];
      begin[i] = next[i] = start;
      start += count;
    }
    __syncthreads();
    if (thread >= 32) continue;
    for (int32_t chunk = 0; chunk < pixels; chunk += 32) {
      const int32_t p = chunk + lane;
      const int32_t cell = p < pixels ? int32_t(flow_cell(a, flow_sample<A>(a, b, s, p / width, p % width))) : -1;
      const unsigned same = __match_any_sync(0xffffffffu, cell), lower = same & ((1u << lane) - 1);
      const int32_t place = cell < 0 ? 0 : next[cell] + __popc(lower);
      __syncwarp();
      if (cell >= 0) {
        order[place] = p;
        if (lower == 0) next[cell] += __popc(same);
      }
      __syncwarp();
    }
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads) cells_kernel(const FlowWarpArguments a, int64_t pixels, int64_t total) {
  PYPOSEEXT_GRID_STRIDE(index, total) {
    const int64_t frame = index / pixels, p = index % pixels;
    a.cell[index] = flow_cell(a, flow_sample<A>(a, frame / a.steps, frame % a.steps, p / a.width, p % a.width));
  }
}

__global__ void __launch_bounds__(kThreads) sorted_lists_kernel(const FlowWarpArguments a, int64_t pixels, int64_t cells, int64_t total) {
  PYPOSEEXT_GRID_STRIDE(index, total) {
    const int64_t frame = index / (cells + 1), cell = index % (cells + 1);
    const int64_t* sorted = a.sorted_cell + frame * pixels;
    int64_t low = 0, high = pixels;  // the first entry that is not below `cell`
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (sorted[middle] < cell)
        low = middle + 1;
      else
        high = middle;
    }
    a.begin[index] = int32_t(low);
  }
  PYPOSEEXT_GRID_STRIDE(index, a.batch * a.steps * pixels) a.order[index] = int32_t(a.sorted_pixel[index]);
}

// A thread has one input pixel and a slice of channels. Neighbouring threads have neighbouring pixels where the maps are
// planes, and neighbouring slices where the channels lie next to each other.
template <typename T>
__global__ void __launch_bounds__(kThreads) gather_kernel(const FlowWarpArguments a, int32_t pixels, int32_t cells, int64_t slices, int64_t total) {
  using A = Accumulate<T>;
  const bool by_channel = a.out.channel == 1;
  PYPOSEEXT_GRID_STRIDE(index, total) {
    const int64_t slice = by_channel ? index % slices : index / pixels % slices, frame = index / (slices * pixels);
    const int32_t pixel = int32_t(by_channel ? index / slices % pixels : index % pixels);
    const int32_t y = pixel / int32_t(a.width), x = pixel % int32_t(a.width);
    const int64_t b = frame / a.steps, s = frame % a.steps, first = slice * kChannelsPerThread;
    const int32_t* begin = a.begin + frame * (cells + 1);
    const int32_t* order = a.order + frame * pixels;
    const T* gradient = frame_data<const T>(a.gradient, b, s) + first * a.gradient.channel;
    A sum[kChannelsPerThread] = {};
    for (int k = 3; k >= 0; --k) {
      const int64_t cell = flow_first_cell(a, y, x, 1 - k / 2) + 1 - k % 2;
      for (int32_t i = begin[cell]; i < begin[cell + 1]; ++i) {
        const int32_t source = order[i], row = source / int32_t(a.width), column = source % int32_t(a.width);
        const A weight = flow_weight(flow_sample<A>(a, b, s, row, column), a.height, a.width, k);
        if (weight == A(0)) continue;
        const T* from = gradient + row * a.gradient.row + column * a.gradient.column;
#pragma unroll
        for (int c = 0; c < kChannelsPerThread; ++c)
          if (first + c < a.channels) sum[c] = multiply_add(weight, A(load(from[c * a.gradient.channel])), sum[c]);
      }
    }
    const A* scale = a.weight == nullptr ? nullptr : static_cast<const A*>(a.weight) + s * a.channels;
    T* out = frame_data<T>(a.out, b, s) + y * a.out.row + x * a.out.column;
#pragma unroll
    for (int c = 0; c < kChannelsPerThread; ++c)
      if (first + c < a.channels) store(scale == nullptr ? sum[c] : scale[first + c] * sum[c], out + (first + c) * a.out.channel);
  }
}

}  // namespace

bool flow_warp_counts_cells(const FlowWarpArguments& a) { return flow_cell_count(a) <= kMostCells; }

void flow_warp_lists(const FlowWarpArguments& a, void* stream) {
  const int32_t cells = int32_t(flow_cell_count(a)), pixels = int32_t(a.height * a.width);
  const size_t shared = size_t(cells + 1 + kThreads / 32) * sizeof(int32_t);
  const unsigned blocks = blocks_for(a.batch * a.steps, 1);
  if (a.dtype == DType::float64)
    lists_kernel<double><<<blocks, kThreads, shared, static_cast<cudaStream_t>(stream)>>>(a, pixels, cells);
  else
    lists_kernel<float><<<blocks, kThreads, shared, static_cast<cudaStream_t>(stream)>>>(a, pixels, cells);
  check_launch("flow_warp_lists");
}

void flow_warp_cells(const FlowWarpArguments& a, void* stream) {
  const int64_t pixels = a.height * a.width, total = a.batch * a.steps * pixels;
  if (a.dtype == DType::float64)
    cells_kernel<double><<<blocks_for(total), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, pixels, total);
  else
    cells_kernel<float><<<blocks_for(total), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, pixels, total);
  check_launch("flow_warp_cells");
}

void flow_warp_sorted_lists(const FlowWarpArguments& a, void* stream) {
  const int64_t cells = flow_cell_count(a), total = a.batch * a.steps * (cells + 1);
  sorted_lists_kernel<<<blocks_for(total), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, a.height * a.width, cells, total);
  check_launch("flow_warp_sorted_lists");
}

void flow_warp_backward_input(const FlowWarpArguments& a, void* stream) {
  const int64_t slices = (a.channels + kChannelsPerThread - 1) / kChannelsPerThread, pixels = a.height * a.width;
  const int64_t total = a.batch * a.steps * slices * pixels;
  dispatch_floating(a.dtype, [&](auto zero) {
    gather_kernel<decltype(zero)><<<blocks_for(total), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, int32_t(pixels), int32_t(flow_cell_count(a)),
                                                                                                   slices, total);
  });
  check_launch("flow_warp_backward_input");
}

}  // namespace pyposeext::cuda
