#include "ops/paste_masks.h"

#include "common/parallel.h"
#include "common/paste_masks_tables.h"
#include "common/vector.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kBits = 64;  // cells compared at once

// Run lengths of one image, written down as they end. What has no room is counted all the same.
class RunWriter {
 public:
  RunWriter(int32_t* counts, int64_t capacity) : counts_(counts), capacity_(capacity) {}

  void turn(int64_t position, bool value) {  // pixels from `position` on are `value`
    if (value == value_) return;
    push(position);
    value_ = value;
  }
  int64_t finish(int64_t pixels) {
    push(pixels);
    for (int64_t i = length_; i < capacity_; ++i) counts_[i] = 0;
    return length_;
  }

 private:
  void push(int64_t position) {
    if (length_ < capacity_) counts_[length_] = int32_t(position - start_);
    ++length_;
    start_ = position;
  }

  int32_t* counts_;
  int64_t capacity_, length_ = 0, start_ = 0;
  bool value_ = false;
};

// Image rows between the same two rows of the mask. Down such a cell the values rise or fall steadily, so that the mask
// has at most one edge in it, which its first and last row tell.
template <typename A>
struct Cells {
  std::vector<int64_t> low, first, last;        // row of the bordered mask; rows of the table of rows, `last` included
  std::vector<A> first_fraction, last_fraction;  // with room for a whole vector at the end
  bool gapless = true;                           // `low` rises by one from cell to cell

  void fill(const PasteTable<A>& rows) {
    low.clear(), first.clear(), last.clear(), first_fraction.clear(), last_fraction.clear();
    gapless = true;
    for (int64_t row = 0; row < rows.size(); ++row) {
      if (low.empty() || rows.low[row] != low.back()) {
        gapless = gapless && (low.empty() || rows.low[row] == low.back() + 1);
        low.push_back(rows.low[row]);
        first.push_back(row);
        last.push_back(row);
        first_fraction.push_back(rows.fraction[row]);
        last_fraction.push_back(A(0));
      }
      last.back() = row;
      last_fraction.back() = rows.fraction[row];
    }
    first_fraction.resize(low.size() + size_t(kWidth<A>));
    last_fraction.resize(first_fraction.size());
  }
  int64_t size() const { return int64_t(low.size()); }
};

template <typename T, typename C>
class RunFinder {
  using A = Accumulate<T>;

 public:
  explicit RunFinder(const PasteMasksRunsArguments& arguments) : a_(arguments), threshold_(A(arguments.paste.threshold)) {}

  void find(int64_t n) {
    const PasteMasksArguments& paste = a_.paste;
    const int64_t height = paste.height;
    const PasteAxis<C> x = paste_axis<C>(paste, n, 0), y = paste_axis<C>(paste, n, 1);
    const bool background = A(0) >= threshold_;
    RunWriter writer(a_.counts + n * a_.capacity, a_.capacity);
    const bool is_empty = x.first >= x.last || y.first >= y.last;
    if (height * paste.width > 0 && (is_empty || x.first + y.first > 0)) writer.turn(0, background);
    if (!is_empty) {
      prepare(n, x, y);
      for (int64_t column = x.first; column < x.last; ++column) {
        const int64_t top = column * height;
        if (y.first > 0) writer.turn(top, background);
        blend_column(column - x.first);
        write_column(top + y.first, &writer);
        if (y.last < height) writer.turn(top + y.last, background);
      }
      if (x.last < paste.width) writer.turn(x.last * height, background);
    }
    a_.lengths[n] = writer.finish(height * paste.width);
  }

 private:
  void prepare(int64_t n, const PasteAxis<C>& x, const PasteAxis<C>& y) {
    fill_bordered<T>(a_.paste, n, true, &bordered_);
    columns_.fill(x);
    rows_.fill(y);
    cells_.fill(rows_);
    value_.resize(size_t(bordered_side(a_.paste.side) + kWidth<A>));
    if (cells_.gapless) return;
    above_.resize(size_t(cells_.size() + kWidth<A>));
    below_.resize(above_.size());
  }

