#include "common/aligned_array.h"
#include "common/huge_pages.h"
#include "cpu/roi_packing.h"
#include "cpu/roi_tables.h"
#include "ops/roi_pooling.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kBlock = kVectorBytes == 64 ? 16 : 8;  // vectors of channels that a pixel sums in registers
constexpr int64_t kTileRows = 8;
constexpr int64_t kTileBytes = int64_t(1) << 19;         // of sums that a task keeps in its core's cache
constexpr int64_t kPackedBytes = int64_t(8) << 20;       // of the gradient that is packed at a time, about
constexpr int64_t kLargeResult = int64_t(8) << 20;       // bytes that the caches cannot hold for whoever reads them next

// A part of one map's gradient and the rois [first, last) that can reach it. Only this task writes there, and it adds the
// rois in their order: the result has the same bits for any number of threads.
struct Tile {
  int64_t level, image, frame, first, last;
  PixelRange rows, columns;
  int64_t channel, channels;  // counted within the channels at hand
};

// What the bins of one roi give to N vectors of channels of one pixel.
template <int64_t N, typename S, typename A>
inline void add_block(const S* bins, const Tap<A>* y, const Tap<A>* y_end, const Tap<A>* x, const Tap<A>* x_end, int64_t row_stride,
                      int64_t column_stride, A* pixel) {
  Vector<A> sum[N];
  for (int64_t n = 0; n < N; ++n) sum[n] = load_vector(pixel + n * kWidth<A>);
  for (const Tap<A>* p = y; p < y_end; ++p) {
    for (const Tap<A>* q = x; q < x_end; ++q) {
      const S* bin = bins + p->at * row_stride + q->at * column_stride;
      const Vector<A> weight = broadcast(p->weight * q->weight);
      for (int64_t n = 0; n < N; ++n) sum[n] = multiply_add(weight, load_vector(bin + n * kWidth<A>), sum[n]);
    }
  }
  for (int64_t n = 0; n < N; ++n) store_vector(sum[n], pixel + n * kWidth<A>);
}

// The last channels, fewer than a vector; the pixel's scratch has room for a whole one.
template <typename S, typename A>
inline void add_rest(const S* bins, const Tap<A>* y, const Tap<A>* y_end, const Tap<A>* x, const Tap<A>* x_end, int64_t row_stride,
                     int64_t column_stride, int64_t count, A* pixel) {
  Vector<A> sum = load_vector(pixel);
  for (const Tap<A>* p = y; p < y_end; ++p)
    for (const Tap<A>* q = x; q < x_end; ++q)
      sum = multiply_add(broadcast(p->weight * q->weight), load_vector(bins + p->at * row_stride + q->at * column_stride, count), sum);
  store_vector(sum, pixel);
}

template <typename T>
class Backward {
 public:
  using A = Accumulate<T>;

  explicit Backward(const RoiAlignArguments& arguments) : a_(arguments), tables_(arguments, true) {
    for (int64_t place = 0; place < tables_.size(); place = tables_.unit_end(place)) units_.push_back(place);
    for (int64_t l = 0; l < a_.levels; ++l) {
      const int64_t bytes = a_.batch * a_.channels * a_.frames * a_.level[l].height * a_.level[l].width * int64_t(sizeof(T));
      if (bytes >= kLargeResult) prefer_huge_pages(a_.level[l].data, bytes);
    }
  }

  void run() {
    if (a_.pooled_stride[1] == 1 || a_.channels == 1) {
      constexpr int64_t kSlice = 1024 / int64_t(sizeof(A));
      plan(a_.channels, kSlice);
      run_tiles(0, [&](int64_t place, int64_t channel) { return gradient_of(tables_[place], channel); }, a_.pooled_stride[3], a_.pooled_stride[4]);
      return;
    }
    // Channels that lie apart are packed, as many at a time as keep the packed gradient in the shared cache.
    const int64_t bins = a_.pooled_height * a_.pooled_width;
    const int64_t slice = tables_.size() * bins * 256 <= kPackedBytes ? 256 / int64_t(sizeof(A)) : 128 / int64_t(sizeof(A));
    AlignedArray<A> packed;
    A* gradients = packed.reserve(tables_.size() * bins * slice);
    for (int64_t c = 0; c < a_.channels; c += slice) {
      const int64_t channels = std::min(slice, a_.channels - c);
      pack_gradients(c, channels, slice, gradients);
      plan(channels, slice);
      run_tiles(
          c, [&](int64_t place, int64_t channel) { return static_cast<const A*>(gradients) + place * bins * slice + channel; },
          a_.pooled_width * slice, slice);
    }
  }

