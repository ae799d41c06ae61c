#include "cuda/heatmap_lanes.cuh"
#include "ops/heatmap_argmax.h"

namespace pyposeext::cuda {
namespace {

template <typename A>
__device__ A pixel_gradient(const SoftGradient<A>& map, A value, A y, A x) {
  const A weight = power_of_two(multiply_add(map.exponent.scale, value, map.exponent.shift));
  return weight * (map.along_x * (x - map.mean_x) + map.along_y * (y - map.mean_y));
}

// The gradient's pixels in the order in which they lie in memory, so that neighbouring threads write neighbouring elements.
template <typename T>
__global__ void element_kernel(const HeatmapSoftArgmaxArguments a, int64_t total) {
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
    const int64_t map = rest * a.joints + k;
    store(pixel_gradient(soft_gradient<A>(a, map), map_view<T>(a, map).at(y, x), A(y), A(x)),
          static_cast<T*>(a.out) + rest * a.out_stride[0] + k * a.out_stride[1] + y * a.out_stride[2] + x * a.out_stride[3]);
  }
}

// The joint whose counterpart is `other`, or -1.
__device__ inline int64_t joint_of(const HeatmapMaps& a, int64_t other) {
  for (int64_t k = 0; k < a.joints; ++k)
    if (counterpart(a, k) == other) return k;
  return -1;
}

// The gradient of a map of the mirrored image, by one block.
template <typename T>
__device__ void mirrored_gradient(const HeatmapSoftArgmaxArguments& a, int64_t image, int64_t other) {
  using A = Accumulate<T>;
  T* out = static_cast<T*>(a.flipped_out) + image * a.flipped_out_stride[0] + other * a.flipped_out_stride[1];
  const int64_t joint = joint_of(a, other), map = image * a.joints + (joint < 0 ? 0 : joint);
  const SoftGradient<A> soft = soft_gradient<A>(a, map);
  const MapView<T> view = map_view<T>(a, map);
  for (int64_t i = threadIdx.x; i < a.height * a.width; i += blockDim.x) {
    const int64_t y = i / a.width, column = i % a.width, x = a.width - 1 - column + a.flip_shift;
    A sum = A(0);
    if (joint >= 0 && x < a.width) sum += pixel_gradient(soft, view.at(y, x), A(y), A(x));
    if (joint >= 0 && a.flip_shift > 0 && column == a.width - 1) sum += pixel_gradient(soft, view.at(y, 0), A(y), A(0));
    store(sum, out + y * a.flipped_out_stride[2] + column * a.flipped_out_stride[3]);
  }
}

// The gradient of a map by one block: 16 bytes at a time where pixels lie next to each other.
template <typename T>
__device__ void map_gradient(const HeatmapSoftArgmaxArguments& a, int64_t map) {
  using A = Accumulate<T>;
  constexpr unsigned kSize = Packet<T>::kSize;
  T* out = static_cast<T*>(a.out) + map / a.joints * a.out_stride[0] + map % a.joints * a.out_stride[1];
  const SoftGradient<A> soft = soft_gradient<A>(a, map);
  const MapView<T> view = map_view<T>(a, map);
  const int64_t count = a.height * a.width;
  int64_t done = 0;
  if (is_read_in_packets(view) && a.out_stride[3] == 1 && a.out_stride[2] == a.width && reinterpret_cast<uintptr_t>(out) % sizeof(Packet<T>) == 0) {
    const unsigned width = unsigned(a.width), packets = unsigned(count) / kSize;
#pragma unroll 2
    for (unsigned i = threadIdx.x; i < packets; i += blockDim.x) {
      const Packet<T> packet = reinterpret_cast<const Packet<T>*>(view.data)[i];
      Packet<T> result;
#pragma unroll
      for (unsigned j = 0; j < kSize; ++j) {
        const unsigned pixel = i * kSize + j, y = pixel / width, x = pixel - y * width;
        store(pixel_gradient(soft, Accumulate<T>(load(packet.value[j])), A(y), A(x)), &result.value[j]);
      }
      reinterpret_cast<Packet<T>*>(out)[i] = result;
    }
    done = int64_t(packets) * kSize;
  }
  for (int64_t i = done + threadIdx.x; i < count; i += blockDim.x) {
    const int64_t y = i / a.width, x = i % a.width;
    store(pixel_gradient(soft, view.at(y, x), A(y), A(x)), out + y * a.out_stride[2] + x * a.out_stride[3]);
  }
}

template <typename T>
__global__ void map_backward_kernel(const HeatmapSoftArgmaxArguments a) {
  const int64_t maps = a.batch * a.joints;
  for (int64_t task = blockIdx.x; task < (a.flipped == nullptr ? maps : 2 * maps); task += gridDim.x) {
    if (task < maps)
      map_gradient<T>(a, task);
    else
      mirrored_gradient<T>(a, (task - maps) / a.joints, (task - maps) % a.joints);
  }
}

}  // namespace

void heatmap_soft_argmax_backward(const HeatmapSoftArgmaxArguments& a, void* stream) {
  const int64_t maps = a.batch * a.joints, total = maps * a.height * a.width;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const bool dense = a.stride[3] == 1 && a.out_stride[3] == 1;
  dispatch_floating(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (dense || a.flipped != nullptr)
      map_backward_kernel<T><<<blocks_for(a.flipped == nullptr ? maps : 2 * maps, 1), kThreads, 0, on>>>(a);
    else
      element_kernel<T><<<blocks_for(total), kThreads, 0, on>>>(a, total);
  });
  check_launch("heatmap_soft_argmax_backward");
}

}  // namespace pyposeext::cuda
