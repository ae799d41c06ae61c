#include "common/aligned_array.h"
#include "cpu/roi_packing.h"
#include "cpu/roi_tables.h"
#include "ops/roi_pooling.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kBlock = kVectorBytes == 64 ? 16 : 8;  // vectors of channels that a pixel sums in registers
constexpr int64_t kTileRows = 8, kTileColumns = 64;
constexpr int64_t kColumns = 16;                         // summed together: they need the same bins from the cache
constexpr int64_t kPackedBytes = int64_t(16) << 20;      // of the gradient that is packed at a time, about
constexpr int64_t kLargeResult = int64_t(8) << 20;       // bytes that the caches cannot hold for whoever reads them next

// A part of one map's gradient and the rois [first, last) that can reach it. Only this task writes there, and a pixel adds
// its rois in their order: the result has the same bits for any number of threads.
struct Tile {
  int64_t level, image, frame, first, last;
  PixelRange rows, columns;
};

// The channels at hand: where the packed ones, or all, begin in the map.
struct Channels {
  int64_t first, count;
};

template <typename A>
struct Scratch {
  std::vector<int64_t> rois;           // those that reach the columns at hand
  std::vector<Tap<A>> taps[kColumns];  // of each pixel of a row: bins, at their distance in elements
  AlignedArray<A> sums;                // of a tile
};

