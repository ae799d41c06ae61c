#include "common/aligned_array.h"
#include "cpu/roi_packing.h"
#include "cpu/roi_tables.h"
#include "ops/roi_pooling.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kBlock = kVectorBytes == 64 ? 16 : 8;  // vectors of channels that a bin sums in registers
constexpr int64_t kSliceBytes = 256;                     // of the channels that are packed together
constexpr int64_t kLargeResult = int64_t(8) << 20;       // bytes that the caches cannot hold for whoever reads them next

// Rois [first, last) of one level, image and frame, and some of the channels. Where `packs`, the part of the map that they
// cover is first copied, channels innermost.
struct Task {
  int64_t first, last, channel, channels;
  bool packs;
};

template <typename A>
struct Scratch {
  AlignedArray<A> map, bins;
  std::vector<Tap<A>> y, x;  // at distances in elements
};

// Adds the taps of one bin for N vectors of channels.
template <int64_t N, typename S, typename A>
inline void sum_block(const S* source, const Tap<A>* y, const Tap<A>* y_end, const Tap<A>* x, const Tap<A>* x_end, Vector<A>* sum) {
  for (int64_t n = 0; n < N; ++n) sum[n] = Vector<A>{};
  for (const Tap<A>* row = y; row < y_end; ++row) {
    for (const Tap<A>* column = x; column < x_end; ++column) {
      const S* pixel = source + row->at + column->at;
      const Vector<A> weight = broadcast(row->weight * column->weight);
      for (int64_t n = 0; n < N; ++n) sum[n] = multiply_add(weight, load_vector(pixel + n * kWidth<A>), sum[n]);
    }
  }
}

template <int64_t N, typename D>
inline void store_block(const Vector<Accumulate<D>>* sum, D* to, bool stream) {
  constexpr int64_t kStep = kWidth<Accumulate<D>>;
  if (stream)
    for (int64_t n = 0; n < N; ++n) stream_vector(sum[n], to + n * kStep);
  else
    for (int64_t n = 0; n < N; ++n) store_vector(sum[n], to + n * kStep);
}

// The last channels of a bin, fewer than a vector.
template <typename S, typename D, typename A>
inline void sum_rest(const S* source, const Tap<A>* y, const Tap<A>* y_end, const Tap<A>* x, const Tap<A>* x_end, int64_t count, D* to) {
  Vector<A> sum = {};
  for (const Tap<A>* row = y; row < y_end; ++row)
    for (const Tap<A>* column = x; column < x_end; ++column)
      sum = multiply_add(broadcast(row->weight * column->weight), load_vector(source + row->at + column->at, count), sum);
  store_vector(sum, to, count);
}

template <typename D> struct Bins {
  D* data;
  int64_t row_stride, column_stride;
  bool stream;
};

// All bins of one roi, channels side by side in source and result.
template <typename S, typename D, typename A>
void pool_roi(const RoiAlignArguments& a, const S* source, const AxisTaps<A>& y, const AxisTaps<A>& x, int64_t channels, const Bins<D>& bins) {
  constexpr int64_t kStep = kWidth<A>;
  for (int64_t p = 0; p < a.pooled_height; ++p) {
    const Tap<A>*y_first = y.taps + y.begin[p], *y_last = y.taps + y.begin[p + 1];
    for (int64_t q = 0; q < a.pooled_width; ++q) {
      const Tap<A>*x_first = x.taps + x.begin[q], *x_last = x.taps + x.begin[q + 1];
      D* to = bins.data + p * bins.row_stride + q * bins.column_stride;
      Vector<A> sum[kBlock];
      int64_t c = 0;
      for (; c + kBlock * kStep <= channels; c += kBlock * kStep) {
        sum_block<kBlock>(source + c, y_first, y_last, x_first, x_last, sum);
        store_block<kBlock>(sum, to + c, bins.stream);
      }
      for (; c + 4 * kStep <= channels; c += 4 * kStep) {
        sum_block<4>(source + c, y_first, y_last, x_first, x_last, sum);
        store_block<4>(sum, to + c, bins.stream);
      }
      for (; c + kStep <= channels; c += kStep) {
        sum_block<1>(source + c, y_first, y_last, x_first, x_last, sum);
        store_block<1>(sum, to + c, bins.stream);
      }
      if (c < channels) sum_rest(source + c, y_first, y_last, x_first, x_last, channels - c, to + c);
    }
  }
}

// The taps of one axis with the distance from pixel `origin` in elements in place of the pixel.
template <typename A>
AxisTaps<A> at_distance(const AxisTaps<A>& axis, int64_t bins, int64_t origin, int64_t stride, std::vector<Tap<A>>* to) {
  const int64_t count = axis.begin[bins];
  to->resize(size_t(count));
  for (int64_t i = 0; i < count; ++i) (*to)[i] = {(axis.taps[i].at - origin) * stride, axis.taps[i].weight};
  return {axis.begin, to->data()};
}

template <typename T>
class Forward {
 public:
  using A = Accumulate<T>;

  explicit Forward(const RoiAlignArguments& arguments) : a_(arguments), tables_(arguments, false) {
    const int64_t bytes = a_.rois * a_.channels * a_.frames * a_.pooled_height * a_.pooled_width * int64_t(sizeof(T));
    large_ = bytes >= kLargeResult;
    // Streaming needs whole vectors at aligned addresses: a pixel's channels must be a whole number of them.
    constexpr int64_t kAlignment = kWidth<A> * int64_t(sizeof(T));
    streams_ = large_ && reinterpret_cast<uintptr_t>(a_.pooled) % kAlignment == 0 && a_.channels % kWidth<A> == 0;
    for (int64_t place = 0; place < tables_.size(); place = tables_.unit_end(place)) plan(place, tables_.unit_end(place));
  }

