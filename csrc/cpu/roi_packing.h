// Between maps whose channels lie apart and scratch memory in which they lie side by side.
#pragma once
#include <algorithm>

#include "common/vector.h"

namespace pyposeext::PYPOSEEXT_LEVEL {

// A part of a map: rows, columns and channels with their distances in elements.
template <typename T> struct MapPart {
  T* data;
  int64_t rows, columns, channels;
  int64_t row_stride, column_stride, channel_stride;
};

inline int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Scratch of [rows, columns, slice], the slice at least `channels` and a whole number of vectors.
template <typename T, typename A>
inline void pack(const MapPart<const T>& from, A* to, int64_t slice) {
  constexpr int64_t kStep = kWidth<A>;
  for (int64_t row = 0; row < from.rows; ++row, to += from.columns * slice) {
    const T* source = from.data + row * from.row_stride;
    if (from.column_stride != 1) {
      for (int64_t column = 0; column < from.columns; ++column)
        for (int64_t c = 0; c < from.channels; ++c)
          to[column * slice + c] = load(source[column * from.column_stride + c * from.channel_stride]);
      continue;
    }
    for (int64_t c = 0; c < from.channels; c += kStep) {
      const int64_t planes = std::min(kStep, from.channels - c);
      for (int64_t column = 0; column < from.columns; column += kStep) {
        const int64_t count = std::min(kStep, from.columns - column);
        const T* corner = source + c * from.channel_stride + column;
        if (count == 1) {
          for (int64_t i = 0; i < kStep; ++i) to[column * slice + c + i] = i < planes ? load(corner[i * from.channel_stride]) : A(0);
          continue;
        }
        Vector<A> lines[kStep];
        for (int64_t i = 0; i < kStep; ++i) {
          if (i >= planes)
            lines[i] = Vector<A>{};
          else if (count == kStep)
            lines[i] = load_vector(corner + i * from.channel_stride);
          else
            lines[i] = load_vector(corner + i * from.channel_stride, count);
        }
        transpose(lines);
        for (int64_t i = 0; i < count; ++i) store_vector(lines[i], to + (column + i) * slice + c);
      }
    }
  }
}

// One row of `to` from scratch of [columns, slice]; neighbouring pixels of `to` must lie side by side.
template <typename T, typename A>
inline void unpack_row(const A* from, int64_t slice, int64_t columns, int64_t channels, T* to, int64_t channel_stride) {
  constexpr int64_t kStep = kWidth<A>;
  for (int64_t c = 0; c < channels; c += kStep) {
    const int64_t planes = std::min(kStep, channels - c);
    for (int64_t column = 0; column < columns; column += kStep) {
      const int64_t count = std::min(kStep, columns - column);
      const A* corner = from + column * slice + c;
      T* out = to + c * channel_stride + column;
      if (count == 1) {
        for (int64_t i = 0; i < planes; ++i) store(corner[i], out + i * channel_stride);
        continue;
      }
      Vector<A> lines[kStep];
      for (int64_t i = 0; i < kStep; ++i) lines[i] = i < count ? load_vector(corner + i * slice) : Vector<A>{};
      transpose(lines);
      if (count == kStep)
        for (int64_t i = 0; i < planes; ++i) store_vector(lines[i], out + i * channel_stride);
      else
        for (int64_t i = 0; i < planes; ++i) store_vector(lines[i], out + i * channel_stride, count);
    }
  }
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
