// What the CUDA kernels of flow_warp and flow_warp_pool share.
#pragma once
#include "common/flow_warp_math.h"

namespace pyposeext::cuda {

template <typename T>
__device__ __forceinline__ T* frame_data(const FlowMaps& maps, int64_t b, int64_t s) {
  return static_cast<T*>(maps.data) + b * maps.batch + s * maps.step;
}

// The corners of one sample in a plane of some maps. Where the weight is 0 nothing is read.
template <typename A>
struct FlowCorners {
  int64_t offset;  // of corner 0, which may lie outside
  A weight[4];
};

template <typename A>
__device__ __forceinline__ FlowCorners<A> flow_corners(const FlowWarpArguments& a, int64_t b, int64_t s, int32_t pixel, const FlowMaps& maps) {
  const int32_t width = int32_t(a.width);
  const FlowSample<A> sample = flow_sample<A>(a, b, s, pixel / width, pixel % width);
  FlowCorners<A> corners;
  corners.offset = sample.y.low * maps.row + sample.x.low * maps.column;
#pragma unroll
  for (int k = 0; k < 4; ++k) corners.weight[k] = flow_weight(sample, a.height, a.width, k);
  return corners;
}

template <typename T, typename A>
__device__ __forceinline__ A sum_corners(const T* plane, const FlowMaps& maps, const FlowCorners<A>& corners) {
  A sum = A(0);
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (corners.weight[k] != A(0)) sum = multiply_add(corners.weight[k], A(load(plane[corners.offset + k / 2 * maps.row + k % 2 * maps.column])), sum);
  return sum;
}

}  // namespace pyposeext::cuda
