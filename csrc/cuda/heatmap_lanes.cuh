// What one thread finds in its part of a heatmap, and how threads bring their findings together. Maps are read once: the
// sums under the softmax are rescaled whenever a larger value turns up.
#pragma once
#include "common/cuda_launch.cuh"
#include "common/heatmap_argmax_math.h"

namespace pyposeext::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// The larger value, and of equal ones the first. An index of -1 stands for nothing and comes with minus infinity.
template <typename A>
__device__ Peak<A> better(const Peak<A>& a, const Peak<A>& b) {
  if (b.index < 0) return a;
  return a.index < 0 || b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

template <typename A>
__device__ Peak<A> shuffled(const Peak<A>& peak, int step) {
  return {__shfl_xor_sync(kAllLanes, peak.value, step), int64_t(__shfl_xor_sync(kAllLanes, (long long)(peak.index), step))};
}

// The first maximum; NaN never wins. A thread meets its pixels in rising order.
template <typename A> struct PeakFinder {
  using Number = A;
  Peak<A> peak{-A(INFINITY), -1};

  template <typename Arguments> __device__ explicit PeakFinder(const Arguments&) {}
  __device__ void add(A value, int64_t index, int64_t, int64_t) {
    if (value > peak.value) peak = {value, index};
  }
  __device__ void merge(const PeakFinder& other) { peak = better(peak, other.peak); }
  __device__ PeakFinder from_lane(int step) const {
    PeakFinder other = *this;
    other.peak = shuffled(peak, step);
    return other;
  }
};

// 2^x for x <= 0, and 0 for NaN, which two equal infinities leave.
__device__ inline float power_of_two(float x) { return x <= 0.0f ? exp2f(x) : 0.0f; }
__device__ inline double power_of_two(double x) { return x <= 0.0 ? exp2(x) : 0.0; }

// The maximum, and the sums of w, w * x and w * y, w being 2^(scale * (value - maximum)); NaN has no weight.
template <typename A> struct MeanFinder {
  using Number = A;
  A scale;
  Peak<A> peak{-A(INFINITY), -1};
  A total = A(0), along_x = A(0), along_y = A(0);

  __device__ explicit MeanFinder(const HeatmapSoftArgmaxArguments& a) : scale(soft_exponent(a, A(0)).scale) {}
  __device__ void rescale(A factor) { total *= factor, along_x *= factor, along_y *= factor; }
  __device__ void add(A value, int64_t index, int64_t y, int64_t x) {
    if (value > peak.value) {
      rescale(power_of_two(scale * (peak.value - value)));
      peak = {value, index};
    }
    const A weight = power_of_two(scale * (value - peak.value));
    total += weight;
    along_x = multiply_add(weight, A(x), along_x);
    along_y = multiply_add(weight, A(y), along_y);
  }
  __device__ void merge(const MeanFinder& other) {
    const Peak<A> best = better(peak, other.peak);
    const A theirs = power_of_two(scale * (other.peak.value - best.value));
    rescale(power_of_two(scale * (peak.value - best.value)));
    peak = best;
    total = multiply_add(other.total, theirs, total);
    along_x = multiply_add(other.along_x, theirs, along_x);
    along_y = multiply_add(other.along_y, theirs, along_y);
  }
  __device__ MeanFinder from_lane(int step) const {
    MeanFinder other = *this;
    other.peak = shuffled(peak, step);
    other.total = __shfl_xor_sync(kAllLanes, total, step);
    other.along_x = __shfl_xor_sync(kAllLanes, along_x, step);
    other.along_y = __shfl_xor_sync(kAllLanes, along_y, step);
    return other;
  }
};

// The 16 bytes that a thread reads at once.
template <typename T> struct alignas(16) Packet {
  static constexpr int kSize = 16 / int(sizeof(T));
  T value[kSize];
};

template <typename T>
__device__ bool is_read_in_packets(const MapView<T>& map) {
  return map.mirrored == nullptr && map.stride_x == 1 && map.stride_y == map.width && map.height * map.width < (int64_t(1) << 31) &&
         reinterpret_cast<uintptr_t>(map.data) % sizeof(Packet<T>) == 0;
}

// Thread `thread` of `threads` adds its part of a map: 16 bytes at a time where pixels lie next to each other, else pixels of
// rows, a row to a warp.
template <typename T, typename Finder>
__device__ void add_part(const MapView<T>& map, int thread, int threads, Finder* finder) {
  constexpr int kSize = Packet<T>::kSize;
  if (!is_read_in_packets(map)) {
    const int warp = thread / kWarp, lane = thread % kWarp;
#pragma unroll 2
    for (int64_t y = warp; y < map.height; y += threads / kWarp)
      for (int64_t x = lane; x < map.width; x += kWarp) finder->add(map.at(y, x), y * map.width + x, y, x);
    return;
  }
  const unsigned width = unsigned(map.width), count = unsigned(map.height) * width, packets = count / kSize;
  const Packet<T>* data = reinterpret_cast<const Packet<T>*>(map.data);
#pragma unroll 4
  for (unsigned i = thread; i < packets; i += threads) {
    const Packet<T> packet = data[i];
    const unsigned first = i * kSize, y = first / width, x = first - y * width;
#pragma unroll
    for (unsigned j = 0; j < kSize; ++j) {
      const bool wraps = x + j >= width;  // into the next row; maps narrower than a packet may wrap again
      const unsigned row = wraps ? (first + j) / width : y;
      finder->add(load(packet.value[j]), first + j, row, wraps ? first + j - row * width : x + j);
    }
  }
  const unsigned rest = packets * kSize + thread;
  if (rest < count) finder->add(load(map.data[rest]), rest, rest / width, rest % width);
}

template <typename Finder>
__device__ void merge_warp(Finder* finder) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) finder->merge(finder->from_lane(step));
}

}  // namespace pyposeext::cuda
