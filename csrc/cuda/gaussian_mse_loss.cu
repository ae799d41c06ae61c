#include "ops/gaussian_mse_loss.h"

#include "cuda/gaussian_target.cuh"

namespace pyposeext::cuda {
namespace {

template <typename T>
__device__ const T* map_of(const GaussianLossArguments& a, const Share& share) {
  return static_cast<const T*>(a.prediction) + share.b * a.stride[0] + share.channel * a.stride[1];
}

// kCount neighbouring values of the prediction; more than one only of planes.
template <int kCount, typename T>
__device__ Pack<T, kCount> read(const GaussianLossArguments& a, const T* map, int y, int x) {
  return *reinterpret_cast<const Pack<T, kCount>*>(map + y * a.stride[2] + x * a.stride[3]);
}

// Adds up the lanes' sums in a fixed order: thread t, below `width`, gets those of threads t, t + width, t + 2 * width ...
template <typename A>
__device__ A sum_over_lanes(A sum, int width, A* shared) {
  shared[threadIdx.x] = sum;
  __syncthreads();
  int lanes = kThreads / width;
  while (lanes > 1) {
    const int half = (lanes + 1) / 2, partner = int(threadIdx.x) + half * width;
    if (int(threadIdx.x) < half * width && partner < lanes * width) shared[threadIdx.x] += shared[partner];
    __syncthreads();
    lanes = half;
  }
  const A total = shared[threadIdx.x];
  __syncthreads();
  return total;
}

template <typename T, int kCount>
__global__ void squares_kernel(const GaussianLossArguments a, const Shares shares) {
  using A = Accumulate<T>;
  __shared__ A shared[kThreads];
  const int width = int(a.gaussians.width), thread = int(threadIdx.x);
  for (int64_t block = blockIdx.x; block < shares.blocks; block += gridDim.x) {
    const Share share = share_of(shares, block, kCount);
    const GaussianSet<A> set = gaussian_set<A>(a.gaussians, share.b, share.channel);
    const T* map = map_of<T>(a, share);
    const bool read_at_all = channel_weight<A>(a.gaussians, share.b, share.channel) != A(0);
    A sum = A(0);
    for (int pixel = share.first; read_at_all && pixel < share.last; pixel += share.step) {
      const int y = pixel / width, x = pixel % width;
      const Pack<T, kCount> pack = read<kCount>(a, map, y, x);
      A values[kCount];
      target_values<kCount>(a.gaussians, set, y, x, values);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const A difference = load(pack.value[i]) - values[i];
        sum = multiply_add(difference, difference, sum);
      }
    }
    const int64_t rest = shares.channels - share.channel / kThreads * kThreads;
    const int maps = !shares.packed ? 1 : int(rest < kThreads ? rest : kThreads);
    const A total = sum_over_lanes(sum, maps, shared);
    if (thread >= maps) continue;
    const int64_t number = (share.b * shares.channels + share.channel) * shares.segments + block % shares.segments;
    static_cast<A*>(a.partial)[number] = total;
  }
}

template <typename A>
__device__ double map_loss(const GaussianLossArguments& a, const Shares& shares, int64_t map) {
  const double weight = channel_weight<A>(a.gaussians, map / shares.channels, map % shares.channels);
  const A* partial = static_cast<const A*>(a.partial) + map * shares.segments;
  double sum = 0;
  for (int64_t i = 0; i < shares.segments; ++i) sum += double(partial[i]);
  return weight == 0 ? 0 : sum * (weight * weight) * loss_scale(a.gaussians);
}

template <typename A>
__global__ void losses_kernel(const GaussianLossArguments a, const Shares shares) {
  PYPOSEEXT_GRID_STRIDE(map, a.gaussians.batch * shares.channels) static_cast<A*>(a.loss)[map] = A(map_loss<A>(a, shares, map));
}

template <typename A>
__global__ void total_kernel(const GaussianLossArguments a, const Shares shares) {  // one block
  __shared__ double shared[kThreads];
  double sum = 0;
  for (int64_t map = threadIdx.x; map < a.gaussians.batch * shares.channels; map += kThreads) sum += map_loss<A>(a, shares, map);
  sum = sum_over_lanes(sum, 1, shared);
  if (threadIdx.x == 0) *static_cast<A*>(a.loss) = A(sum * reduction_scale(a));
}

template <typename T, int kCount>
__global__ void gradient_kernel(const GaussianLossArguments a, const Shares shares) {
  using A = Accumulate<T>;
  const int width = int(a.gaussians.width);
  for (int64_t block = blockIdx.x; block < shares.blocks; block += gridDim.x) {
    const Share share = share_of(shares, block, kCount);
    const GaussianSet<A> set = gaussian_set<A>(a.gaussians, share.b, share.channel);
    const T* map = map_of<T>(a, share);
    T* out = static_cast<T*>(a.out) + share.b * shares.channels * shares.pixels;
    out += shares.packed ? share.channel : share.channel * shares.pixels;
    const int64_t stride = shares.packed ? shares.channels : 1;
    const A factor = gradient_factor<A>(a, share.b, share.channel);
    for (int pixel = share.first; pixel < share.last; pixel += share.step) {
      const int y = pixel / width, x = pixel % width;
      Pack<T, kCount> result{};
      if (factor != A(0)) {
        const Pack<T, kCount> pack = read<kCount>(a, map, y, x);
        A values[kCount];
        target_values<kCount>(a.gaussians, set, y, x, values);
#pragma unroll
        for (int i = 0; i < kCount; ++i) store(factor * (load(pack.value[i]) - values[i]), result.value + i);
      }
      *reinterpret_cast<Pack<T, kCount>*>(out + pixel * stride) = result;
    }
  }
}

// Whether whole packs of a plane's row can be read at once.
template <typename T>
bool reads_packs(const GaussianLossArguments& a) {
  constexpr int64_t kCount = 16 / sizeof(T);
  return !a.packed && a.gaussians.width % kCount == 0 && a.stride[3] == 1 && a.stride[0] % kCount == 0 && a.stride[1] % kCount == 0 &&
         a.stride[2] % kCount == 0 && reinterpret_cast<uintptr_t>(a.prediction) % 16 == 0;
}

template <typename A>
void prepare(const GaussianArguments& a, cudaStream_t stream) {
  if (a.joints == 0) return;
  prepare_joints_kernel<A><<<blocks_for(a.batch * a.joints), kThreads, 0, stream>>>(a);
  check_launch("gaussian_mse_loss");
}

template <typename T, int kCount>
void launch_squares(const GaussianLossArguments& a, const Shares& shares, cudaStream_t stream) {
  squares_kernel<T, kCount><<<blocks_for(shares.blocks, 1), kThreads, 0, stream>>>(a, shares);
  check_launch("gaussian_mse_loss");
}

template <typename T, int kCount>
void launch_gradient(const GaussianLossArguments& a, const Shares& shares, cudaStream_t stream) {
  gradient_kernel<T, kCount><<<blocks_for(shares.blocks, 1), kThreads, 0, stream>>>(a, shares);
  check_launch("gaussian_mse_loss_backward");
}

template <typename T>
void forward(const GaussianLossArguments& a, cudaStream_t stream) {
  using A = Accumulate<T>;
  const Shares shares = shares_of(a.gaussians, a.packed, segment_pixels(a.packed));
  prepare<A>(a.gaussians, stream);
  if (reads_packs<T>(a))
    launch_squares<T, 16 / sizeof(T)>(a, shares, stream);
  else
    launch_squares<T, 1>(a, shares, stream);
  if (a.reduction == Reduction::none)
    losses_kernel<A><<<blocks_for(a.gaussians.batch * shares.channels), kThreads, 0, stream>>>(a, shares);
  else
    total_kernel<A><<<1, kThreads, 0, stream>>>(a, shares);
  check_launch("gaussian_mse_loss");
}

template <typename T>
void backward(const GaussianLossArguments& a, cudaStream_t stream) {
  const Shares shares = shares_of(a.gaussians, a.packed, segment_pixels(a.packed));
  prepare<Accumulate<T>>(a.gaussians, stream);
  if (reads_packs<T>(a))
    launch_gradient<T, 16 / sizeof(T)>(a, shares, stream);
  else
    launch_gradient<T, 1>(a, shares, stream);
}

}  // namespace

void gaussian_mse_loss(const GaussianLossArguments& a, void* stream) {
  dispatch_floating(a.gaussians.dtype, [&](auto zero) { forward<decltype(zero)>(a, static_cast<cudaStream_t>(stream)); });
}

void gaussian_mse_loss_backward(const GaussianLossArguments& a, void* stream) {
  dispatch_floating(a.gaussians.dtype, [&](auto zero) { backward<decltype(zero)>(a, static_cast<cudaStream_t>(stream)); });
}

}  // namespace pyposeext::cuda