 private:
  const T* gradient_of(const RoiFrame& roi, int64_t channel) const {
    return static_cast<const T*>(a_.pooled) + roi.roi * a_.pooled_stride[0] + channel * a_.pooled_stride[1] + roi.frame * a_.pooled_stride[2];
  }

  void pack_gradients(int64_t channel, int64_t channels, int64_t slice, A* to) const {
    const int64_t* stride = a_.pooled_stride;
    const int64_t bins = a_.pooled_height * a_.pooled_width;
    const bool joined = stride[3] == a_.pooled_width * stride[4];
    parallel_for(0, tables_.size(), 4, [&](int64_t from, int64_t until) {
      for (int64_t place = from; place < until; ++place) {
        const T* source = gradient_of(tables_[place], channel);
        if (joined)
          pack<T, A>({source, 1, bins, channels, 0, stride[4], stride[1]}, to + place * bins * slice, slice);
        else
          pack<T, A>({source, a_.pooled_height, a_.pooled_width, channels, stride[3], stride[4], stride[1]}, to + place * bins * slice, slice);
      }
    });
  }

  // Tiles for every part of every map, also where no roi lies.
  void plan(int64_t channels, int64_t slice) {
    tiles_.clear();
    size_t unit = 0;
    while (unit < units_.size() && tables_[units_[unit]].image < 0) ++unit;
    for (int64_t l = 0; l < a_.levels; ++l) {
      for (int64_t image = 0; image < a_.batch; ++image) {
        for (int64_t t = 0; t < a_.frames; ++t) {
          Tile tile{l, image, t, 0, 0, {0, 0}, {0, 0}, 0, 0};
          if (unit < units_.size()) {
            const RoiFrame& roi = tables_[units_[unit]];
            if (roi.level == l && roi.image == image && roi.frame == t) {
              tile.first = units_[unit++];
              tile.last = unit < units_.size() ? units_[unit] : tables_.size();
            }
          }
          cut(tile, channels, slice);
        }
      }
    }
  }

  void cut(Tile tile, int64_t channels, int64_t slice) {
    const RoiLevel& level = a_.level[tile.level];
    const int64_t pixel_bytes = rounded_up(std::min(channels, slice), kWidth<A>) * int64_t(sizeof(A));
    const int64_t columns = std::max<int64_t>(kTileBytes / (kTileRows * pixel_bytes), 8);
    for (int64_t c = 0; c < channels; c += slice) {
      tile.channel = c;
      tile.channels = std::min(slice, channels - c);
      for (int64_t y = 0; y < level.height; y += kTileRows) {
        tile.rows = {y, std::min(y + kTileRows, level.height)};
        for (int64_t x = 0; x < level.width; x += columns) {
          tile.columns = {x, std::min(x + columns, level.width)};
          tiles_.push_back(tile);
        }
      }
    }
  }

  // bins_of(place, channel): the gradient of a roi, its channels side by side.
  template <typename BinsOf>
  void run_tiles(int64_t channel, const BinsOf& bins_of, int64_t row_stride, int64_t column_stride) const {
    parallel_tasks(int64_t(tiles_.size()), [] { return AlignedArray<A>(); }, [&](int64_t i, AlignedArray<A>& scratch) {
      const Tile& tile = tiles_[i];
      const int64_t slice = rounded_up(tile.channels, kWidth<A>), columns = tile.columns.last - tile.columns.first;
      const int64_t count = (tile.rows.last - tile.rows.first) * columns * slice;
      A* sums = scratch.reserve(count);
      std::fill(sums, sums + count, A(0));
      for (int64_t place = tile.first; place < tile.last; ++place)
        add_roi(tile, place, bins_of(place, tile.channel), row_stride, column_stride, slice, sums);
      write(tile, channel + tile.channel, slice, sums);
    });
  }

