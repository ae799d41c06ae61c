// The forward of flow_warp and flow_warp_pool, and the gradients of the flow and of the pooled sum's weight.
#include "ops/flow_warp.h"

#include "common/cuda_launch.cuh"
#include "cuda/flow_warp.cuh"

namespace pyposeext::cuda {
namespace {

constexpr int kPair = 2;            // neighbouring pixels of a thread of the planar forward
constexpr int kTilePixels = 32;     // of a block of the tiled forward
constexpr int kTileSteps = 8;       // frames whose samples such a block holds at once
constexpr int kValuesPerThread = 4;  // of a tile
constexpr int kWeightPixels = 1024;  // whose part of the weight's gradient one block sums

// Two neighbouring elements, stored at once.
template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};

// Planes: a thread has two neighbouring pixels, keeps where they sample the map in registers and walks a slice of the
// channels. Lanes have neighbouring pixels, so that stores, and loads where the flow is smooth, are whole lines.
template <typename T, bool kPairedStore>
__global__ void __launch_bounds__(kThreads) forward_kernel(const FlowWarpArguments a, int32_t pixels, int64_t slice, int64_t slices) {
  using A = Accumulate<T>;
  const int32_t p = (int32_t(blockIdx.x) * kThreads + int32_t(threadIdx.x)) * kPair;
  if (p >= pixels) return;
  for (int64_t frame = blockIdx.y; frame < a.batch * slices; frame += gridDim.y) {
    const int64_t b = frame / slices, first = frame % slices * slice, last = first + slice < a.channels ? first + slice : a.channels;
    FlowCorners<A> corners[kPair];
#pragma unroll
    for (int i = 0; i < kPair; ++i) corners[i] = flow_corners<A>(a, b, 0, p + i < pixels ? p + i : p, a.input);
    const T* input = frame_data<const T>(a.input, b, 0) + first * a.input.channel;
    T* out = frame_data<T>(a.out, b, 0) + first * a.out.channel + p;
#pragma unroll 4
    for (int64_t c = first; c < last; ++c, input += a.input.channel, out += a.out.channel) {
      Pair<T> pair;
      store(sum_corners(input, a.input, corners[0]), &pair.first);
      store(sum_corners(input, a.input, corners[1]), &pair.second);
      if constexpr (kPairedStore) {
        *reinterpret_cast<Pair<T>*>(out) = pair;
      } else {
        out[0] = pair.first;
        if (p + 1 < pixels) out[1] = pair.second;
      }
    }
  }
}

// Any layout, and the pooled sum: a block has a tile of pixels and some channels. The samples of a few frames at a time are
// computed once into shared memory; a thread then owns the same few values of the tile through all frames.
template <typename T>
__global__ void __launch_bounds__(kThreads) tile_kernel(const FlowWarpArguments a, int32_t pixels, int32_t tiles, int32_t slice, int32_t slices) {
  using A = Accumulate<T>;
  __shared__ FlowCorners<A> corners[kTileSteps][kTilePixels];
  const bool by_channel = a.out.channel == 1;  // which neighbours in memory the lanes take
  for (int64_t tile = blockIdx.x; tile < a.batch * slices * tiles; tile += gridDim.x) {
    const int64_t b = tile / (int64_t(slices) * tiles);
    const int32_t start = int32_t(tile % tiles) * kTilePixels, first = int32_t(tile / tiles % slices) * slice;
    const int32_t count = pixels - start < kTilePixels ? pixels - start : kTilePixels;
    const int32_t channels = int32_t(a.channels) - first < slice ? int32_t(a.channels) - first : slice, values = count * channels;
    int32_t pixel[kValuesPerThread], channel[kValuesPerThread];
    A sum[kValuesPerThread];
#pragma unroll
    for (int i = 0; i < kValuesPerThread; ++i) {
      const int32_t v = int32_t(threadIdx.x) + i * kThreads;
      pixel[i] = by_channel ? v / channels : v % count;
      channel[i] = first + (by_channel ? v % channels : v / count);
      sum[i] = v < values && a.bias != nullptr ? static_cast<const A*>(a.bias)[channel[i]] : A(0);
    }
    for (int64_t s = 0; s < a.steps; s += kTileSteps) {
      __syncthreads();
      for (int32_t i = threadIdx.x; i < kTileSteps * kTilePixels; i += kThreads) {
        const int32_t step = i / kTilePixels, p = i % kTilePixels;
        if (s + step < a.steps && p < count) corners[step][p] = flow_corners<A>(a, b, s + step, start + p, a.input);
      }
      __syncthreads();
      for (int64_t step = 0; step < kTileSteps && s + step < a.steps; ++step) {
        const T* input = frame_data<const T>(a.input, b, s + step);
        const A* weight = a.weight == nullptr ? nullptr : static_cast<const A*>(a.weight) + (s + step) * a.channels;
#pragma unroll
        for (int i = 0; i < kValuesPerThread; ++i) {
          if (int32_t(threadIdx.x) + i * kThreads >= values) continue;
          const A value = sum_corners(input + channel[i] * a.input.channel, a.input, corners[step][pixel[i]]);
          sum[i] = weight == nullptr ? value : multiply_add(weight[channel[i]], value, sum[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kValuesPerThread; ++i) {
      if (int32_t(threadIdx.x) + i * kThreads >= values) continue;
      const int64_t p = start + pixel[i];
      store(sum[i], frame_data<T>(a.out, b, 0) + channel[i] * a.out.channel + p / a.width * a.out.row + p % a.width * a.out.column);
    }
  }
}

template <typename T>
void launch_tiles(const FlowWarpArguments& a, cudaStream_t stream) {
  const int32_t pixels = int32_t(a.height * a.width), tiles = int32_t((int64_t(pixels) + kTilePixels - 1) / kTilePixels);
  const int32_t most = kThreads * kValuesPerThread / kTilePixels, slice = a.channels < most ? int32_t(a.channels) : most;
  const int32_t slices = int32_t((a.channels + slice - 1) / slice);
  tile_kernel<T><<<blocks_for(a.batch * slices * tiles, 1), kThreads, 0, stream>>>(a, pixels, tiles, slice, slices);
}

// Slices enough that a small batch fills the processors, but no smaller than four channels: each computes the samples again.
template <typename T>
void launch_planes(const FlowWarpArguments& a, cudaStream_t stream) {
  constexpr int64_t kWantedThreads = 1 << 18;
  const int32_t pixels = int32_t(a.height * a.width);
  const int64_t blocks = (int64_t(pixels) + kThreads * kPair - 1) / (kThreads * kPair), threads = a.batch * blocks * kThreads;
  int64_t slices = (kWantedThreads + threads - 1) / threads;
  if (slices > (a.channels + 3) / 4) slices = (a.channels + 3) / 4;
  const int64_t slice = (a.channels + slices - 1) / slices, frames = a.batch * slices;
  const dim3 grid(unsigned(blocks), unsigned(frames < 65535 ? frames : 65535));
  if (pixels % kPair == 0)
    forward_kernel<T, true><<<grid, kThreads, 0, stream>>>(a, pixels, slice, slices);
  else
    forward_kernel<T, false><<<grid, kThreads, 0, stream>>>(a, pixels, slice, slices);
}

// The gradient of the flow: kLanes neighbouring threads share a pixel and its channels, one of them where pixels, not
// channels, lie next to each other.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads) backward_flow_kernel(const FlowWarpArguments a, int32_t pixels, int64_t total) {
  using A = Accumulate<T>;
  const int64_t rounded = (total + kThreads - 1) / kThreads * kThreads;  // whole warps, for the shuffles
  PYPOSEEXT_GRID_STRIDE(index, rounded) {
    const int64_t item = index < total ? index : total - 1, frame = item / kLanes / pixels, b = frame / a.steps, s = frame % a.steps;
    const int32_t p = int32_t(item / kLanes % pixels);
    const int64_t y = p / a.width, x = p % a.width;
    const FlowSample<A> sample = flow_sample<A>(a, b, s, y, x);
    const T* input = frame_data<const T>(a.input, b, s);
    const T* gradient = frame_data<const T>(a.gradient, b, s) + y * a.gradient.row + x * a.gradient.column;
    const A* weight = a.weight == nullptr ? nullptr : static_cast<const A*>(a.weight) + s * a.channels;
    A product[4] = {};
    bool exists[4];
    int64_t offset[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t row = sample.y.low + k / 2, column = sample.x.low + k % 2;
      exists[k] = sample.inside && row >= 0 && row < a.height && column >= 0 && column < a.width;
      offset[k] = row * a.input.row + column * a.input.column;
    }
    for (int64_t c = item % kLanes; c < a.channels; c += kLanes) {
      const A g = A(load(gradient[c * a.gradient.channel])) * (weight == nullptr ? A(1) : weight[c]);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (exists[k]) product[k] = multiply_add(g, A(load(input[offset[k] + c * a.input.channel])), product[k]);
    }
    A dx = A(0), dy = A(0);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      for (int step = kLanes / 2; step > 0; step /= 2) product[k] += __shfl_xor_sync(0xffffffffu, product[k], step);
      const FlowSlopes<A> slopes = flow_slopes(sample.y.fraction, sample.x.fraction, k);
      if (slopes.along_x * sample.x.slope != A(0)) dx += slopes.along_x * product[k];
      if (slopes.along_y * sample.y.slope != A(0)) dy += slopes.along_y * product[k];
    }
    if (index >= total || item % kLanes != 0) continue;
    A* out = frame_data<A>(a.out, b, s) + y * a.out.row + x * a.out.column;
    out[0] = dx;
    out[a.out.channel] = dy;
  }
}

template <typename T>
void launch_backward_flow(const FlowWarpArguments& a, cudaStream_t stream) {
  const int64_t pixels = a.height * a.width, frames = a.batch * a.steps;
  if (a.input.channel == 1 && a.channels >= 8)
    backward_flow_kernel<T, 8><<<blocks_for(8 * frames * pixels), kThreads, 0, stream>>>(a, int32_t(pixels), 8 * frames * pixels);
  else
    backward_flow_kernel<T, 1><<<blocks_for(frames * pixels), kThreads, 0, stream>>>(a, int32_t(pixels), frames * pixels);
}

// One warp sums one channel of one frame over some pixels; the parts are then summed in their order.
template <typename T>
__global__ void __launch_bounds__(kThreads) weight_parts_kernel(const FlowWarpArguments a, int32_t pixels, int64_t blocks) {
  using A = Accumulate<T>;
  __shared__ FlowCorners<A> corners[kThreads];
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  for (int64_t index = blockIdx.x; index < a.batch * blocks * a.steps; index += gridDim.x) {
    const int64_t s = index % a.steps, part = index / a.steps, b = part / blocks;
    const int32_t start = int32_t(part % blocks) * kWeightPixels, end = pixels - start < kWeightPixels ? pixels : start + kWeightPixels;
    A* partial = static_cast<A*>(a.partial) + (part * a.steps + s) * a.channels;
    for (int32_t first = start; first < end; first += kThreads) {
      __syncthreads();
      const int32_t own = first + int32_t(threadIdx.x), count = end - first < kThreads ? end - first : kThreads;
      if (own < end) corners[threadIdx.x] = flow_corners<A>(a, b, s, own, a.input);
      __syncthreads();
      for (int64_t c = warp; c < a.channels; c += kThreads / 32) {
        const T* input = frame_data<const T>(a.input, b, s) + c * a.input.channel;
        const T* gradient = frame_data<const T>(a.gradient, b, 0) + c * a.gradient.channel;
        A sum = A(0);
        for (int32_t i = lane; i < count; i += 32) {
          const int64_t p = first + i;
          sum = multiply_add(A(load(gradient[p / a.width * a.gradient.row + p % a.width * a.gradient.column])), sum_corners(input, a.input, corners[i]), sum);
        }
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (lane == 0) partial[c] = first == start ? sum : partial[c] + sum;
      }
    }
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads) weight_sum_kernel(const A* partial, int64_t parts, int64_t numbers, A* total) {
  PYPOSEEXT_GRID_STRIDE(i, numbers) {
    A sum = A(0);
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * numbers + i];
    total[i] = sum;
  }
}

}  // namespace

void flow_warp_forward(const FlowWarpArguments& a, void* stream) {
  dispatch_floating(a.dtype, [&](auto zero) {
    const bool planes = a.out.channel != 1 || a.channels == 1;
    planes ? launch_planes<decltype(zero)>(a, static_cast<cudaStream_t>(stream)) : launch_tiles<decltype(zero)>(a, static_cast<cudaStream_t>(stream));
  });
  check_launch("flow_warp_forward");
}

void flow_warp_pool_forward(const FlowWarpArguments& a, void* stream) {
  dispatch_floating(a.dtype, [&](auto zero) { launch_tiles<decltype(zero)>(a, static_cast<cudaStream_t>(stream)); });
  check_launch("flow_warp_pool_forward");
}

void flow_warp_backward_flow(const FlowWarpArguments& a, void* stream) {
  dispatch_floating(a.dtype, [&](auto zero) { launch_backward_flow<decltype(zero)>(a, static_cast<cudaStream_t>(stream)); });
  check_launch("flow_warp_backward_flow");
}

int64_t flow_warp_weight_parts(const FlowWarpArguments& a) { return a.batch * ((a.height * a.width + kWeightPixels - 1) / kWeightPixels); }

void flow_warp_pool_backward_weight(const FlowWarpArguments& a, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const int64_t parts = flow_warp_weight_parts(a), numbers = a.steps * a.channels;
  dispatch_floating(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    weight_parts_kernel<T><<<blocks_for(parts * a.steps, 1), kThreads, 0, queue>>>(a, int32_t(a.height * a.width), parts / a.batch);
    weight_sum_kernel<A><<<blocks_for(numbers), kThreads, 0, queue>>>(static_cast<const A*>(a.partial), parts, numbers, static_cast<A*>(a.weight_gradient));
  });
  check_launch("flow_warp_pool_backward_weight");
}

}  // namespace pyposeext::cuda
