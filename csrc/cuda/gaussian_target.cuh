// Gaussian targets pixel by pixel, for the CUDA kernels of gaussian_heatmaps and gaussian_mse_loss. A first kernel fills
// the Gaussians of all joints; the second evaluates them where it is about to write or to compare, so that no target is
// ever read. One exponential for a row and one for each pixel cost less than the bytes they save.
#pragma once
#include "common/cuda_launch.cuh"
#include "common/gaussian_math.h"
#include "cuda/pack.cuh"

namespace pyposeext::cuda {

template <typename A>
__device__ A along_axis(A scale, A distance) {
  return exp(scale * (distance * distance));
}

// The target's values at kCount neighbouring pixels of row y, from pixel x.
template <int kCount, typename A>
__device__ void target_values(const GaussianArguments& a, const GaussianSet<A>& set, int y, int x, A* values) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = A(0);
  for (int64_t n = 0; n < set.count; ++n) {
    const Gaussian<A> gaussian = set.first[n];
    if (y < gaussian.top || y >= gaussian.bottom || x + kCount <= gaussian.left || x >= gaussian.right) continue;
    const A factor = A(a.amplitude) * along_axis(A(a.scale), A(y) - gaussian.y);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (x + i < gaussian.left || x + i >= gaussian.right) continue;
      const A value = factor * along_axis(A(a.scale), A(x + i) - gaussian.x);
      if (value > values[i] && value >= A(a.cutoff)) values[i] = value;
    }
  }
  if (!set.background) return;
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = values[i] < A(1) ? A(1) - values[i] : A(0);
}

template <typename A>
__global__ void prepare_joints_kernel(const GaussianArguments a) {
  PYPOSEEXT_GRID_STRIDE(i, a.batch * a.joints) prepare_joint<A>(a, i / a.joints, i % a.joints);
}

// The part of the maps that a thread has: pixels first, first + step, ... below last of one channel, kCount at a time.
struct Share {
  int64_t b, channel;
  int first, step, last;
};

// Planes: a block has `segment` pixels of one map. Packed channels: it has as many pixels of up to kThreads channels, and
// each thread one channel, so that neighbours read neighbouring elements.
struct Shares {
  bool packed;
  int64_t channels, pixels, segment, segments, slices, blocks;
};

inline Shares shares_of(const GaussianArguments& a, bool packed, int64_t segment) {
  Shares shares{packed, channels_of(a), a.height * a.width, segment, 0, 0, 0};
  shares.segments = (shares.pixels + segment - 1) / segment;
  shares.slices = packed ? (shares.channels + kThreads - 1) / kThreads : shares.channels;
  shares.blocks = a.batch * shares.slices * shares.segments;
  return shares;
}

// Consecutive blocks have the parts of a map, then the maps of an image.
__device__ inline Share share_of(const Shares& shares, int64_t block, int count) {
  const int64_t segment = block % shares.segments, slice = block / shares.segments % shares.slices;
  Share share{block / shares.segments / shares.slices, slice, 0, 0, 0};
  const int64_t first = segment * shares.segment, end = first + shares.segment;
  share.last = int(end < shares.pixels ? end : shares.pixels);
  const int thread = int(threadIdx.x);
  if (!shares.packed) {
    share.first = int(first) + thread * count;
    share.step = kThreads * count;
    return share;
  }
  const int64_t rest = shares.channels - slice * kThreads;
  const int width = int(rest < kThreads ? rest : kThreads), lanes = kThreads / width;
  share.channel = slice * kThreads + thread % width;
  share.first = thread < lanes * width ? int(first) + thread / width : share.last;
  share.step = lanes;
  return share;
}

}  // namespace pyposeext::cuda
