#include "ops/paste_masks.h"

#include <utility>

#include "common/parallel.h"
#include "common/paste_masks_tables.h"
#include "common/vector.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kBandPixels = 1 << 18;  // of a task: much beside the tables of a box, little beside all the work

// Two rows of a mask, blended along x to the width of its box: those that an image row lies between.
template <typename A>
struct BlendedRows {
  std::vector<A> bordered, low, high, difference;
  PasteTable<A> columns;
  int64_t side = 0, current = -1;  // of the bordered mask: its side, the row that is in `low`

  template <typename T, typename C> void start(const PasteMasksArguments& a, int64_t n, const PasteAxis<C>& x) {
    fill_bordered<T>(a, n, false, &bordered);
    columns.fill(x);
    side = bordered_side(a.side);
    current = -1;
    low.resize(size_t(columns.size()));
    high.resize(low.size());
    difference.resize(low.size());
  }

  void move_to(int64_t row) {
    if (row == current) return;
    if (row == current + 1 && current >= 0)
      std::swap(low, high);
    else
      blend(row, low.data());
    blend(row + 1, high.data());
    for (size_t x = 0; x < low.size(); ++x) difference[x] = high[x] - low[x];
    current = row;
  }

  void blend(int64_t row, A* out) const {
    const A *mask = bordered.data() + row * side, *fraction = columns.fraction.data();
    const int32_t* index = columns.low.data();
    for (int64_t x = 0; x < columns.size(); ++x) out[x] = paste_blend(mask[index[x]], mask[index[x] + 1], fraction[x]);
  }
};

// What becomes of a row's values: soft ones are stored, others compared with the threshold.
template <typename T>
struct SoftRow {
  using Out = T;
  int background() const { return 0; }
  void write(Vector<Accumulate<T>> value, T* to) const { store_vector(value, to); }
  void write(Vector<Accumulate<T>> value, T* to, int64_t count) const { store_vector(value, to, count); }
};

template <typename T>
struct HardRow {
  using Out = uint8_t;
  Accumulate<T> threshold;
  int background() const { return Accumulate<T>(0) >= threshold; }
  void write(Vector<Accumulate<T>> value, uint8_t* to) const { store_truth(value >= threshold, to); }
  void write(Vector<Accumulate<T>> value, uint8_t* to, int64_t count) const { store_truth(value >= threshold, to, count); }
};

template <typename A, typename Row>
void write_row(const BlendedRows<A>& rows, A fraction, const Row& row, typename Row::Out* to) {
  const A *low = rows.low.data(), *difference = rows.difference.data();
  const Vector<A> weight = broadcast(fraction);
  const int64_t count = rows.columns.size();
  int64_t x = 0;
  for (; x + kWidth<A> <= count; x += kWidth<A>) row.write(multiply_add(weight, load_vector(difference + x), load_vector(low + x)), to + x);
  if (x == count) return;
  row.write(multiply_add(weight, load_vector(difference + x, count - x), load_vector(low + x, count - x)), to + x, count - x);
}

// Rows [first, last) of image n, from top to bottom, with what lies between the box's part of one row and of the next in
// one piece.
template <typename T, typename C, typename Row>
void paste_band(const PasteMasksArguments& a, int64_t n, int64_t first, int64_t last, const Row& row, BlendedRows<Accumulate<T>>* rows) {
  const PasteAxis<C> x = paste_axis<C>(a, n, 0), y = paste_axis<C>(a, n, 1);
  auto* image = static_cast<typename Row::Out*>(a.out) + n * a.height * a.width;
  auto* cursor = image + first * a.width;
  const auto fill_to = [&](typename Row::Out* end) {
    std::memset(static_cast<void*>(cursor), row.background(), size_t(end - cursor) * sizeof *cursor);
    cursor = end;
  };
  const int64_t top = first > y.first ? first : y.first, bottom = last < y.last ? last : y.last;
  if (top < bottom && x.first < x.last) {
    rows->template start<T>(a, n, x);
    for (int64_t i = top; i < bottom; ++i) {
      const PasteSample<Accumulate<T>> sample = paste_sample<Accumulate<T>>(y, i);
      rows->move_to(sample.low + 1);
      fill_to(image + i * a.width + x.first);
      write_row(*rows, sample.fraction, row, cursor);
      cursor += x.last - x.first;
    }
  }
  fill_to(image + last * a.width);
}

template <typename T, typename C, typename Row>
void paste_all(const PasteMasksArguments& a, const Row& row) {
  const int64_t band = a.width < kBandPixels ? kBandPixels / a.width : 1, bands = (a.height + band - 1) / band;
  parallel_for(0, a.count * bands, 1, [&](int64_t from, int64_t to) {
    BlendedRows<Accumulate<T>> rows;
    for (int64_t task = from; task < to; ++task) {
      const int64_t first = task % bands * band;
      paste_band<T, C>(a, task / bands, first, first + band < a.height ? first + band : a.height, row, &rows);
    }
  });
}

template <typename T, typename C>
void run(const PasteMasksArguments& a) {
  if (a.soft)
    paste_all<T, C>(a, SoftRow<T>());
  else
    paste_all<T, C>(a, HardRow<T>{Accumulate<T>(a.threshold)});
}

}  // namespace

void paste_masks(const PasteMasksArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) {
    if (arguments.double_boxes)
      run<decltype(zero), double>(arguments);
    else
      run<decltype(zero), float>(arguments);
  });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
