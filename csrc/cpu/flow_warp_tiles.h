// What the CPU kernels of flow_warp share: positions and weights of a few rows of pixels, and maps in pieces that a vector
// of channels can read.
//
// A tile is a square of kWidth pixels by kWidth channels, a vector of channels per pixel. Planes are transposed into tiles
// and back, so that one load brings a pixel's value of all channels of a group: nothing is gathered.
#pragma once
#include <type_traits>

#include "common/aligned_array.h"
#include "common/flow_warp_math.h"
#include "common/vector.h"

namespace pyposeext::PYPOSEEXT_LEVEL {

struct FlowRows {
  int64_t b, s, first, last;  // rows [first, last) of frame s of image b
  int64_t count() const { return last - first; }
};

constexpr bool kFastParts = kVectorBytes == 64;  // AVX-512 masks loads and stores

// Channels that are worked on together: in the lanes of a vector, or one alone with its pixels in the lanes.
struct ChannelGroup {
  int64_t first, count;
};

// All channels in groups of a vector. Where the last ones fill none, a few left over are worked on one by one. With `packed`
// they stay in lanes: in a part of a vector or, where parts are slow, in a vector that overlaps the one before.
struct ChannelGroups {
  int64_t channels, width;  // of a vector
  bool packed;

  int64_t count() const { return channels / width + (singles() ? channels % width : channels % width > 0); }
  ChannelGroup at(int64_t index) const {
    const int64_t first = index * width;
    if (first + width <= channels) return {first, width};
    if (singles()) return {channels / width * width + index - channels / width, 1};
    if (packed && !kFastParts && channels > width) return {channels - width, width};
    return {first, channels - first};
  }
  // Whether the group's pixels, not its channels, lie in the lanes.
  bool is_single(const ChannelGroup& group) const { return group.count == 1 && singles(); }

