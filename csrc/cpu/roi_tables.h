// What the CPU kernels of RoIAlign work out for every roi and frame before they touch a map: where it lies, and the weights
// of its bins along both axes without the zeros.
#pragma once
#include <algorithm>
#include <atomic>
#include <vector>

#include "common/parallel.h"
#include "common/roi_align_math.h"
#include "common/vector.h"

namespace pyposeext::PYPOSEEXT_LEVEL {

struct PixelRange {
  int64_t first, last;
};

template <typename A> struct Tap {
  int64_t at;  // a pixel of a bin, or a bin of a pixel, or its distance in elements
  A weight;
};

// The taps of number n of an axis are [begin[n], begin[n + 1]) of `taps`.
template <typename A> struct AxisTaps {
  const int64_t* begin;
  const Tap<A>* taps;
};

// A roi in one frame.
struct RoiFrame {
  int64_t roi, frame, image, level;
  PixelRange rows, columns;      // where it has weight; empty where it pools to 0
  int64_t begin[2], taps[2];     // of the y and the x axis in the tables
};

template <typename A>
class RoiTables {
 public:
  // Bin by bin for the forward; pixel by pixel of `rows` and `columns` for the backward.
  RoiTables(const RoiAlignArguments& arguments, bool by_pixel) : items_(size_t(arguments.rois * arguments.frames)) {
    const int64_t count = int64_t(items_.size());
    chunks_.resize(size_t((count + kChunk - 1) / kChunk));
    parallel_for(0, int64_t(chunks_.size()), 2, [&](int64_t from, int64_t to) {
      std::vector<A> weights;
      for (int64_t chunk = from; chunk < to; ++chunk)
        for (int64_t i = chunk * kChunk; i < std::min(count, (chunk + 1) * kChunk); ++i) fill(arguments, by_pixel, i, &chunks_[chunk], &weights);
    });
    sort(arguments);
  }

  int64_t size() const { return int64_t(order_.size()); }

  // About as many multiplications as all bins take for one channel.
  int64_t work(const RoiAlignArguments& arguments) const { return 4 * size() * arguments.pooled_height * arguments.pooled_width; }

  // Rois of one level, image and frame stand together, and near each other those that lie near each other: what one reads
  // is still in the cache for the next.
  const RoiFrame& operator[](int64_t place) const { return items_[order_[place]]; }
  AxisTaps<A> y(int64_t place) const { return axis(order_[place], 0); }
  AxisTaps<A> x(int64_t place) const { return axis(order_[place], 1); }

  // The end of the rois that share the level, image and frame of the one at `place`.
  int64_t unit_end(int64_t place) const {
    const RoiFrame& first = (*this)[place];
    int64_t end = place + 1;
    while (end < size() && same_unit((*this)[end], first)) ++end;
    return end;
  }

 private:
  static constexpr int64_t kChunk = 32;  // rois whose tables share their memory
  struct Chunk {
    std::vector<int64_t> begin;
    std::vector<Tap<A>> taps;
  };

  static bool same_unit(const RoiFrame& a, const RoiFrame& b) { return a.level == b.level && a.image == b.image && a.frame == b.frame; }

  AxisTaps<A> axis(int64_t item, int d) const {
    const Chunk& chunk = chunks_[item / kChunk];
    return {chunk.begin.data() + items_[item].begin[d], chunk.taps.data() + items_[item].taps[d]};
  }

  void fill(const RoiAlignArguments& a, bool by_pixel, int64_t i, Chunk* chunk, std::vector<A>* weights) {
    RoiFrame& item = items_[i];
    item.roi = i / a.frames;
    item.frame = i % a.frames;
    item.image = roi_image<A>(a, item.roi);
    item.level = roi_level<A>(a, item.roi);
    const RoiLevel& level = a.level[item.level];
    const A* box = roi_box<A>(a, item.roi, item.frame);
    RoiAxis<A> y = roi_axis(box[1], box[3], A(level.scale), a.pooled_height, a.sampling_ratio, a.aligned);
    RoiAxis<A> x = roi_axis(box[0], box[2], A(level.scale), a.pooled_width, a.sampling_ratio, a.aligned);
    if (item.image < 0) y = x = RoiAxis<A>{A(0), A(0), A(0)};
    item.rows = append(y, a.pooled_height, level.height, by_pixel, &item, 0, chunk, weights);
    item.columns = append(x, a.pooled_width, level.width, by_pixel, &item, 1, chunk, weights);
    if (item.rows.first == item.rows.last || item.columns.first == item.columns.last) item.rows = item.columns = {0, 0};
  }

