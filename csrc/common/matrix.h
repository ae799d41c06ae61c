// Products of matrices that lie in the caches: out = left * right, a tile of rows and vectors of columns kept in registers.
#pragma once
#include "common/vector.h"

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

// Accumulators of a tile: what fills the registers beside a row of `right` and one broadcast element.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileVectors = 24;
#else
constexpr int kTileVectors = 12;
#endif

template <typename A>
inline int64_t vectors_for(int64_t columns) {
  return (columns + kWidth<A> - 1) / kWidth<A>;
}

// Columns are cut into panels of 2 or 3 vectors; 1 only where a matrix has no more.
inline int panel_vectors(int64_t vectors_left) { return vectors_left % 3 == 0 ? 3 : vectors_left == 1 ? 1 : 2; }

// Writes a matrix panel after panel, each panel row after row, short rows filled up with 0, as multiply_matrices reads it
// fastest. element(row, column) gives the matrix. The result takes rows * vectors_for(columns) vectors.
template <typename A, typename Element>
inline void pack_panels(int64_t rows, int64_t columns, const Element& element, A* packed) {
  const int64_t vectors = vectors_for<A>(columns);
  for (int64_t v = 0, count; v < vectors; v += count) {
    count = panel_vectors(vectors - v);
    const int64_t first = v * kWidth<A>, width = count * kWidth<A>;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < width; ++i) *packed++ = first + i < columns ? element(row, first + i) : A(0);
  }
}

// `rows` (at most kTileVectors / Vectors) rows of out. All rows of the tile are read and computed, only those are written.
template <int Vectors, int64_t kRow, int64_t kStep, typename A>
inline void multiply_tile(int64_t rows, int64_t depth, const A* left, const A* right, int64_t right_stride, A* out, int64_t out_stride, bool add) {
  constexpr int kRows = kTileVectors / Vectors;
  Vector<A> sum[kRows][Vectors] = {};
  for (int64_t k = 0; k < depth; ++k, left += kStep, right += right_stride) {
    Vector<A> columns[Vectors];
    for (int v = 0; v < Vectors; ++v) columns[v] = load_vector(right + v * kWidth<A>);
#pragma GCC unroll 24
    for (int r = 0; r < kRows; ++r) {
      const Vector<A> element = broadcast(left[r * kRow]);
      for (int v = 0; v < Vectors; ++v) sum[r][v] = multiply_add(element, columns[v], sum[r][v]);
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    for (int v = 0; v < Vectors; ++v) {
      A* to = out + r * out_stride + v * kWidth<A>;
      store_vector(add ? load_vector(to) + sum[r][v] : sum[r][v], to);
    }
  }
}

template <int Vectors, int64_t kRow, int64_t kStep, typename A>
inline void multiply_panel(int64_t rows, int64_t depth, const A* left, const A* right, int64_t right_stride, A* out, int64_t out_stride, bool add) {
  constexpr int64_t kRows = kTileVectors / Vectors;
  for (int64_t r = 0; r < rows; r += kRows)
    multiply_tile<Vectors, kRow, kStep>(rows - r, depth, left + r * kRow, right, right_stride, out + r * out_stride, out_stride, add);
}

// out[r, n] = (add ? out[r, n] : 0) + sum over k < depth of left[r * kRow + k * kStep] * right[k, n]
//
// for r < rows and n < vectors * kWidth<A>. kRow and kStep are constants, so that the rows of a tile are displacements from
// one register; `left` must be readable up to the next multiple of kTileVectors rows. `right` is packed by pack_panels where
// right_stride is 0, else a row-major matrix. Each element is summed in the order of k: the same bits for any tile size.
template <int64_t kRow, int64_t kStep, typename A>
inline void multiply_matrices(int64_t rows, int64_t vectors, int64_t depth, const A* left, const A* right, int64_t right_stride, A* out,
                              int64_t out_stride, bool add) {
  for (int64_t v = 0, count; v < vectors; v += count, out += count * kWidth<A>) {
    count = panel_vectors(vectors - v);
    const int64_t stride = right_stride == 0 ? count * kWidth<A> : right_stride;
    if (count == 3)
      multiply_panel<3, kRow, kStep>(rows, depth, left, right, stride, out, out_stride, add);
    else if (count == 2)
      multiply_panel<2, kRow, kStep>(rows, depth, left, right, stride, out, out_stride, add);
    else
      multiply_panel<1, kRow, kStep>(rows, depth, left, right, stride, out, out_stride, add);
    right += right_stride == 0 ? count * kWidth<A> * depth : count * kWidth<A>;
  }
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