 private:
  bool singles() const { return !packed && channels % width <= width / 4; }
};

// Channels that lie next to each other are read where they are.
inline bool reads_directly(const FlowWarpArguments& a) {
  return a.channels > 1 && a.input.channel == 1 && a.input.row == a.input.column * a.width;
}

template <typename T>
T* frame_of(const FlowMaps& maps, int64_t b, int64_t s, int64_t c) {
  return static_cast<T*>(maps.data) + b * maps.batch + s * maps.step + c * maps.channel;
}

// How many pixels of a row are left for a vector that starts at x.
template <typename A>
int64_t lanes_at(int64_t x, int64_t width) {
  return width - x < kWidth<A> ? width - x : kWidth<A>;
}

// `count` (up to kWidth) elements that lie `stride` apart; the other lanes are 0.
template <typename T>
Vector<Accumulate<T>> load_row(const T* from, int64_t stride, int64_t count) {
  using A = Accumulate<T>;
  if (stride == 1) return count == kWidth<A> ? load_vector(from) : load_vector(from, count);
  Vector<A> value = {};
  for (int64_t i = 0; i < count; ++i) value[i] = load(from[i * stride]);
  return value;
}

template <typename T>
void store_row(Vector<Accumulate<T>> value, T* to, int64_t stride, int64_t count) {
  if (stride == 1 && count == kWidth<Accumulate<T>>) return store_vector(value, to);
  if (stride == 1) return store_vector(value, to, count);
  for (int64_t i = 0; i < count; ++i) store(value[i], to + i * stride);
}

// `pixels` neighbouring pixels of `group` of one row: `from` is the first pixel's element in the group's first channel.
template <typename T>
void load_tile(const FlowMaps& maps, const T* from, int64_t channels, int64_t pixels, Vector<Accumulate<T>>* tile) {
  using A = Accumulate<T>;
  if (maps.channel == 1) {
    for (int64_t i = 0; i < pixels; ++i) tile[i] = load_row(from + i * maps.column, 1, channels);
  } else if (maps.column == 1 && channels == kWidth<A> && pixels == kWidth<A>) {
#pragma GCC unroll 16
    for (int64_t c = 0; c < kWidth<A>; ++c) tile[c] = load_vector(from + c * maps.channel);
    transpose(tile);
  } else {
    for (int64_t c = 0; c < kWidth<A>; ++c) tile[c] = c < channels ? load_row(from + c * maps.channel, maps.column, pixels) : Vector<A>{};
    transpose(tile);
  }
}

template <typename T>
void store_tile(const FlowMaps& maps, T* to, int64_t channels, int64_t pixels, Vector<Accumulate<T>>* tile) {
  using A = Accumulate<T>;
  if (maps.channel == 1) {
    for (int64_t i = 0; i < pixels; ++i) store_row(tile[i], to + i * maps.column, 1, channels);
    return;
  }
  transpose(tile);
  if (maps.column == 1 && channels == kWidth<A> && pixels == kWidth<A>) {
#pragma GCC unroll 16
    for (int64_t c = 0; c < kWidth<A>; ++c) store_vector(tile[c], to + c * maps.channel);
  } else {
    for (int64_t c = 0; c < channels; ++c) store_row(tile[c], to + c * maps.channel, maps.column, pixels);
  }
}

template <typename A>
struct VectorAxis {
  Vector<A> low, fraction, slope;
  Vector<Integer<A>> inside;
};

// flow_axis, for a vector of positions.
template <typename A>
VectorAxis<A> vector_axis(Vector<A> position, A size, bool border) {
  const auto finite = position - position == A(0);
  Vector<A> slope = broadcast(A(1));
  if (border) {
    const auto before = position <= A(0), after = position >= size - A(1);
    position = before ? Vector<A>{} : after ? broadcast(size - A(1)) : position;
    slope = (before | after) ? Vector<A>{} : slope;
  }
  const auto inside = finite & (position >= A(-1)) & (position < size);
  const Vector<A> low = inside ? floor(position) : Vector<A>{};
  return {low, inside ? position - low : Vector<A>{}, slope, inside};
}

// Where a vector of neighbouring pixels samples the map.
template <typename A>
struct alignas(kVectorBytes) FlowTaps {
  static constexpr Integer<A> kWhole = 16;
  Integer<A> pixel[kWidth<A>];  // low_y * W + low_x; corner k is k / 2 rows and k % 2 pixels further
  Integer<A> flags[kWidth<A>];  // bit k: corner k lies in the map; kWhole: no weight is 0
  A weight[4][kWidth<A>];       // 0 of a corner outside the map
  A fraction_y[kWidth<A>], fraction_x[kWidth<A>], slope_y[kWidth<A>], slope_x[kWidth<A>];
  int64_t count;   // pixels of the row that there are
  bool all_whole;  // kWhole holds for all of them
};

// The taps of some rows: those of pixel x of the i-th row are in vector (i * row_vectors + x / kWidth).
template <typename A>
class FlowBlock {
 public:
  FlowRows rows;
  int64_t row_vectors;
  int64_t first_row, last_row;  // the samples lie in these rows of the map, if in any

  const FlowTaps<A>* taps() const { return taps_.data(); }
  int64_t vectors() const { return rows.count() * row_vectors; }

  void fill(const FlowWarpArguments& a, const FlowRows& of_rows) {
    rows = of_rows;
    row_vectors = (a.width + kWidth<A> - 1) / kWidth<A>;
    FlowTaps<A>* taps = taps_.reserve(vectors());
    Vector<A> lowest = broadcast(A(a.height)), highest = broadcast(A(-2));
    for (int64_t y = rows.first; y < rows.last; ++y) {
      const A* flow = frame_of<const A>(a.flow, rows.b, rows.s, 0) + y * a.flow.row;
      for (int64_t x = 0; x < a.width; x += kWidth<A>, ++taps) {
        taps->count = lanes_at<A>(x, a.width);
        const Vector<A> dx = load_row(flow + x * a.flow.column, a.flow.column, taps->count);
        const Vector<A> dy = load_row(flow + a.flow.channel + x * a.flow.column, a.flow.column, taps->count);
        const VectorAxis<A> row = vector_axis<A>(A(y) + dy, A(a.height), a.border);
        VectorAxis<A> column = vector_axis<A>(lane_numbers<A>() + A(x) + dx, A(a.width), a.border);
        column.inside &= lane_numbers<A>() < A(taps->count);
        const auto inside = row.inside & column.inside;
        store_taps(a, row, column, inside, taps);
        lowest = smaller(lowest, inside ? row.low : lowest);
        highest = larger(highest, inside ? row.low : highest);
      }
    }
    const int64_t low = int64_t(-maximum_of(-lowest)), high = int64_t(maximum_of(highest)) + 2;
    first_row = low < 0 ? 0 : low;
    last_row = high < first_row ? first_row : high > a.height ? a.height : high;
  }

