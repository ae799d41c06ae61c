// How the CPU kernels walk over heatmaps: in place where a map's pixels, or a pixel's channels, lie next to each other.
// Elsewhere, and where maps are averaged with mirrored ones, through a copy of a few maps at a time that stays in a cache.
#pragma once
#include <limits>
#include <vector>

#include "common/heatmap_argmax_math.h"
#include "common/parallel.h"
#include "common/vector.h"

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

template <typename A> constexpr A kNothing = -std::numeric_limits<A>::infinity();

constexpr int64_t kCopiedChannels = 16;  // copied side by side, a row of pixels at a time, where channels are near to each other

inline bool are_dense(const HeatmapMaps& a) { return a.flipped == nullptr && a.stride[3] == 1 && a.stride[2] == a.width; }

inline bool are_packed(const HeatmapMaps& a) { return a.flipped == nullptr && a.stride[1] == 1 && a.stride[3] == a.joints; }

// One row of a map, averaged with its mirrored one where there is one.
template <typename T>
inline void copy_row(const MapView<T>& map, int64_t y, Accumulate<T>* to) {
  using A = Accumulate<T>;
  constexpr int64_t width = kWidth<A>;
  if (map.stride_x != 1 || (map.mirrored != nullptr && map.mirrored_stride_x != 1) || map.width <= width) {
    for (int64_t x = 0; x < map.width; ++x) to[x] = map.at(y, x);
    return;
  }
  const T* row = map.data + y * map.stride_y;
  to[0] = map.at(y, 0);  // the one column that the shift does not move
  for (int64_t x = 1; x < map.width;) {
    Vector<A> value = load_vector(row + x);
    if (map.mirrored != nullptr) {
      const T* other = map.mirrored + y * map.mirrored_stride_y + mirrored_column(x, map.width, map.shift) - (width - 1);
      value = (value + reversed(load_vector(other))) * A(0.5);
    }
    store_vector(value, to + x);
    if (x + width == map.width) return;
    x = x + 2 * width <= map.width ? x + width : map.width - width;  // the last vector overlaps the one before
  }
}

template <typename T>
class MapCopies {
 public:
  using A = Accumulate<T>;
  explicit MapCopies(const HeatmapMaps& a) : a_(a), values_(size_t(group_size(a) * a.height * a.width)) {}

  static int64_t group_size(const HeatmapMaps& a) { return a.stride[1] < a.stride[3] ? kCopiedChannels : 1; }

  void fill(int64_t first, int64_t count) {
    MapView<T> views[kCopiedChannels];
    for (int64_t i = 0; i < count; ++i) views[i] = map_view<T>(a_, first + i);
    for (int64_t y = 0; y < a_.height; ++y)
      for (int64_t i = 0; i < count; ++i) copy_row(views[i], y, plane(i) + y * a_.width);
  }

  A* plane(int64_t i) { return values_.data() + i * a_.height * a_.width; }
  MapView<A> view(int64_t i) { return {plane(i), a_.height, a_.width, a_.width, 1, nullptr, 0, 0, 0}; }

 private:
  const HeatmapMaps& a_;
  std::vector<A> values_;
};

// body(map, view, memory) for every map, with dense rows of pixels: the map itself, or its copy. `memory` is the thread's own.
template <typename T, typename Body>
inline void for_maps(const HeatmapMaps& a, const Body& body) {
  if (are_dense(a)) {
    parallel_for(0, a.batch * a.joints, 1, [&](int64_t from, int64_t to) {
      std::vector<Accumulate<T>> memory;
      for (int64_t map = from; map < to; ++map) body(map, map_view<T>(a, map), memory);
    });
    return;
  }
  const int64_t group = MapCopies<T>::group_size(a), groups = (a.joints + group - 1) / group;
  parallel_for(0, a.batch * groups, 1, [&](int64_t from, int64_t to) {
    MapCopies<T> copies(a);
    std::vector<Accumulate<T>> memory;
    for (int64_t task = from; task < to; ++task) {
      const int64_t joint = task % groups * group, count = a.joints - joint < group ? a.joints - joint : group;
      const int64_t first = task / groups * a.joints + joint;
      copies.fill(first, count);
      for (int64_t i = 0; i < count; ++i) body(first + i, copies.view(i), memory);
    }
  });
}

