// A tile of a matrix product whose factors are made where they are needed: threads fetch runs of 8 elements of both factors
// into registers while the tile before is multiplied out of shared memory. Half and BFloat16 go to the tensor cores.
#pragma once
#include <mma.h>

#include <type_traits>

#include "common/cuda_launch.cuh"

namespace pyposeext::cuda {

constexpr int kRun = 8;  // elements that a thread fetches at a time

// 8 neighbouring elements at an address that is a multiple of 16 bytes.
template <typename T> struct alignas(16) RunOf {
  T value[kRun];
};

// `Count` neighbouring elements at a multiple of their size, loaded as wide as that allows.
template <typename T, int Count>
__device__ void load_packed(const T* from, Accumulate<T>* values) {
  constexpr int kBytes = Count * int(sizeof(T)), kPower = kBytes & -kBytes;  // the largest power of two that divides it
  struct alignas(kPower < 16 ? kPower : 16) Pack {
    T value[Count];
  };
  const Pack pack = *reinterpret_cast<const Pack*>(from);
#pragma unroll
  for (int i = 0; i < Count; ++i) values[i] = load(pack.value[i]);
}

template <typename T>
__device__ void load_run(const T* from, Accumulate<T>* values) {
  const RunOf<T> run = *reinterpret_cast<const RunOf<T>*>(from);
#pragma unroll
  for (int i = 0; i < kRun; ++i) values[i] = load(run.value[i]);
}

// kAlongRows: the runs of the left factor are 8 rows at one depth, not 8 depths of one row.
template <typename T, int kColumns, bool kAlongRows>
struct MatrixTile {
  using A = Accumulate<T>;

  static constexpr bool kTensorCores = sizeof(T) == 2;
  static constexpr int kRows = sizeof(T) == 8 ? 64 : 128;
  static constexpr int kDepth = kTensorCores ? 32 : 16;  // of a stage
  static constexpr bool kRowMajor = kTensorCores && !kAlongRows;
  static constexpr int kLeftStride = kRowMajor ? kDepth + 8 : kTensorCores ? kRows + 8 : kRows + 4;
  static constexpr int kRightStride = kTensorCores ? kColumns + 8 : kColumns + 4;
  static constexpr int kLeftSize = (kRowMajor ? kRows : kDepth) * kLeftStride, kStage = kLeftSize + kDepth * kRightStride;
  static constexpr int kOutStride = kColumns + 4;
  static constexpr int kLeftRuns = kRows * kDepth / kRun, kRightRuns = kDepth * kColumns / kRun;
  static constexpr int kLeftEach = (kLeftRuns + kThreads - 1) / kThreads;
  static constexpr int kStageBytes = 2 * kStage * int(sizeof(T)), kOutBytes = kRows * kOutStride * int(sizeof(A));
  static constexpr int kSharedBytes = kStageBytes > kOutBytes ? kStageBytes : kOutBytes;
  static_assert(kRightRuns <= kThreads && kSharedBytes <= 48 * 1024);

  // What a thread has fetched of the next stage.
  struct Fetched {
    A left[kLeftEach][kRun], right[kRun];
  };

  // The row (or, along rows, the first of 8) and the depth (or the first of 8) of a run of the left factor.
  static __device__ void left_place(int run, int* row, int* depth) {
    if constexpr (kAlongRows) {
      *row = run % (kRows / kRun) * kRun;
      *depth = run / (kRows / kRun);
    } else if constexpr (kTensorCores) {
      *row = run / (kDepth / kRun);
      *depth = run % (kDepth / kRun) * kRun;
    } else {
      *row = run % kRows;
      *depth = run / kRows * kRun;
    }
  }

  template <typename Left, typename Right>
  static __device__ void fetch(int first, const Left& left, const Right& right, Fetched* fetched) {
#pragma unroll
    for (int i = 0; i < kLeftEach; ++i) {
      const int run = int(threadIdx.x) + i * kThreads;
      int row, depth;
      left_place(run, &row, &depth);
      if (run < kLeftRuns) left(row, first + depth, fetched->left[i]);
    }
    const int run = threadIdx.x;
    if (run < kRightRuns) right(first + run / (kColumns / kRun), run % (kColumns / kRun) * kRun, fetched->right);
  }

  static __device__ void put_run(const A* values, T* to) {
    RunOf<T> run;
#pragma unroll
    for (int i = 0; i < kRun; ++i) store(values[i], run.value + i);
    *reinterpret_cast<RunOf<T>*>(to) = run;
  }