  // The taps of one axis at the end of the chunk; where they lie.
  PixelRange append(const RoiAxis<A>& axis, int64_t bins, int64_t size, bool by_pixel, RoiFrame* item, int d, Chunk* chunk, std::vector<A>* weights) {
    item->begin[d] = int64_t(chunk->begin.size());
    item->taps[d] = int64_t(chunk->taps.size());
    PixelRange range{size, 0};
    for (int64_t p = 0; p < bins; ++p) {
      chunk->begin.push_back(int64_t(chunk->taps.size()) - item->taps[d]);
      const PixelRange bin = weigh(axis, p, size, weights);
      for (int64_t pixel = bin.first; pixel < bin.last; ++pixel) {
        const A weight = (*weights)[pixel - bin.first] / axis.grid;
        if (weight == A(0)) continue;
        chunk->taps.push_back({pixel, weight});
        range = {std::min(range.first, pixel), std::max(range.last, pixel + 1)};
      }
    }
    chunk->begin.push_back(int64_t(chunk->taps.size()) - item->taps[d]);
    if (range.last == 0) return {0, 0};
    if (by_pixel) turn(bins, range, item->begin[d], item->taps[d], chunk);
    return range;
  }

  // axis_weight times the grid for all pixels of bin p at once, added in the same order.
  static PixelRange weigh(const RoiAxis<A>& axis, int64_t p, int64_t size, std::vector<A>* weights) {
    PixelRange range;
    pixel_range(axis, p, 1, size, &range.first, &range.last);
    weights->assign(size_t(range.last - range.first), A(0));
    const auto add = [&](int64_t pixel, A weight) {
      if (pixel >= range.first && pixel < range.last) (*weights)[pixel - range.first] += weight;
    };
    if (range.first == range.last) return range;
    A first, last;
    sample_range(axis, p, A(-1), A(size), &first, &last);
    for (A i = first; i < last; i += A(1)) {
      const AxisSample<A> sample = sample_axis(sample_position(axis, p, i), size);
      if (!sample.inside) continue;
      add(sample.low, A(1) - sample.fraction);
      if (sample.high != sample.low) add(sample.high, sample.fraction);
    }
    return range;
  }

  // From the pixels of each bin to the bins of each pixel in `range`.
  static void turn(int64_t bins, PixelRange range, int64_t begin, int64_t taps, Chunk* chunk) {
    const std::vector<int64_t> bin_begin(chunk->begin.begin() + begin, chunk->begin.end());
    const std::vector<Tap<A>> of_bins(chunk->taps.begin() + taps, chunk->taps.end());
    chunk->begin.resize(size_t(begin));
    chunk->begin.resize(size_t(begin + range.last - range.first + 1), 0);
    int64_t* count = chunk->begin.data() + begin;
    for (const Tap<A>& tap : of_bins) ++count[tap.at - range.first + 1];
    for (int64_t i = 0; i < range.last - range.first; ++i) count[i + 1] += count[i];
    std::vector<int64_t> next(count, count + range.last - range.first);
    for (int64_t p = 0; p < bins; ++p)
      for (int64_t i = bin_begin[p]; i < bin_begin[p + 1]; ++i) chunk->taps[taps + next[of_bins[i].at - range.first]++] = {p, of_bins[i].weight};
  }

  void sort(const RoiAlignArguments& a) {
    constexpr int64_t kBand = 16;  // rows of pixels; within a band rois follow each other in x
    struct Key {
      int64_t unit, place, item;
    };
    std::vector<Key> keys;
    keys.reserve(items_.size());
    for (const RoiFrame& item : items_) {
      const int64_t band = (item.rows.first + item.rows.last) / (2 * kBand), x = item.columns.first + item.columns.last;
      keys.push_back({(item.level * a.batch + item.image) * a.frames + item.frame, (band << 32) + (band % 2 ? -x : x), int64_t(keys.size())});
      if (item.image < 0) keys.back().unit = -1 - item.level;
    }
    std::sort(keys.begin(), keys.end(), [](const Key& one, const Key& other) {
      return one.unit != other.unit ? one.unit < other.unit : one.place != other.place ? one.place < other.place : one.item < other.item;
    });
    for (const Key& key : keys) order_.push_back(key.item);
  }

  std::vector<RoiFrame> items_;
  std::vector<Chunk> chunks_;
  std::vector<int64_t> order_;
};

// body(task, state) for every task, each thread with a state of its own and taking the next task: tasks cost unequally.
// `work` is their multiplications in all, about: waking a thread costs more than a few thousand of them.
template <typename Body, typename MakeState>
inline void parallel_tasks(int64_t count, int64_t work, const MakeState& make_state, const Body& body) {
  constexpr int64_t kWorkOfThread = int64_t(1) << 16;
  std::atomic<int64_t> next{0};
  parallel_for(0, std::min({count, thread_count(), 1 + work / kWorkOfThread}), 1, [&](int64_t, int64_t) {
    auto state = make_state();
    for (int64_t task = next++; task < count; task = next++) body(task, state);
    end_streaming();
  });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