 private:
  AlignedArray<FlowTaps<A>> taps_;

  static void store_taps(const FlowWarpArguments& a, const VectorAxis<A>& y, const VectorAxis<A>& x, Vector<Integer<A>> inside, FlowTaps<A>* taps) {
    using I = Vector<Integer<A>>;
    const I exists_y[2] = {y.low >= A(0), y.low < A(a.height - 1)}, exists_x[2] = {x.low >= A(0), x.low < A(a.width - 1)};
    const Vector<A> along_y[2] = {A(1) - y.fraction, y.fraction}, along_x[2] = {A(1) - x.fraction, x.fraction};
    I mark = inside & FlowTaps<A>::kWhole;
    for (int k = 0; k < 4; ++k) {
      const I exists = inside & exists_y[k / 2] & exists_x[k % 2];
      const Vector<A> value = exists ? along_y[k / 2] * along_x[k % 2] : Vector<A>{};
      mark = (value != A(0) ? mark : mark & (FlowTaps<A>::kWhole - 1)) | (exists & (1 << k));
      store_vector(value, taps->weight[k]);
    }
    const I place = __builtin_convertvector(y.low, I) * Integer<A>(a.width) + __builtin_convertvector(x.low, I);
    std::memcpy(taps->pixel, &place, sizeof place);
    std::memcpy(taps->flags, &mark, sizeof mark);
    taps->all_whole = !any_of(I(mark < FlowTaps<A>::kWhole) & I(lane_numbers<A>() < A(taps->count)));
    store_vector(y.fraction, taps->fraction_y);
    store_vector(x.fraction, taps->fraction_x);
    store_vector(inside ? y.slope : Vector<A>{}, taps->slope_y);
    store_vector(inside ? x.slope : Vector<A>{}, taps->slope_x);
  }
};

// The channels of one group at the corners of a block's samples: corner k of lane i starts at data + place[i] * pitch +
// step[k], with `place` from places().
template <typename E, typename A>
struct FlowSource {
  const E* data;
  const Integer<A>* list;  // the places of all vectors, or null: those of the taps
  int64_t pitch, step[4];
  Integer<A> first;  // a place that has corners

  const Integer<A>* places(const FlowTaps<A>& taps, int64_t vector) const { return list == nullptr ? taps.pixel : list + vector * kWidth<A>; }
};

// The corners of a vector of pixels, of one channel. Those that lie outside the map are any numbers.
template <typename A>
void load_corners(const FlowSource<A, A>& source, const FlowTaps<A>& taps, const Integer<A>* places, Vector<A>* corner) {
  using I = Vector<Integer<A>>;
  I place, flags;
  std::memcpy(&place, places, sizeof place);
  std::memcpy(&flags, taps.flags, sizeof flags);
  alignas(kVectorBytes) Integer<A> safe[kWidth<A>];
  place = flags != 0 ? place : I{} + source.first;
  std::memcpy(safe, &place, sizeof place);
  load_pairs(source.data, safe, corner[0], corner[1]);
  load_pairs(source.data + source.step[2], safe, corner[2], corner[3]);
}

// Makes the source of a group: channels that lie next to each other as they are; of planes a copy of the rows that the
// samples lie in or, where those are many more pixels than sample them, of the four corners of each.
template <typename A>
class FlowWindow {
 public:
  template <typename T>
  static FlowSource<T, A> direct(const FlowWarpArguments& a, const FlowBlock<A>& block, int64_t channel) {
    const int64_t pitch = a.input.column;
    return {frame_of<const T>(a.input, block.rows.b, block.rows.s, channel), nullptr, pitch, {0, pitch, a.width * pitch, (a.width + 1) * pitch}, 0};
  }