  // The mask along one image column, at all rows of the mask.
  void blend_column(int64_t column) {
    const int64_t side = bordered_side(a_.paste.side);
    const A *left = bordered_.data() + columns_.low[column] * side, *right = left + side;
    const A fraction = columns_.fraction[column];
    A* value = value_.data();
    for (int64_t i = 0; i < side; ++i) value[i] = paste_blend(left[i], right[i], fraction);
    if (cells_.gapless) return;
    for (int64_t k = 0; k < cells_.size(); ++k) {
      above_[k] = value[cells_.low[k]];
      below_[k] = value[cells_.low[k] + 1];
    }
  }

  // Bit i: whether the first row of cell k + i is set, and the last one. Bits beyond the last cell have no meaning.
  void compare(int64_t k, uint64_t* first, uint64_t* last) const {
    const A* above = cells_.gapless ? value_.data() + cells_.low[0] : above_.data();
    const A* below = cells_.gapless ? above + 1 : below_.data();
    *first = *last = 0;
    for (int64_t i = 0; i < kBits && k + i < cells_.size(); i += kWidth<A>) {
      const Vector<A> low = load_vector(above + k + i), difference = load_vector(below + k + i) - low;
      *first |= bits_of(multiply_add(load_vector(cells_.first_fraction.data() + k + i), difference, low) >= threshold_) << i;
      *last |= bits_of(multiply_add(load_vector(cells_.last_fraction.data() + k + i), difference, low) >= threshold_) << i;
    }
  }

  void write_column(int64_t position, RunWriter* writer) const {
    bool before = false;  // the last row of the cell before
    for (int64_t k = 0; k < cells_.size(); k += kBits) {
      uint64_t first, last;
      compare(k, &first, &last);
      if (k == 0) {
        before = first & 1;
        writer->turn(position, before);
      }
      const int64_t count = cells_.size() - k < kBits ? cells_.size() - k : kBits;
      uint64_t edges = ((first ^ last) | (first ^ (last << 1 | uint64_t(before)))) & (~uint64_t(0) >> (kBits - count));
      for (; edges != 0; edges &= edges - 1) {
        const int i = __builtin_ctzll(edges);
        const bool at_first = first >> i & 1, at_last = last >> i & 1;
        writer->turn(position + cells_.first[k + i], at_first);
        if (at_first != at_last) writer->turn(position + edge(k + i, at_last), at_last);
      }
      before = last >> (count - 1) & 1;
    }
  }

  int64_t edge(int64_t k, bool after) const {  // the first row of cell k that is `after`
    const A above = value_[cells_.low[k]], below = value_[cells_.low[k] + 1];
    int64_t low = cells_.first[k], high = cells_.last[k];
    while (low + 1 < high) {
      const int64_t middle = (low + high) / 2;
      ((paste_blend(above, below, rows_.fraction[middle]) >= threshold_) == after ? high : low) = middle;
    }
    return high;
  }

  const PasteMasksRunsArguments& a_;
  const A threshold_;
  std::vector<A> bordered_, value_;
  std::vector<A> above_, below_;  // of each cell, where they have gaps between them
  PasteTable<A> columns_, rows_;
  Cells<A> cells_;
};

template <typename T, typename C>
void run(const PasteMasksRunsArguments& a) {
  parallel_for(0, a.paste.count, 1, [&](int64_t from, int64_t to) {
    RunFinder<T, C> finder(a);
    for (int64_t n = from; n < to; ++n) finder.find(n);
  });
}

}  // namespace

void paste_masks_runs(const PasteMasksRunsArguments& arguments) {
  dispatch_floating(arguments.paste.dtype, [&](auto zero) {
    if (arguments.paste.double_boxes)
      run<decltype(zero), double>(arguments);
    else
      run<decltype(zero), float>(arguments);
  });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