  static __device__ void put(const Fetched& fetched, T* stage) {
#pragma unroll
    for (int i = 0; i < kLeftEach; ++i) {
      const int run = int(threadIdx.x) + i * kThreads;
      if (run >= kLeftRuns) break;
      int row, depth;
      left_place(run, &row, &depth);
      if constexpr (kAlongRows) {
        put_run(fetched.left[i], stage + depth * kLeftStride + row);
      } else if constexpr (kTensorCores) {
        put_run(fetched.left[i], stage + row * kLeftStride + depth);
      } else {
#pragma unroll
        for (int n = 0; n < kRun; ++n) store(fetched.left[i][n], stage + (depth + n) * kLeftStride + row);
      }
    }
    const int run = threadIdx.x;
    if (run < kRightRuns) put_run(fetched.right, stage + kLeftSize + run / (kColumns / kRun) * kRightStride + run % (kColumns / kRun) * kRun);
  }

  // A thread's part of the tile: 16 x 16 threads with neighbouring rows and columns each.
  struct Registers {
    static constexpr int kHigh = kRows / 16, kWide = kColumns / 16;
    A sum[kHigh][kWide] = {};

    __device__ void multiply(const T* stage) {
      const int row = int(threadIdx.x) / 16 * kHigh, column = int(threadIdx.x) % 16 * kWide;
#pragma unroll
      for (int k = 0; k < kDepth; ++k) {
        A left[kHigh], right[kWide];
load_packed<T, kHigh>(stage + k * kLeftStride + row, left);
        load_packed<T, kWide>(stage + kLeftSize + k * kRightStride + column, right);
#pragma unroll
        for (int i = 0; i < kHigh; ++i)
#pragma unroll
          for (int j = 0; j < kWide; ++j) sum[i][j] = multiply_add(left[i], right[j], sum[i][j]);
      }
    }

    __device__ void write(A* out) const {
      const int row = int(threadIdx.x) / 16 * kHigh, column = int(threadIdx.x) % 16 * kWide;
#pragma unroll
      for (int i = 0; i < kHigh; ++i)
#pragma unroll
        for (int j = 0; j < kWide; ++j) out[(row + i) * kOutStride + column + j] = sum[i][j];
    }
  };

  // A warp's part of the tile: 16 rows of all columns, in fragments of 16 x 16.
  struct Fragments {
    using Element = std::conditional_t<std::is_same_v<T, Half>, __half, __nv_bfloat16>;
    using LeftLayout = std::conditional_t<kRowMajor, nvcuda::wmma::row_major, nvcuda::wmma::col_major>;
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sum[kColumns / 16];

    __device__ Fragments() {
#pragma unroll
      for (int j = 0; j < kColumns / 16; ++j) nvcuda::wmma::fill_fragment(sum[j], 0.0f);
    }

    __device__ void multiply(const T* stage) {
      const Element* elements = reinterpret_cast<const Element*>(stage);
      const int row = int(threadIdx.x) / 32 * 16;
#pragma unroll
      for (int k = 0; k < kDepth; k += 16) {
        nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, Element, LeftLayout> left;
        nvcuda::wmma::load_matrix_sync(left, elements + (kRowMajor ? row * kLeftStride + k : k * kLeftStride + row), kLeftStride);
#pragma unroll
        for (int j = 0; j < kColumns / 16; ++j) {
          nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, Element, nvcuda::wmma::row_major> right;
          nvcuda::wmma::load_matrix_sync(right, elements + kLeftSize + k * kRightStride + j * 16, kRightStride);
          nvcuda::wmma::mma_sync(sum[j], left, right, sum[j]);
        }
      }
    }

    __device__ void write(float* out) const {
      const int row = int(threadIdx.x) / 32 * 16;
#pragma unroll
      for (int j = 0; j < kColumns / 16; ++j)
        nvcuda::wmma::store_matrix_sync(out + row * kOutStride + j * 16, sum[j], kOutStride, nvcuda::wmma::mem_row_major);
    }
  };

  // The tile of left * right, kThreads threads together, as rows kOutStride apart in `shared`, which has kSharedBytes.
  // left(row, depth, values) and right(depth, column, values) give 8 elements each, 0 outside the matrices.
  template <typename Left, typename Right>
  static __device__ const A* product(int depth, const Left& left, const Right& right, void* shared) {
    T* stages = static_cast<T*>(shared);
    Fetched fetched;
    std::conditional_t<kTensorCores, Fragments, Registers> part;
    fetch(0, left, right, &fetched);
    __syncthreads();  // the last tile has been read
    put(fetched, stages);
    __syncthreads();
    for (int first = 0, current = 0; first < depth; first += kDepth, current ^= 1) {
      const bool more = first + kDepth < depth;
      if (more) fetch(first + kDepth, left, right, &fetched);
      part.multiply(stages + current * kStage);
      if (more) put(fetched, stages + (current ^ 1) * kStage);
      __syncthreads();
    }
    part.write(static_cast<A*>(shared));
    __syncthreads();
    return static_cast<const A*>(shared);
  }
};

}  // namespace pyposeext::cuda