  template <typename S>
  void add_roi(const Tile& tile, int64_t place, const S* bins, int64_t row_stride, int64_t column_stride, int64_t slice, A* sums) const {
    const RoiFrame& roi = tables_[place];
    const PixelRange rows{std::max(roi.rows.first, tile.rows.first), std::min(roi.rows.last, tile.rows.last)};
    const PixelRange columns{std::max(roi.columns.first, tile.columns.first), std::min(roi.columns.last, tile.columns.last)};
    if (rows.first >= rows.last || columns.first >= columns.last) return;
    const AxisTaps<A> y = tables_.y(place), x = tables_.x(place);
    const int64_t width = tile.columns.last - tile.columns.first;
    for (int64_t row = rows.first; row < rows.last; ++row) {
      const Tap<A>*y_first = y.taps + y.begin[row - roi.rows.first], *y_last = y.taps + y.begin[row - roi.rows.first + 1];
      if (y_first == y_last) continue;
      A* pixel = sums + ((row - tile.rows.first) * width + columns.first - tile.columns.first) * slice;
      for (int64_t column = columns.first; column < columns.last; ++column, pixel += slice) {
        const Tap<A>*x_first = x.taps + x.begin[column - roi.columns.first], *x_last = x.taps + x.begin[column - roi.columns.first + 1];
        if (x_first == x_last) continue;
        add_pixel(bins, y_first, y_last, x_first, x_last, row_stride, column_stride, tile.channels, pixel);
      }
    }
  }

  template <typename S>
  static void add_pixel(const S* bins, const Tap<A>* y, const Tap<A>* y_end, const Tap<A>* x, const Tap<A>* x_end, int64_t row_stride,
                        int64_t column_stride, int64_t channels, A* pixel) {
    constexpr int64_t kStep = kWidth<A>;
    int64_t c = 0;
    for (; c + kBlock * kStep <= channels; c += kBlock * kStep)
      add_block<kBlock>(bins + c, y, y_end, x, x_end, row_stride, column_stride, pixel + c);
    for (; c + 4 * kStep <= channels; c += 4 * kStep) add_block<4>(bins + c, y, y_end, x, x_end, row_stride, column_stride, pixel + c);
    for (; c + kStep <= channels; c += kStep) add_block<1>(bins + c, y, y_end, x, x_end, row_stride, column_stride, pixel + c);
    if (c < channels) add_rest(bins + c, y, y_end, x, x_end, row_stride, column_stride, channels - c, pixel + c);
  }

  void write(const Tile& tile, int64_t channel, int64_t slice, const A* sums) const {
    const RoiLevel& level = a_.level[tile.level];
    const int64_t columns = tile.columns.last - tile.columns.first;
    T* out = static_cast<T*>(level.data) + tile.image * level.stride[0] + channel * level.stride[1] + tile.frame * level.stride[2] +
             tile.rows.first * level.stride[3] + tile.columns.first * level.stride[4];
    for (int64_t row = tile.rows.first; row < tile.rows.last; ++row, sums += columns * slice, out += level.stride[3]) {
      if (level.stride[4] == 1)
        unpack_row(sums, slice, columns, tile.channels, out, level.stride[1]);
      else
        for (int64_t column = 0; column < columns; ++column) write_pixel(sums + column * slice, tile.channels, out + column * level.stride[4]);
    }
  }

  static void write_pixel(const A* sums, int64_t channels, T* to) {
    constexpr int64_t kStep = kWidth<A>;
    int64_t c = 0;
    if (reinterpret_cast<uintptr_t>(to) % (kStep * sizeof(T)) == 0)
      for (; c + kStep <= channels; c += kStep) stream_vector(load_vector(sums + c), to + c);
    for (; c + kStep <= channels; c += kStep) store_vector(load_vector(sums + c), to + c);
    if (c < channels) store_vector(load_vector(sums + c), to + c, channels - c);
  }

  const RoiAlignArguments& a_;
  RoiTables<A> tables_;
  std::vector<int64_t> units_;  // where the rois of each level, image and frame begin
  std::vector<Tile> tiles_;
};

}  // namespace

void roi_pooling_backward(const RoiAlignArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { Backward<decltype(zero)>(arguments).run(); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
