// Copies between maps of any strides and element type and scratch rows of one pixel's channels each, in the type that sums
// are kept in.
#pragma once
#include "common/vector.h"

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

// One image: channels of `width` pixels a row. Pixel p is row p / width, column p % width.
template <typename T> struct PixelMaps {
  T* data;
  int64_t channel_stride, row_stride, column_stride, width;

  T* pixel(int64_t p) const { return data + p / width * row_stride + p % width * column_stride; }
  bool rows_join() const { return row_stride == width * column_stride; }  // all pixels lie equally far apart
};

// to[c * to_stride + r] = from[r * from_stride + c] for 4 x 4 elements.
inline void transpose_4x4(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
#if defined(__SSE2__)
  __m128 row[4];
  for (int r = 0; r < 4; ++r) row[r] = _mm_loadu_ps(from + r * from_stride);
  _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
  for (int r = 0; r < 4; ++r) _mm_storeu_ps(to + r * to_stride, row[r]);
#else
  for (int r = 0; r < 4; ++r)
    for (int c = 0; c < 4; ++c) to[c * to_stride + r] = from[r * from_stride + c];
#endif
}

template <typename From, typename To>
inline void transpose_4x4(const From* from, int64_t from_stride, To* to, int64_t to_stride) {
  for (int c = 0; c < 4; ++c)
    for (int r = 0; r < 4; ++r) store(load(from[r * from_stride + c]), to + c * to_stride + r);
}

// to[c * to_stride + r] = from[r * from_stride + c]: a cache line of columns at a time, so that each is read once.
template <typename From, typename To>
inline void transpose(int64_t rows, int64_t columns, const From* from, int64_t from_stride, To* to, int64_t to_stride) {
  constexpr int64_t kLine = 16;
  for (int64_t first = 0; first < columns; first += kLine) {
    const int64_t last = first + kLine < columns ? first + kLine : columns;
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
      int64_t c = first;
      for (; c + 4 <= last; c += 4) transpose_4x4(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
      for (; c < last; ++c)
        for (int i = 0; i < 4; ++i) store(load(from[(r + i) * from_stride + c]), to + c * to_stride + r + i);
    }
    for (; r < rows; ++r)
      for (int64_t c = first; c < last; ++c) store(load(from[r * from_stride + c]), to + c * to_stride + r);
  }
}

template <typename From, typename To>
inline void copy_row(int64_t count, const From* from, To* to) {
  constexpr int64_t kStep = kWidth<Accumulate<From>>;
  int64_t c = 0;
  for (; c + kStep <= count; c += kStep) store_vector(load_vector(from + c), to + c);
  for (; c < count; ++c) store(load(from[c]), to + c);
}

// Channels [0, channels) of pixels [first, first + count) into rows[p * row_stride + c].
template <typename T, typename A>
inline void read_pixels(const PixelMaps<const T>& maps, int64_t channels, int64_t first, int64_t count, A* rows, int64_t row_stride) {
  if (maps.channel_stride == 1) {
    for (int64_t p = 0; p < count; ++p) copy_row(channels, maps.pixel(first + p), rows + p * row_stride);
  } else if (maps.rows_join() && maps.column_stride == 1) {
    transpose(channels, count, maps.data + first, maps.channel_stride, rows, row_stride);
  } else {
    for (int64_t p = 0; p < count; ++p) {
      const T* pixel = maps.pixel(first + p);
      for (int64_t c = 0; c < channels; ++c) rows[p * row_stride + c] = load(pixel[c * maps.channel_stride]);
    }
  }
}

// The way back.
template <typename T, typename A>
inline void write_pixels(const PixelMaps<T>& maps, int64_t channels, int64_t first, int64_t count, const A* rows, int64_t row_stride) {
  if (maps.channel_stride == 1) {
    for (int64_t p = 0; p < count; ++p) copy_row(channels, rows + p * row_stride, maps.pixel(first + p));
  } else if (maps.rows_join() && maps.column_stride == 1) {
    transpose(count, channels, rows, row_stride, maps.data + first, maps.channel_stride);
  } else {
    for (int64_t p = 0; p < count; ++p) {
      T* pixel = maps.pixel(first + p);
      for (int64_t c = 0; c < channels; ++c) store(rows[p * row_stride + c], pixel + c * maps.channel_stride);
    }
  }
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