  void run() const {
    parallel_tasks(int64_t(tasks_.size()), tables_.work(a_) * a_.channels, [] { return Scratch<A>(); }, [&](int64_t i, Scratch<A>& scratch) {
      const Task& task = tasks_[i];
      const RoiFrame& first = tables_[task.first];
      const RoiLevel& level = a_.level[first.level];
      const T* source = static_cast<const T*>(level.data) + task.channel * level.stride[1];
      if (first.image >= 0) source += first.image * level.stride[0] + first.frame * level.stride[2];
      if (!task.packs) return pool(task, source, 0, 0, level.stride[3], level.stride[4], &scratch);
      const RoiFrame box = cover(task.first, task.last);
      const int64_t rows = box.rows.last - box.rows.first, columns = box.columns.last - box.columns.first;
      const int64_t slice = rounded_up(task.channels, kWidth<A>);
      A* map = scratch.map.reserve(rows * columns * slice);
      source += box.rows.first * level.stride[3] + box.columns.first * level.stride[4];
      pack<T, A>({source, rows, columns, task.channels, level.stride[3], level.stride[4], level.stride[1]}, map, slice);
      pool(task, static_cast<const A*>(map), box.rows.first, box.columns.first, columns * slice, slice, &scratch);
    });
  }

 private:
  // The smallest box that holds those of the rois [first, last).
  RoiFrame cover(int64_t first, int64_t last) const {
    RoiFrame box = tables_[first];
    for (int64_t i = first + 1; i < last; ++i) {
      const RoiFrame& roi = tables_[i];
      if (roi.rows.first == roi.rows.last) continue;
      if (box.rows.first == box.rows.last) {
        box = roi;
        continue;
      }
      box.rows = {std::min(box.rows.first, roi.rows.first), std::max(box.rows.last, roi.rows.last)};
      box.columns = {std::min(box.columns.first, roi.columns.first), std::max(box.columns.last, roi.columns.last)};
    }
    return box;
  }

  static int64_t area(const RoiFrame& roi) { return (roi.rows.last - roi.rows.first) * (roi.columns.last - roi.columns.first); }

  // The tasks of one unit. A map whose channels lie apart is packed once for all its rois, or roi by roi where they are few
  // and far between.
  void plan(int64_t first, int64_t last) {
    const RoiFrame& roi = tables_[first];
    if (roi.image < 0 || a_.level[roi.level].stride[1] == 1 || a_.channels == 1) {
      constexpr int64_t kChunk = 8;
      for (int64_t i = first; i < last; i += kChunk) tasks_.push_back({i, std::min(last, i + kChunk), 0, a_.channels, false});
      return;
    }
    int64_t separate = 0;
    for (int64_t i = first; i < last; ++i) separate += area(tables_[i]);
    constexpr int64_t kSlice = kSliceBytes / int64_t(sizeof(A));
    const int64_t slices = (a_.channels + kSlice - 1) / kSlice, wanted = 2 * thread_count();
    int64_t parts = (wanted + slices - 1) / slices;
    if (separate < area(cover(first, last))) parts = last - first;
    parts = std::min(parts, last - first);
    for (int64_t c = 0; c < a_.channels; c += kSlice)
      for (int64_t part = 0; part < parts; ++part)
        tasks_.push_back({first + (last - first) * part / parts, first + (last - first) * (part + 1) / parts, c, std::min(kSlice, a_.channels - c), true});
  }

  template <typename S>
  void pool(const Task& task, const S* source, int64_t row, int64_t column, int64_t row_stride, int64_t column_stride, Scratch<A>* scratch) const {
    for (int64_t i = task.first; i < task.last; ++i) {
      const RoiFrame& roi = tables_[i];
      const AxisTaps<A> y = at_distance(tables_.y(i), a_.pooled_height, row, row_stride, &scratch->y);
      const AxisTaps<A> x = at_distance(tables_.x(i), a_.pooled_width, column, column_stride, &scratch->x);
      T* out = static_cast<T*>(a_.pooled) + roi.roi * a_.pooled_stride[0] + task.channel * a_.pooled_stride[1] + roi.frame * a_.pooled_stride[2];
      if (a_.pooled_stride[1] == 1) {
        pool_roi<S, T, A>(a_, source, y, x, task.channels, {out, a_.pooled_stride[3], a_.pooled_stride[4], streams_});
      } else {
        pool_into_planes(source, y, x, task.channels, out, scratch);
      }
    }
  }

  // A result whose channels lie apart takes them from scratch, where they lay side by side.
  template <typename S>
  void pool_into_planes(const S* source, const AxisTaps<A>& y, const AxisTaps<A>& x, int64_t channels, T* out, Scratch<A>* scratch) const {
    constexpr int64_t kSlice = kSliceBytes / int64_t(sizeof(A));
    const int64_t bins = a_.pooled_height * a_.pooled_width;
    A* pooled = scratch->bins.reserve(bins * kSlice);
    for (int64_t c = 0; c < channels; c += kSlice) {
      const int64_t count = std::min(kSlice, channels - c);
      pool_roi<S, A, A>(a_, source + c, y, x, count, {pooled, a_.pooled_width * kSlice, kSlice, false});
      unpack_row(pooled, kSlice, bins, count, out + c * a_.pooled_stride[1], a_.pooled_stride[1]);
    }
  }

  const RoiAlignArguments& a_;
  RoiTables<A> tables_;
  std::vector<Task> tasks_;
  bool large_, streams_;
};

}  // namespace

void roi_pooling_forward(const RoiAlignArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { Forward<decltype(zero)>(arguments).run(); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