// N vectors of channels of one pixel: the sum of its bins.
template <int64_t N, typename S, typename A>
inline void sum_block(const S* bins, const std::vector<Tap<A>>& taps, Vector<A>* sum) {
  for (int64_t n = 0; n < N; ++n) sum[n] = Vector<A>{};
  for (const Tap<A>& tap : taps) {
    const S* bin = bins + tap.at;
    const Vector<A> weight = broadcast(tap.weight);
    for (int64_t n = 0; n < N; ++n) sum[n] = multiply_add(weight, load_vector(bin + n * kWidth<A>), sum[n]);
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

// All channels of one pixel, side by side in the bins and in the result.
template <typename S, typename D, typename A>
void sum_pixel(const S* bins, const std::vector<Tap<A>>& taps, int64_t channels, D* to, bool stream) {
  constexpr int64_t kStep = kWidth<A>;
  Vector<A> sum[kBlock];
  int64_t c = 0;
  for (; c + kBlock * kStep <= channels; c += kBlock * kStep) {
    sum_block<kBlock>(bins + c, taps, sum);
    store_block<kBlock>(sum, to + c, stream);
  }
  for (; c + 4 * kStep <= channels; c += 4 * kStep) {
    sum_block<4>(bins + c, taps, sum);
    store_block<4>(sum, to + c, stream);
  }
  for (; c + kStep <= channels; c += kStep) {
    sum_block<1>(bins + c, taps, sum);
    store_block<1>(sum, to + c, stream);
  }
  if (c == channels) return;
  sum[0] = Vector<A>{};
  for (const Tap<A>& tap : taps) sum[0] = multiply_add(broadcast(tap.weight), load_vector(bins + c + tap.at, channels - c), sum[0]);
  store_vector(sum[0], to + c, channels - c);
}

template <typename T>
class Backward {
 public:
  using A = Accumulate<T>;

  explicit Backward(const RoiAlignArguments& arguments) : a_(arguments), tables_(arguments, true) {}

  void run() {
    plan();
    if (a_.pooled_stride[1] == 1 || a_.channels == 1) {
      run_tiles<T>(static_cast<const T*>(a_.pooled), {0, a_.channels}, [&](int64_t place) { return distance(tables_[place]); }, a_.pooled_stride[3],
                   a_.pooled_stride[4]);
      return;
    }
    // Channels that lie apart are packed, as many at a time as keep the packed gradient in the shared cache.
    const int64_t bins = a_.pooled_height * a_.pooled_width;
    const int64_t slice = (tables_.size() * bins * 512 <= kPackedBytes ? 512 : 256) / int64_t(sizeof(A));
    AlignedArray<A> packed;
    A* gradients = packed.reserve(tables_.size() * bins * slice);
    for (int64_t c = 0; c < a_.channels; c += slice) {
      const Channels channels{c, std::min(slice, a_.channels - c)};
      pack_gradients(channels, slice, gradients);
      run_tiles<A>(gradients, channels, [&](int64_t place) { return place * bins * slice; }, a_.pooled_width * slice, slice);
    }
  }

 private:
  int64_t distance(const RoiFrame& roi) const { return roi.roi * a_.pooled_stride[0] + roi.frame * a_.pooled_stride[2]; }

  void pack_gradients(const Channels& channels, int64_t slice, A* to) const {
    const int64_t* stride = a_.pooled_stride;
    const int64_t bins = a_.pooled_height * a_.pooled_width;
    const bool joined = stride[3] == a_.pooled_width * stride[4];
    parallel_for(0, tables_.size(), 4, [&](int64_t from, int64_t until) {
      for (int64_t place = from; place < until; ++place) {
        const T* source = static_cast<const T*>(a_.pooled) + distance(tables_[place]) + channels.first * stride[1];
        if (joined)
          pack<T, A>({source, 1, bins, channels.count, 0, stride[4], stride[1]}, to + place * bins * slice, slice);
        else
          pack<T, A>({source, a_.pooled_height, a_.pooled_width, channels.count, stride[3], stride[4], stride[1]}, to + place * bins * slice, slice);
      }
    });
  }

  // Tiles for every part of every map, also where no roi lies.
  void plan() {
    int64_t place = 0;
    while (place < tables_.size() && tables_[place].image < 0) ++place;
    for (int64_t l = 0; l < a_.levels; ++l) {
      for (int64_t image = 0; image < a_.batch; ++image) {
        for (int64_t t = 0; t < a_.frames; ++t) {
          Tile tile{l, image, t, place, place, {0, 0}, {0, 0}};
          if (place < tables_.size() && tables_[place].level == l && tables_[place].image == image && tables_[place].frame == t)
            place = tile.last = tables_.unit_end(place);
          cut(tile);
        }
      }
    }
  }

  void cut(Tile tile) {
    const RoiLevel& level = a_.level[tile.level];
    for (int64_t y = 0; y < level.height; y += kTileRows) {
      tile.rows = {y, std::min(y + kTileRows, level.height)};
      for (int64_t x = 0; x < level.width; x += kTileColumns) {
        tile.columns = {x, std::min(x + kTileColumns, level.width)};
        tiles_.push_back(tile);
      }
    }
  }

  // Bins of a roi begin at bins + distance_of(place), their channels side by side.
  template <typename S, typename DistanceOf>
  void run_tiles(const S* bins, const Channels& channels, const DistanceOf& distance_of, int64_t row_stride, int64_t column_stride) const {
    const int64_t pixels = int64_t(tiles_.size()) * kTileRows * kTileColumns;
    parallel_tasks(int64_t(tiles_.size()), (pixels + tables_.work(a_)) * channels.count, [] { return Scratch<A>(); }, [&](int64_t i, Scratch<A>& scratch) {
      const Tile& tile = tiles_[i];
      const Result result = result_of(tile, channels, &scratch);
      for (int64_t column = tile.columns.first; column < tile.columns.last; column += kColumns) {
        const PixelRange columns{column, std::min(column + kColumns, tile.columns.last)};
        list_rois(tile, columns, &scratch.rois);
        for (int64_t row = tile.rows.first; row < tile.rows.last; ++row) {
          for (std::vector<Tap<A>>& taps : scratch.taps) taps.clear();
          for (int64_t place : scratch.rois) list_taps(row, columns, place, distance_of(place), row_stride, column_stride, scratch.taps);
          const int64_t y = row - tile.rows.first;
          for (int64_t n = 0; n < columns.last - columns.first; ++n) {
            const int64_t x = column - tile.columns.first + n;
            if (result.sums == nullptr)
              sum_pixel(bins, scratch.taps[n], channels.count, result.out + y * result.row_stride + x * result.column_stride, result.streams);
            else
              sum_pixel(bins, scratch.taps[n], channels.count, result.sums + (y * (tile.columns.last - tile.columns.first) + x) * result.slice, false);
          }
        }
      }
      if (result.sums != nullptr) unpack(tile, channels, result);
    });
  }

  // Where a tile's sums go: straight into the map if its channels lie side by side, else by way of scratch.
  struct Result {
    T* out;
    int64_t row_stride, column_stride, channel_stride;
    bool streams;
    A* sums;
    int64_t slice;
  };

  Result result_of(const Tile& tile, const Channels& channels, Scratch<A>* scratch) const {
    const RoiLevel& level = a_.level[tile.level];
    const int64_t* stride = level.stride;
    T* out = static_cast<T*>(level.data) + tile.image * stride[0] + channels.first * stride[1] + tile.frame * stride[2] + tile.rows.first * stride[3] +
             tile.columns.first * stride[4];
    constexpr int64_t kAlignment = kWidth<A> * int64_t(sizeof(T));
    const bool streams = reinterpret_cast<uintptr_t>(out) % kAlignment == 0 && stride[4] % kWidth<A> == 0;
    Result result{out, stride[3], stride[4], stride[1], streams, nullptr, rounded_up(channels.count, kWidth<A>)};
    if (stride[4] == 1 && a_.channels > 1) result.sums = scratch->sums.reserve(kTileRows * kTileColumns * result.slice);
    return result;
  }

  void unpack(const Tile& tile, const Channels& channels, const Result& result) const {
    const int64_t columns = tile.columns.last - tile.columns.first;
    for (int64_t y = 0; y < tile.rows.last - tile.rows.first; ++y)
      unpack_row(result.sums + y * columns * result.slice, result.slice, columns, channels.count, result.out + y * result.row_stride, result.channel_stride);
  }

  void list_rois(const Tile& tile, PixelRange columns, std::vector<int64_t>* rois) const {
    rois->clear();
    for (int64_t place = tile.first; place < tile.last; ++place) {
      const RoiFrame& roi = tables_[place];
      if (roi.rows.first < tile.rows.last && roi.rows.last > tile.rows.first && roi.columns.first < columns.last && roi.columns.last > columns.first)
        rois->push_back(place);
    }
  }

  // Adds the bins of one roi to the lists of the pixels of a part of one row.
  void list_taps(int64_t row, PixelRange columns, int64_t place, int64_t distance, int64_t row_stride, int64_t column_stride, std::vector<Tap<A>>* taps) const {
    const RoiFrame& roi = tables_[place];
    if (row < roi.rows.first || row >= roi.rows.last) return;
    const AxisTaps<A> y = tables_.y(place), x = tables_.x(place);
    const int64_t first = std::max(roi.columns.first, columns.first), last = std::min(roi.columns.last, columns.last);
    for (int64_t i = y.begin[row - roi.rows.first]; i < y.begin[row - roi.rows.first + 1]; ++i) {
      const int64_t bins = distance + y.taps[i].at * row_stride;
      for (int64_t column = first; column < last; ++column)
        for (int64_t j = x.begin[column - roi.columns.first]; j < x.begin[column - roi.columns.first + 1]; ++j)
          taps[column - columns.first].push_back({bins + x.taps[j].at * column_stride, y.taps[i].weight * x.taps[j].weight});
    }
  }

  const RoiAlignArguments& a_;
  RoiTables<A> tables_;
  std::vector<Tile> tiles_;
};

}  // namespace

void roi_pooling_backward(const RoiAlignArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { Backward<decltype(zero)>(arguments).run(); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