  template <typename T>
  FlowSource<A, A> copy(const FlowWarpArguments& a, const FlowBlock<A>& block, const ChannelGroup& group) {
    const int64_t lanes = group.count == 1 ? 1 : kWidth<A>;
    const int64_t pixels = (block.last_row - block.first_row) * a.width;
    if (pixels > 4 * block.vectors() * kWidth<A> + kPixels) return copy_corners<T>(a, block, group, lanes);
    // Corners outside the map are loaded, but not used: up to one row and two pixels beyond the copy.
    const int64_t margin = (a.width + 1 + kWidth<A>) / kWidth<A> * kWidth<A>;
    A* to = values_.reserve((pixels + 2 * margin) * lanes) + margin * lanes;
    const A* start = to - block.first_row * a.width * lanes;
    const T* from = frame_of<const T>(a.input, block.rows.b, block.rows.s, group.first);
    for (int64_t y = block.first_row; y < block.last_row; ++y, to += a.width * lanes)
      lanes == 1 ? copy_row(a, from + y * a.input.row, to) : copy_tiles(a, from + y * a.input.row, group.count, to);
    return {start, nullptr, lanes, {0, lanes, a.width * lanes, (a.width + 1) * lanes}, Integer<A>(block.first_row * a.width)};
  }

 private:
  static constexpr int64_t kPixels = 4096;
  AlignedArray<A> values_;
  AlignedArray<Integer<A>> place_;

  template <typename T>
  static void copy_row(const FlowWarpArguments& a, const T* from, A* to) {
    for (int64_t x = 0; x < a.width; x += kWidth<A>)
      store_vector(load_row(from + x * a.input.column, a.input.column, lanes_at<A>(x, a.width)), to + x);
  }

  template <typename T>
  static void copy_tiles(const FlowWarpArguments& a, const T* from, int64_t channels, A* to) {
    for (int64_t x = 0; x < a.width; x += kWidth<A>) {
      Vector<A> tile[kWidth<A>];
      const int64_t count = lanes_at<A>(x, a.width);
      load_tile(a.input, from + x * a.input.column, channels, count, tile);
      for (int64_t i = 0; i < count; ++i) store_vector(tile[i], to + (x + i) * kWidth<A>);
    }
  }

  template <typename T>
  FlowSource<A, A> copy_corners(const FlowWarpArguments& a, const FlowBlock<A>& block, const ChannelGroup& group, int64_t lanes) {
    const int64_t entries = block.vectors() * kWidth<A>;
    A* to = values_.reserve(4 * entries * lanes);
    Integer<A>* place = place_.reserve(entries);
    const T* from = frame_of<const T>(a.input, block.rows.b, block.rows.s, group.first);
    for (int64_t i = 0; i < entries; ++i) {
      const FlowTaps<A>& taps = block.taps()[i / kWidth<A>];
      const int64_t lane = i % kWidth<A>;
      place[i] = Integer<A>(4 * i);
      for (int k = 0; k < 4; ++k, to += lanes) {
        if ((taps.flags[lane] >> k & 1) == 0) continue;
        const int64_t pixel = taps.pixel[lane] + k / 2 * a.width + k % 2;
        const T* at = from + pixel / a.width * a.input.row + pixel % a.width * a.input.column;
        for (int64_t c = 0; c < lanes; ++c) to[c] = c < group.count ? A(load(at[c * a.input.channel])) : A(0);
      }
    }
    return {values_.data(), place, lanes, {0, lanes, 2 * lanes, 3 * lanes}, 0};
  }
};

}  // namespace pyposeext::PYPOSEEXT_LEVEL
