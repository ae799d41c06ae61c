// What the forward and backward kernels of RoIAlign share: several channels of a pixel as one access to memory.
#pragma once
#include <cstring>

#include "common/cuda_launch.cuh"
#include "ops/roi_pooling.h"

namespace pyposeext::cuda {

constexpr int kWarp = 32;

template <int Bytes> struct WordType;
template <> struct WordType<16> { using type = uint4; };
template <> struct WordType<8> { using type = uint2; };
template <> struct WordType<4> { using type = uint32_t; };
template <> struct WordType<2> { using type = uint16_t; };

// Width neighbouring channels, moved as one word. They stay a word until they are added up: taken apart earlier, values
// that are loaded under a condition cost the compiler a move for each channel, and a wait for each load.
template <typename T, int Width> using Word = typename WordType<Width * sizeof(T)>::type;

template <int Width, typename T>
__device__ __forceinline__ Word<T, Width> load_word(const T* from) {
  return *reinterpret_cast<const Word<T, Width>*>(from);
}

template <typename T, int Width, typename A>
__device__ __forceinline__ void add_scaled(A weight, const Word<T, Width>& word, A* sum) {
  T element[Width];
  memcpy(element, &word, sizeof word);
#pragma unroll
  for (int i = 0; i < Width; ++i) sum[i] = multiply_add(weight, A(load(element[i])), sum[i]);
}

template <int Width, typename T, typename A>
__device__ __forceinline__ void store_word(const A* values, T* out) {
  T element[Width];
#pragma unroll
  for (int i = 0; i < Width; ++i) store(values[i], element + i);
  Word<T, Width> word;
  memcpy(&word, element, sizeof word);
  __stcg(reinterpret_cast<Word<T, Width>*>(out), word);  // the compiler would split a plain assignment
}

// Whether Width channels starting at a multiple of Width lie next to each other and can be moved at once.
inline bool is_packed(const void* data, const int64_t* stride, int64_t channels, int width, size_t element_size) {
  if (stride[1] != 1 || channels % width != 0 || reinterpret_cast<uintptr_t>(data) % (width * element_size) != 0) return false;
  for (int d = 0; d < 5; ++d)
    if (d != 1 && stride[d] % width != 0) return false;
  return true;
}

inline bool levels_are_packed(const RoiAlignArguments& a, int width, size_t element_size) {
  for (int64_t l = 0; l < a.levels; ++l)
    if (!is_packed(a.level[l].data, a.level[l].stride, a.channels, width, element_size)) return false;
  return true;
}

__host__ __device__ inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

}  // namespace pyposeext::cuda
