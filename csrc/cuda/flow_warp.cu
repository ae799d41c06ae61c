#include "ops/flow_warp.h"

#include "common/cuda_launch.cuh"

namespace pyposeext::cuda {
namespace {

constexpr int kChannelsPerThread = 8;

int64_t slices_of(const FlowWarpArguments& a) { return (a.channels + kChannelsPerThread - 1) / kChannelsPerThread; }

struct Position {
  int64_t b, c, y, x;
};

// A thread has one pixel and a slice of channels. Neighbouring threads have neighbouring pixels where the maps are
// planes, and neighbouring slices where the channels lie next to each other.
__device__ Position position_of(const FlowWarpArguments& a, int64_t index, int64_t slices) {
  Position at;
  if (a.out.stride[1] == 1) {
    at.c = index % slices * kChannelsPerThread;
    index /= slices;
  }
  at.x = index % a.width;
  index /= a.width;
  at.y = index % a.height;
  index /= a.height;
  if (a.out.stride[1] != 1) {
    at.c = index % slices * kChannelsPerThread;
    index /= slices;
  }
  at.b = index;
  return at;
}

template <typename T>
__device__ T* element(const StridedMaps& maps, const Position& at) {
  return static_cast<T*>(maps.data) + at.b * maps.stride[0] + at.c * maps.stride[1] + at.y * maps.stride[2] + at.x * maps.stride[3];
}

template <typename T, typename A>
__device__ void store_slice(const FlowWarpArguments& a, const Position& at, const A* sum) {
  T* out = element<T>(a.out, at);
#pragma unroll
  for (int i = 0; i < kChannelsPerThread; ++i)
    if (at.c + i < a.channels) store(sum[i], out + i * a.out.stride[1]);
}

template <typename T>
__global__ void forward_kernel(const FlowWarpArguments a, int64_t slices, int64_t total) {
  using A = Accumulate<T>;
  PYPOSEEXT_GRID_STRIDE(index, total) {
    const Position at = position_of(a, index, slices);
    const FlowSample<A> sample = flow_sample<A>(a, at.b, at.y, at.x);
    const T* input = element<const T>(a.input, {at.b, at.c, 0, 0});
    A sum[kChannelsPerThread] = {};
    for (int k = 0; k < 4; ++k) {
      int64_t offset;
      const A weight = flow_weight(sample.y.fraction, sample.x.fraction, k);
      if (!flow_corner(a, sample, k, a.input, &offset) || weight == A(0)) continue;
#pragma unroll
      for (int i = 0; i < kChannelsPerThread; ++i)
        if (at.c + i < a.channels) sum[i] += weight * A(load(input[offset + i * a.input.stride[1]]));
    }
    store_slice<T>(a, at, sum);
  }
}

template <typename A>
__global__ void cells_kernel(const FlowWarpArguments a, int64_t pixels, int64_t total) {
  PYPOSEEXT_GRID_STRIDE(index, total) {
    const int64_t b = index / pixels, p = index % pixels;
    a.cell[index] = flow_cell(a, flow_sample<A>(a, b, p / a.width, p % a.width));
  }
}

// The first of n rising values that is not below `value`.
__device__ int64_t lower_bound(const int64_t* values, int64_t n, int64_t value) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (values[middle] < value)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Gathers in the order of cells, then of output pixels: no atomics, the same bits every time, every element written once.
template <typename T>
__global__ void backward_input_kernel(const FlowWarpArguments a, int64_t slices, int64_t total) {
  using A = Accumulate<T>;
  const int64_t pixels = a.height * a.width;
  PYPOSEEXT_GRID_STRIDE(index, total) {
    const Position at = position_of(a, index, slices);
    const int64_t* cells = a.sorted_cell + at.b * pixels;
    const T* gradient = element<const T>(a.gradient, {at.b, at.c, 0, 0});
    A sum[kChannelsPerThread] = {};
    for (int side = 0; side < 2; ++side) {
      const int64_t cell = flow_first_cell(a, at.y, at.x, side);
      for (int64_t i = lower_bound(cells, pixels, cell); i < pixels && cells[i] < cell + 2; ++i) {
        const int64_t p = a.order[at.b * pixels + i], y = p / a.width, x = p % a.width;
        const FlowSample<A> sample = flow_sample<A>(a, at.b, y, x);
        const A weight = flow_weight(sample.y.fraction, sample.x.fraction, int(3 - 2 * side - (cells[i] - cell)));
        if (weight == A(0)) continue;
        const T* source = gradient + y * a.gradient.stride[2] + x * a.gradient.stride[3];
#pragma unroll
        for (int n = 0; n < kChannelsPerThread; ++n)
          if (at.c + n < a.channels) sum[n] += weight * A(load(source[n * a.gradient.stride[1]]));
      }
    }
    store_slice<T>(a, at, sum);
  }
}

template <typename T>
__global__ void backward_flow_kernel(const FlowWarpArguments a, int64_t total) {
  using A = Accumulate<T>;
  PYPOSEEXT_GRID_STRIDE(index, total) {
    const Position at{index / (a.height * a.width), 0, index / a.width % a.height, index % a.width};
    const FlowSample<A> sample = flow_sample<A>(a, at.b, at.y, at.x);
    const T *gradient = element<const T>(a.gradient, at), *input = element<const T>(a.input, {at.b, 0, 0, 0});
    A product[4] = {};
    for (int k = 0; k < 4; ++k) {
      int64_t offset;
      if (!flow_corner(a, sample, k, a.input, &offset)) continue;
      for (int64_t c = 0; c < a.channels; ++c)
        product[k] += A(load(gradient[c * a.gradient.stride[1]])) * A(load(input[offset + c * a.input.stride[1]]));
    }
    A dx, dy;
    flow_gradient(sample, product, &dx, &dy);
    A* out = element<A>(a.out, at);
    out[0] = dx;
    out[a.out.stride[1]] = dy;
  }
}

}  // namespace

void flow_warp_forward(const FlowWarpArguments& a, void* stream) {
  const int64_t slices = slices_of(a), total = a.batch * slices * a.height * a.width;
  dispatch_floating(a.dtype, [&](auto zero) {
    forward_kernel<decltype(zero)><<<blocks_for(total), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, slices, total);
  });
  check_launch("flow_warp_forward");
}

void flow_warp_cells(const FlowWarpArguments& a, void* stream) {
  const int64_t pixels = a.height * a.width, total = a.batch * pixels;
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (a.dtype == DType::float64)
    cells_kernel<double><<<blocks_for(total), kThreads, 0, queue>>>(a, pixels, total);
  else
    cells_kernel<float><<<blocks_for(total), kThreads, 0, queue>>>(a, pixels, total);
  check_launch("flow_warp_cells");
}

void flow_warp_backward_input(const FlowWarpArguments& a, void* stream) {
  const int64_t slices = slices_of(a), total = a.batch * slices * a.height * a.width;
  dispatch_floating(a.dtype, [&](auto zero) {
    backward_input_kernel<decltype(zero)><<<blocks_for(total), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, slices, total);
  });
  check_launch("flow_warp_backward_input");
}

void flow_warp_backward_flow(const FlowWarpArguments& a, void* stream) {
  const int64_t total = a.batch * a.height * a.width;
  dispatch_floating(a.dtype, [&](auto zero) {
    backward_flow_kernel<decltype(zero)><<<blocks_for(total), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, total);
  });
  check_launch("flow_warp_backward_flow");
}

}  // namespace pyposeext::cuda
