// Stands in for CUDA's own header where the kernels are compiled for the CPU, so that the tests can run them without a GPU.
//
// A launch runs its blocks one after the other; a block's threads are fibers that give way to each other only at barriers
// and warp instructions, in an order that changes from block to block, so that a missing barrier shows as a wrong result.
// A barrier that part of the threads never reach ends the process with a message. What it can't show: speed, the memory
// model between blocks, and what the compiler for the GPU makes of the code.
#pragma once
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __noinline__
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __noinline__

extern thread_local uint3 threadIdx, blockIdx;
extern thread_local dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulation {

void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);
void* dynamic_shared_memory();
void wait_for_block();
void wait_for_warp(unsigned mask);
// 64 bits for each lane of this thread's warp; the two sets take turns, so that one barrier an instruction is enough.
uint64_t* next_warp_slots();
int lane();
unsigned live_lanes();
unsigned participants();  // of the warp instruction just done

template <typename Kernel>
void launch_kernel(const Kernel& kernel, dim3 grid, dim3 block, size_t shared_bytes = 0, cudaStream_t = nullptr) {
  launch(grid, block, shared_bytes, kernel);
}

// What every lane of the warp hands in, seen by all of them.
template <typename T>
const uint64_t* exchange(unsigned mask, T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t* slots = next_warp_slots();
  std::memcpy(&slots[lane()], &value, sizeof value);
  wait_for_warp(mask);
  return slots;
}

template <typename T>
T from_slot(const uint64_t* slots, int lane) {
  T value;
  std::memcpy(&value, &slots[lane], sizeof value);
  return value;
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::wait_for_warp(mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}
int __syncthreads_count(int predicate);
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) > 0; }
inline int __syncthreads_and(int predicate) { return __syncthreads_count(!predicate) == 0; }
inline unsigned __activemask() { return emulation::live_lanes(); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = emulation::lane(), first = lane / width * width;
  return emulation::from_slot<T>(emulation::exchange(mask, value), first + ((source % width) + width) % width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int step, int width = 32) {
  const int lane = emulation::lane(), source = lane ^ step;
  const uint64_t* slots = emulation::exchange(mask, value);
  return source / width > lane / width ? value : emulation::from_slot<T>(slots, source);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned step, int width = 32) {
  const int lane = emulation::lane(), source = lane - int(step);
  const uint64_t* slots = emulation::exchange(mask, value);
  return source < lane / width * width ? value : emulation::from_slot<T>(slots, source);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned step, int width = 32) {
  const int lane = emulation::lane(), source = lane + int(step);
  const uint64_t* slots = emulation::exchange(mask, value);
  return source >= lane / width * width + width ? value : emulation::from_slot<T>(slots, source);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* slots = emulation::exchange(mask, uint64_t(predicate != 0));
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (emulation::participants() >> lane & 1) bits |= unsigned(slots[lane]) << lane;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
  const uint64_t* slots = emulation::exchange(mask, value);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane)
    if ((emulation::participants() >> lane & 1) && emulation::from_slot<T>(slots, lane) == value) bits |= 1u << lane;
  return bits;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  const uint64_t* slots = emulation::exchange(mask, uint64_t(value));
  unsigned sum = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (emulation::participants() >> lane & 1) sum += unsigned(slots[lane]);
  return sum;
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  const uint64_t* slots = emulation::exchange(mask, uint64_t(value));
  unsigned largest = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (emulation::participants() >> lane & 1) largest = std::max(largest, unsigned(slots[lane]));
  return largest;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
  return y;
}
template <typename T> T __ldg(const T* at) { return *at; }
template <typename T> T __ldcs(const T* at) { return *at; }
template <typename T> T __ldcg(const T* at) { return *at; }
template <typename T> void __stcs(T* at, T value) { *at = value; }
template <typename T> void __stcg(T* at, T value) { *at = value; }

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __saturatef(float x) { return x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }
inline int __float2int_rd(float x) { return int(std::floor(x)); }
inline int __float2int_rn(float x) { return int(std::nearbyint(x)); }
inline unsigned __float_as_uint(float x) { unsigned y; std::memcpy(&y, &x, 4); return y; }
inline int __float_as_int(float x) { int y; std::memcpy(&y, &x, 4); return y; }
inline float __uint_as_float(unsigned x) { float y; std::memcpy(&y, &x, 4); return y; }
inline float __int_as_float(int x) { float y; std::memcpy(&y, &x, 4); return y; }
inline long long __double_as_longlong(double x) { long long y; std::memcpy(&y, &x, 8); return y; }
inline double __longlong_as_double(long long x) { double y; std::memcpy(&y, &x, 8); return y; }

using std::max;
using std::min;

template <typename T> T atomicAdd(T* at, T value) { T old = *at; *at = old + value; return old; }
template <typename T> T atomicMax(T* at, T value) { T old = *at; *at = old > value ? old : value; return old; }
template <typename T> T atomicMin(T* at, T value) { T old = *at; *at = old < value ? old : value; return old; }
template <typename T> T atomicOr(T* at, T value) { T old = *at; *at = old | value; return old; }
template <typename T> T atomicAnd(T* at, T value) { T old = *at; *at = old & value; return old; }
template <typename T> T atomicExch(T* at, T value) { T old = *at; *at = value; return old; }
template <typename T> T atomicCAS(T* at, T expected, T value) { T old = *at; if (old == expected) *at = value; return old; }

template <typename Kernel> cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) { return cudaSuccess; }
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int threads, size_t) {
  *blocks = std::max(1, 2048 / threads);
  return cudaSuccess;
}
