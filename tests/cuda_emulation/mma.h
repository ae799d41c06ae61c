// CUDA's warp matrix functions on the CPU: every lane of the warp holds whole matrices.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? K : M;
  static constexpr int columns = std::is_same_v<Use, matrix_a> ? K : N;
  static constexpr int num_elements = rows * columns / 32;
  float value[rows][columns];
};

template <typename Use, int M, int N, int K, typename T, typename Layout>
void fill_fragment(fragment<Use, M, N, K, T, Layout>& f, float value) {
  for (auto& row : f.value)
    for (float& x : row) x = value;
}

template <typename Use, int M, int N, int K, typename T, typename Layout, typename Source>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const Source* from, unsigned stride) {
  using F = fragment<Use, M, N, K, T, Layout>;
  __syncwarp();
  for (int i = 0; i < F::rows; ++i)
    for (int j = 0; j < F::columns; ++j) f.value[i][j] = float(std::is_same_v<Layout, row_major> ? from[i * stride + j] : from[j * stride + i]);
  __syncwarp();
}

template <int M, int N, int K>
void load_matrix_sync(fragment<accumulator, M, N, K, float>& f, const float* from, unsigned stride, layout_t layout) {
  __syncwarp();
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) f.value[i][j] = layout == mem_row_major ? from[i * stride + j] : from[j * stride + i];
  __syncwarp();
}

template <int M, int N, int K>
void store_matrix_sync(float* to, const fragment<accumulator, M, N, K, float>& f, unsigned stride, layout_t layout) {
  __syncwarp();
  if (emulation::lane() == 0)
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < N; ++j) to[layout == mem_row_major ? i * stride + j : j * stride + i] = f.value[i][j];
  __syncwarp();
}

template <int M, int N, int K, typename T, typename LayoutA, typename LayoutB>
void mma_sync(fragment<accumulator, M, N, K, float>& d, const fragment<matrix_a, M, N, K, T, LayoutA>& a,
              const fragment<matrix_b, M, N, K, T, LayoutB>& b, const fragment<accumulator, M, N, K, float>& c) {
  fragment<accumulator, M, N, K, float> result = c;
  for (int i = 0; i < M; ++i)
    for (int k = 0; k < K; ++k)
      for (int j = 0; j < N; ++j) result.value[i][j] += a.value[i][k] * b.value[k][j];
  d = result;
  __syncwarp();
}

}  // namespace nvcuda::wmma
