#include "ops/gaussian_heatmaps.h"

#include "cuda/gaussian_target.cuh"

namespace pyposeext::cuda {
namespace {

constexpr int64_t kSegment = 2048, kPackedSegment = 512;  // pixels of a block

template <typename T, int kCount>
__global__ void draw_kernel(const GaussianHeatmapsArguments arguments, const Shares shares) {
  using A = Accumulate<T>;
  const GaussianArguments& a = arguments.gaussians;
  const int width = int(a.width);
  for (int64_t block = blockIdx.x; block < shares.blocks; block += gridDim.x) {
    const Share share = share_of(shares, block, kCount);
    const GaussianSet<A> set = gaussian_set<A>(a, share.b, share.channel);
    T* out = static_cast<T*>(arguments.out) + share.b * shares.channels * shares.pixels;
    out += shares.packed ? share.channel : share.channel * shares.pixels;
    const int64_t stride = shares.packed ? shares.channels : 1;
    for (int pixel = share.first; pixel < share.last; pixel += share.step) {
      A values[kCount];
      Pack<T, kCount> pack;
      target_values<kCount>(a, set, pixel / width, pixel % width, values);
#pragma unroll
      for (int i = 0; i < kCount; ++i) store(values[i], pack.value + i);
      *reinterpret_cast<Pack<T, kCount>*>(out + pixel * stride) = pack;
    }
  }
}

template <typename T, int kCount>
void draw(const GaussianHeatmapsArguments& a, cudaStream_t stream) {
  const Shares shares = shares_of(a.gaussians, a.packed, a.packed ? kPackedSegment : kSegment);
  if (shares.blocks == 0) return;
  draw_kernel<T, kCount><<<blocks_for(shares.blocks, 1), kThreads, 0, stream>>>(a, shares);
  check_launch("gaussian_heatmaps");
}

}  // namespace

void gaussian_heatmaps(const GaussianHeatmapsArguments& a, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const int64_t joints = a.gaussians.batch * a.gaussians.joints;
  dispatch_floating(a.gaussians.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (joints > 0) {
      prepare_joints_kernel<Accumulate<T>><<<blocks_for(joints), kThreads, 0, queue>>>(a.gaussians);
      check_launch("gaussian_heatmaps");
    }
    constexpr int kCount = 16 / sizeof(T);
    if (a.packed || a.gaussians.width % kCount != 0)
      draw<T, 1>(a, queue);
    else
      draw<T, kCount>(a, queue);
  });
}

}  // namespace pyposeext::cuda
