#include "common/parallel.h"
#include "common/paste_masks_tables.h"
#include "ops/paste_masks.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

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
template <typename A> struct Cell {
  int64_t low;          // row of the bordered mask
  int64_t first, last;  // entries of the table of rows, `last` included
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
    if (height * paste.width > 0) writer.turn(0, background && !(x.first == 0 && y.first == 0 && x.last > 0 && y.last > 0));
    if (x.first < x.last && y.first < y.last) {
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
    value_.resize(size_t(bordered_side(a_.paste.side)));
    cells_.clear();
    for (int64_t row = 0; row < rows_.size(); ++row) {
      if (row == 0 || rows_.low[row] != rows_.low[row - 1]) cells_.push_back({rows_.low[row], row, row});
      cells_.back().last = row;
    }
  }

  // The mask along one image column, at all rows of the mask.
  void blend_column(int64_t column) {
    const int64_t side = int64_t(value_.size());
    const A *left = bordered_.data() + columns_.low[column] * side, *right = left + side;
    const A fraction = columns_.fraction[column];
    A* value = value_.data();
    for (int64_t i = 0; i < side; ++i) value[i] = paste_blend(left[i], right[i], fraction);
  }

  bool is_set(const Cell<A>& cell, int64_t row) const {
    const A low = value_[cell.low];
    return paste_blend(low, value_[cell.low + 1], rows_.fraction[row]) >= threshold_;
  }

  void write_column(int64_t position, RunWriter* writer) const {
    for (const Cell<A>& cell : cells_) {
      const bool first = is_set(cell, cell.first), last = is_set(cell, cell.last);
      writer->turn(position + cell.first, first);
      if (first != last) writer->turn(position + edge(cell, last), last);
    }
  }

  int64_t edge(const Cell<A>& cell, bool after) const {  // the first row that is `after`
    int64_t low = cell.first, high = cell.last;
    while (low + 1 < high) {
      const int64_t middle = (low + high) / 2;
      (is_set(cell, middle) == after ? high : low) = middle;
    }
    return high;
  }

  const PasteMasksRunsArguments& a_;
  const A threshold_;
  std::vector<A> bordered_, value_;
  PasteTable<A> columns_, rows_;
  std::vector<Cell<A>> cells_;
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
