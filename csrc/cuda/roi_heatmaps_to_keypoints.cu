#include "ops/roi_heatmaps_to_keypoints.h"

#include "common/bicubic_math.h"
#include "common/cuda_launch.cuh"

namespace pyposeext::cuda {
namespace {

// One block searches one map. Of equal values the one that comes first in row-major order wins, whatever the order in
// which threads met them.
template <typename A>
__device__ void keep_better(A* value, int64_t* index, A other_value, int64_t other_index) {
  if (other_value > *value || (other_value == *value && other_index < *index)) {
    *value = other_value;
    *index = other_index;
  }
}

template <typename T>
__global__ void search_kernel(const RoiHeatmapsArguments a) {
  using A = Accumulate<T>;
  __shared__ A values[kThreads];
  __shared__ int64_t indices[kThreads];
  for (int64_t map = blockIdx.x; map < a.rois * a.joints; map += gridDim.x) {
    const int64_t n = map / a.joints, k = map % a.joints;
    const A* box = static_cast<const A*>(a.boxes) + 4 * n;
    const A width = box[2] - box[0] > A(1) ? box[2] - box[0] : A(1), height = box[3] - box[1] > A(1) ? box[3] - box[1] : A(1);
    const int64_t columns = target_size(box[2] - box[0]), rows = target_size(box[3] - box[1]);
    const bool decodes = columns > 0 && rows > 0 && is_finite_box(box);
    const T* heatmap = static_cast<const T*>(a.heatmaps) + n * a.stride[0] + k * a.stride[1];
    A value = -A(INFINITY);
    int64_t index = 0;
    for (int64_t i = threadIdx.x; decodes && i < rows * columns; i += blockDim.x) {
      const CubicTaps<A> row = cubic_taps<A>(i / columns, a.height, rows), column = cubic_taps<A>(i % columns, a.width, columns);
      A sum = A(0);
      for (int x = 0; x < 4; ++x) {
        A filtered = A(0);
        for (int y = 0; y < 4; ++y) filtered += row.weight[y] * A(load(heatmap[row.pixel[y] * a.stride[2] + column.pixel[x] * a.stride[3]]));
        sum += column.weight[x] * filtered;
      }
      if (sum > value) {
        value = sum;
        index = i;
      }
    }
    values[threadIdx.x] = value;
    indices[threadIdx.x] = index;
    for (int step = kThreads / 2; step > 0; step /= 2) {
      __syncthreads();
      if (threadIdx.x < step) keep_better(&values[threadIdx.x], &indices[threadIdx.x], values[threadIdx.x + step], indices[threadIdx.x + step]);
    }
    if (threadIdx.x == 0) {
      A *keypoint = static_cast<A*>(a.keypoints) + 2 * map, *score = static_cast<A*>(a.scores) + map;
      keypoint[0] = decodes ? (A(indices[0] % columns) + A(0.5)) * (width / A(columns)) + box[0] : A(0);
      keypoint[1] = decodes ? (A(indices[0] / columns) + A(0.5)) * (height / A(rows)) + box[1] : A(0);
      *score = decodes ? values[0] : A(0);
    }
    __syncthreads();  // before the next map overwrites the shared values
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