// The first maximum of a dense map. Vectors of maxima are compared once a block, each lane for itself; the place is looked up
// at the end, in the first block that holds the maximum. NaN never wins.
template <typename T>
inline Peak<Accumulate<T>> find_peak(const MapView<T>& map) {
  using A = Accumulate<T>;
  constexpr int64_t width = kWidth<A>, block = 8 * width;
  const int64_t count = map.height * map.width, last = count - block;
  A top = kNothing<A>;
  int64_t place = 0;
  if (last < 0) {
    for (int64_t i = 0; i < count; ++i)
      if (A(load(map.data[i])) > top) top = load(map.data[i]);
  } else {
    Vector<A> best = broadcast(kNothing<A>);
    decltype(best > best) number{}, current{};
    // The last block ends at the map's end and overlaps the one before: what it meets again is not larger.
    for (int64_t begin = 0; begin <= last; begin = begin + block <= last || begin == last ? begin + block : last) {
      const T* from = map.data + begin;
      Vector<A> lanes[4] = {best, best, best, best};
      for (int64_t i = 0; i < 8; ++i) lanes[i % 4] = larger(load_vector(from + i * width), lanes[i % 4]);
      const Vector<A> most = larger(larger(lanes[0], lanes[1]), larger(lanes[2], lanes[3]));
      number = most > best ? current : number;
      best = most;
      current += 1;
    }
    top = maximum_of(best);
    const decltype(number) holders = best == broadcast(top) ? number : current;
    int64_t first = holders[0];
    for (int64_t i = 1; i < width; ++i) first = holders[i] < first ? holders[i] : first;
    place = first * block < last ? first * block : last;
    while (top > kNothing<A> && !any_of(load_vector(map.data + place) == broadcast(top))) place += width;
  }
  if (!(top > kNothing<A>)) return {kNothing<A>, -1};
  while (A(load(map.data[place])) != top) ++place;
  return {top, place};
}

// Pixels whose K channels lie next to each other: K vectors hold as many pixels as a vector has lanes, and a lane of these
// stands for the same channel in every such group of pixels. Numbers kept for each lane are K * kWidth in a row.
template <typename T>
struct PackedRow {
  using A = Accumulate<T>;
  const T* data;
  int64_t joints, width;

  // body(v, values, group, first pixel of the group) for vector v of each group; lanes beyond the row hold `filler`.
  template <typename Body>
  void for_vectors(int64_t v, A filler, const Body& body) const {
    constexpr int64_t lanes = kWidth<A>;
    const T* from = data + v * lanes;
    int64_t pixel = 0;
    for (; pixel + lanes <= width; pixel += lanes, from += joints * lanes) body(load_vector(from), pixel);
    const int64_t rest = (width - pixel) * joints - v * lanes;
    if (rest >= lanes)
      body(load_vector(from), pixel);
    else if (rest > 0)
      body(lane_numbers<A>() < A(rest) ? load_vector(from, rest) : broadcast(filler), pixel);
  }
};

template <typename T>
inline PackedRow<T> packed_row(const HeatmapMaps& a, int64_t image, int64_t y) {
  return {static_cast<const T*>(a.heatmaps) + image * a.stride[0] + y * a.stride[2], a.joints, a.width};
}

// The first maxima of all maps of one image of packed pixels. `scratch` keeps its memory between calls.
template <typename T>
inline void find_packed_peaks(const HeatmapMaps& a, int64_t image, std::vector<Accumulate<T>>* scratch, Peak<Accumulate<T>>* peaks) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = kWidth<A>;
  const int64_t size = a.joints * lanes;
  scratch->assign(size_t(3 * size), kNothing<A>);
  A *best = scratch->data(), *row = best + size, *most = row + size;  // `most` is of one row: pixels are read in order, once
  for (int64_t y = 0; y < a.height; ++y) {
    const T* pixels = packed_row<T>(a, image, y).data;
    for (int64_t i = 0; i < size; i += lanes) store_vector(load_vector(best + i), most + i);
    for (int64_t left = a.width * a.joints; left > 0; left -= size, pixels += size) {
      int64_t i = 0;
      for (; i < size && i + lanes <= left; i += lanes) store_vector(larger(load_vector(pixels + i), load_vector(most + i)), most + i);
      for (; i < size && i < left; ++i) most[i] = A(load(pixels[i])) > most[i] ? A(load(pixels[i])) : most[i];
    }
    for (int64_t i = 0; i < size; i += lanes) {
      store_vector(load_vector(most + i) > load_vector(best + i) ? broadcast(A(y)) : load_vector(row + i), row + i);
      store_vector(load_vector(most + i), best + i);
    }
  }
  for (int64_t k = 0; k < a.joints; ++k) {
    Peak<A> peak{kNothing<A>, -1};
    A first = A(0);
    for (int64_t i = k; i < size; i += a.joints)
      if (best[i] > peak.value || (best[i] == peak.value && row[i] < first)) peak.value = best[i], first = row[i];
    if (peak.value > kNothing<A>) {
      const T* pixel = packed_row<T>(a, image, int64_t(first)).data + k;
      for (peak.index = int64_t(first) * a.width; A(load(*pixel)) != peak.value; pixel += a.joints) ++peak.index;
    }
    peaks[k] = peak;
  }
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
