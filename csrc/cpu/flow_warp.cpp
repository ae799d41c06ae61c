// The forward of flow_warp and flow_warp_pool, and the gradient of the pooled sum's weight, which reads the same warped
// values.
#include "ops/flow_warp.h"

#include <vector>

#include "common/parallel.h"
#include "cpu/flow_warp_tiles.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kFramePixels = 4096;  // of a task where there are many: the window of a group then fits the second cache
constexpr int64_t kBlockPixels = 1024;  // of a task where there are few
constexpr int64_t kSliceGroups = 4;     // groups of channels in a task

// One task works on some rows and some groups of channels of an image.
struct FlowTask {
  int64_t index, b, first, last, first_group, last_group;
};

int64_t rows_of_block(const FlowWarpArguments& a, int64_t pixels) { return a.width < pixels ? pixels / a.width : 1; }

int64_t task_count(const FlowWarpArguments& a, const ChannelGroups& groups, int64_t block_pixels) {
  const int64_t rows = rows_of_block(a, block_pixels);
  return a.batch * ((groups.count() + kSliceGroups - 1) / kSliceGroups) * ((a.height + rows - 1) / rows);
}

// body(scratch, task) for all tasks, in blocks of about `block_pixels`. A thread has one Scratch.
template <typename Scratch, typename Body>
void for_tasks(const FlowWarpArguments& a, const ChannelGroups& groups, int64_t block_pixels, const Body& body) {
  const int64_t slices = (groups.count() + kSliceGroups - 1) / kSliceGroups;
  const int64_t rows = rows_of_block(a, block_pixels), blocks = (a.height + rows - 1) / rows;
  parallel_for(0, a.batch * slices * blocks, 1, [&](int64_t from, int64_t to) {
    Scratch scratch;
    for (int64_t i = from; i < to; ++i) {
      const int64_t first = i % blocks * rows, first_group = i / blocks % slices * kSliceGroups;
      const int64_t last = first + rows < a.height ? first + rows : a.height;
      const int64_t last_group = first_group + kSliceGroups < groups.count() ? first_group + kSliceGroups : groups.count();
      body(scratch, FlowTask{i, i / (blocks * slices), first, last, first_group, last_group});
    }
  });
}

// A tile of `lanes` channels.
template <typename E, typename A>
void warp_tile(const FlowSource<E, A>& source, const FlowTaps<A>& taps, const Integer<A>* place, int64_t lanes, Vector<A>* tile) {
  for (int64_t i = 0; i < taps.count; ++i) {
    const E* corner = source.data + place[i] * source.pitch;
    Vector<A> sum = {};
    for (int k = 0; k < 4; ++k) sum = multiply_add(broadcast(taps.weight[k][i]), load_row(corner + source.step[k], 1, lanes), sum);
    tile[i] = sum;
  }
}

// The same where not all corners are read.
template <typename E, typename A>
void warp_tile_at_edges(const FlowSource<E, A>& source, const FlowTaps<A>& taps, const Integer<A>* place, int64_t lanes, Vector<A>* tile) {
  for (int64_t i = 0; i < taps.count; ++i) {
    tile[i] = Vector<A>{};
    for (int k = 0; k < 4; ++k) {
      const A weight = taps.weight[k][i];
      if (weight == A(0)) continue;
      tile[i] = multiply_add(broadcast(weight), load_row(source.data + place[i] * source.pitch + source.step[k], 1, lanes), tile[i]);
    }
  }
}

// One channel of a vector of pixels.
template <typename A>
Vector<A> warp_pixels(const FlowSource<A, A>& source, const FlowTaps<A>& taps, const Integer<A>* places) {
  Vector<A> corner[4], sum = {};
  load_corners(source, taps, places, corner);
  for (int k = 0; k < 4; ++k) {
    const Vector<A> weight = load_vector(taps.weight[k]);
    sum = multiply_add(weight, weight != A(0) ? corner[k] : Vector<A>{}, sum);
  }
  return sum;
}

// Warps one frame of a task and gives the values to `receive` in pieces: tiles of a group of channels, or vectors of pixels
// of a single channel.
template <typename T>
class Warper {
 public:
  template <typename Receiver>
  void run(const FlowWarpArguments& a, const ChannelGroups& groups, const FlowTask& task, int64_t s, Receiver& receive) {
    block_.fill(a, {task.b, s, task.first, task.last});
    const bool direct = reads_directly(a);
    for (int64_t index = task.first_group; index < task.last_group; ++index) {
      const ChannelGroup group = groups.at(index);
      receive.begin(index, group, s);
      if (groups.is_single(group))
        pixels(a, window_.template copy<T>(a, block_, group), receive);
      else if (!direct)
        tiles(a, window_.template copy<T>(a, block_, group), kWidth<A>, receive);
      else
        tiles(a, window_.template direct<T>(a, block_, group.first), group.count, receive);
      receive.end(s);
    }
  }

 private:
  using A = Accumulate<T>;
  FlowBlock<A> block_;
  FlowWindow<A> window_;

  template <typename E, typename Receiver>
  void tiles(const FlowWarpArguments& a, const FlowSource<E, A>& source, int64_t lanes, Receiver& receive) {
    for (int64_t y = block_.rows.first, vector = 0; y < block_.rows.last; ++y) {
      for (int64_t x = 0; x < a.width; x += kWidth<A>, ++vector) {
        const FlowTaps<A>& taps = block_.taps()[vector];
        const Integer<A>* place = source.places(taps, vector);
        Vector<A> tile[kWidth<A>];
        if (!taps.all_whole)
          warp_tile_at_edges(source, taps, place, lanes, tile);
        else if (lanes == kWidth<A>)
          warp_tile(source, taps, place, kWidth<A>, tile);
        else
          warp_tile(source, taps, place, lanes, tile);
        receive.tile(y, x, vector, taps.count, tile);
      }
    }
  }

  template <typename Receiver>
  void pixels(const FlowWarpArguments& a, const FlowSource<A, A>& source, Receiver& receive) {
    for (int64_t y = block_.rows.first, vector = 0; y < block_.rows.last; ++y) {
      for (int64_t x = 0; x < a.width; x += kWidth<A>, ++vector) {
        const FlowTaps<A>& taps = block_.taps()[vector];
        receive.pixels(y, x, vector, taps.count, warp_pixels(source, taps, source.places(taps, vector)));
      }
    }
  }
};

// Stores what it is given.
template <typename T>
struct WarpReceiver {
  using A = Accumulate<T>;
  const FlowWarpArguments& a;
  int64_t b;
  ChannelGroup group{};
  T* out = nullptr;

  void end(int64_t) {}
  void begin(int64_t, const ChannelGroup& next, int64_t s) {
    group = next;
    out = frame_of<T>(a.out, b, s, group.first);
  }
  void tile(int64_t y, int64_t x, int64_t, int64_t count, Vector<A>* values) {
    store_tile(a.out, out + y * a.out.row + x * a.out.column, group.count, count, values);
  }
  void pixels(int64_t y, int64_t x, int64_t, int64_t count, Vector<A> values) {
    store_row(values, out + y * a.out.row + x * a.out.column, a.out.column, count);
  }
};

template <typename T>
void forward(const FlowWarpArguments& a) {
  const ChannelGroups groups{a.channels, kWidth<Accumulate<T>>, reads_directly(a)};
  const int64_t pixels = task_count(a, groups, kFramePixels) >= 4 * thread_count() ? kFramePixels : kBlockPixels;
  for_tasks<Warper<T>>(a, groups, pixels, [&](Warper<T>& warper, const FlowTask& task) {
    WarpReceiver<T> receive{a, task.b};
    warper.run(a, groups, task, 0, receive);
  });
}

// Adds up the frames. Of a group there is a vector of channels per pixel or, of a single channel, one per kWidth pixels.
template <typename T>
struct PoolReceiver {
  using A = Accumulate<T>;
  const FlowWarpArguments& a;
  const ChannelGroups& groups;
  FlowTask task;
  Vector<A>* sums;  // [groups of the task, entries]
  int64_t entries;
  ChannelGroup group{};
  Vector<A>* sum = nullptr;
  Vector<A> weight{};

  const A* weights(int64_t s) const { return static_cast<const A*>(a.weight) + s * a.channels; }

  void clear() {
    const A* bias = static_cast<const A*>(a.bias);
    for (int64_t index = task.first_group; index < task.last_group; ++index) {
      const ChannelGroup g = groups.at(index);
      const Vector<A> value = bias == nullptr ? Vector<A>{} : groups.is_single(g) ? broadcast(bias[g.first]) : load_row(bias + g.first, 1, g.count);
      for (int64_t i = 0; i < entries; ++i) sums[(index - task.first_group) * entries + i] = value;
    }
  }
  void begin(int64_t index, const ChannelGroup& next, int64_t s) {
    group = next;
    sum = sums + (index - task.first_group) * entries;
    weight = groups.is_single(group) ? broadcast(weights(s)[group.first]) : load_row(weights(s) + group.first, 1, group.count);
  }
  void end(int64_t) {}
  void tile(int64_t, int64_t, int64_t vector, int64_t count, const Vector<A>* values) {
    Vector<A>* to = sum + vector * kWidth<A>;
    for (int64_t i = 0; i < count; ++i) to[i] = multiply_add(weight, values[i], to[i]);
  }
  void pixels(int64_t, int64_t, int64_t vector, int64_t, Vector<A> values) { sum[vector] = multiply_add(weight, values, sum[vector]); }
  void finish() {
    WarpReceiver<T> store{a, task.b};
    for (int64_t index = task.first_group; index < task.last_group; ++index) {
      store.begin(index, groups.at(index), 0);
      Vector<A>* values = sums + (index - task.first_group) * entries;
      for (int64_t y = task.first, vector = 0; y < task.last; ++y) {
        for (int64_t x = 0; x < a.width; x += kWidth<A>, ++vector) {
          const int64_t count = lanes_at<A>(x, a.width);
          groups.is_single(store.group) ? store.pixels(y, x, vector, count, values[vector])
                                        : store.tile(y, x, vector, count, values + vector * kWidth<A>);
        }
      }
    }
  }
};

// Vectors of a group of channels in a task: one per pixel, rows filled up to whole vectors of pixels.
template <typename A>
int64_t entries_of(const FlowWarpArguments& a, const FlowTask& task) {
  return (task.last - task.first) * ((a.width + kWidth<A> - 1) / kWidth<A>) * kWidth<A>;
}

template <typename T>
struct PoolScratch {
  Warper<T> warper;
  AlignedArray<Vector<Accumulate<T>>> vectors;
};

template <typename T>
void pool_forward(const FlowWarpArguments& a) {
  const ChannelGroups groups{a.channels, kWidth<Accumulate<T>>, reads_directly(a)};
  for_tasks<PoolScratch<T>>(a, groups, kBlockPixels, [&](PoolScratch<T>& scratch, const FlowTask& task) {
    const int64_t entries = entries_of<Accumulate<T>>(a, task);
    PoolReceiver<T> receive{a, groups, task, scratch.vectors.reserve((task.last_group - task.first_group) * entries), entries};
    receive.clear();
    for (int64_t s = 0; s < a.steps; ++s) scratch.warper.run(a, groups, task, s, receive);
    receive.finish();
  });
}

// Sums the warped values times the gradient of the pooled output.
template <typename T>
struct WeightReceiver {
  using A = Accumulate<T>;
  const FlowWarpArguments& a;
  const ChannelGroups& groups;
  FlowTask task;
  Vector<A>* gradients;  // [groups of the task, entries], as the sums of PoolReceiver
  int64_t entries;
  A* partial;  // [S, C], of this task
  ChannelGroup group{};
  const Vector<A>* gradient = nullptr;
  int64_t shared = 0;  // channels that the group before, which may be another task's, has summed
  Vector<A> total{};

  void load_gradients() {
    for (int64_t index = task.first_group; index < task.last_group; ++index) {
      const ChannelGroup g = groups.at(index);
      const T* from = frame_of<const T>(a.gradient, task.b, 0, g.first);
      Vector<A>* to = gradients + (index - task.first_group) * entries;
      for (int64_t y = task.first, vector = 0; y < task.last; ++y) {
        for (int64_t x = 0; x < a.width; x += kWidth<A>, ++vector) {
          const T* at = from + y * a.gradient.row + x * a.gradient.column;
          const int64_t count = lanes_at<A>(x, a.width);
          if (groups.is_single(g))
            to[vector] = load_row(at, a.gradient.column, count);
          else
            load_tile(a.gradient, at, g.count, count, to + vector * kWidth<A>);
        }
      }
    }
  }
  void begin(int64_t index, const ChannelGroup& next, int64_t) {
    group = next;
    gradient = gradients + (index - task.first_group) * entries;
    shared = groups.is_single(group) ? 0 : index * kWidth<A> - group.first;
    total = Vector<A>{};
  }
  void tile(int64_t, int64_t, int64_t vector, int64_t count, const Vector<A>* values) {
    const Vector<A>* factor = gradient + vector * kWidth<A>;
    Vector<A> even = {}, odd = {};  // two sums, which do not wait for each other
    for (int64_t i = 0; i < count; ++i) {
      Vector<A>& sum = i % 2 ? odd : even;
      sum = multiply_add(factor[i], values[i], sum);
    }
    total += even + odd;
  }
  void pixels(int64_t, int64_t, int64_t vector, int64_t, Vector<A> values) { total = multiply_add(gradient[vector], values, total); }
  void end(int64_t s) {
    if (groups.is_single(group))
      partial[s * a.channels + group.first] = sum_of(total);
    else
      for (int64_t i = shared; i < group.count; ++i) partial[s * a.channels + group.first + i] = total[i];
  }
};

template <typename T>
void backward_weight(const FlowWarpArguments& a) {
  using A = Accumulate<T>;
  const ChannelGroups groups{a.channels, kWidth<A>, reads_directly(a)};
  const int64_t numbers = a.steps * a.channels;
  std::vector<A> partial(size_t(task_count(a, groups, kBlockPixels) * numbers), A(0));
  for_tasks<PoolScratch<T>>(a, groups, kBlockPixels, [&](PoolScratch<T>& scratch, const FlowTask& task) {
    const int64_t entries = entries_of<A>(a, task);
    Vector<A>* gradients = scratch.vectors.reserve((task.last_group - task.first_group) * entries);
    WeightReceiver<T> receive{a, groups, task, gradients, entries, partial.data() + task.index * numbers};
    receive.load_gradients();
    for (int64_t s = 0; s < a.steps; ++s) scratch.warper.run(a, groups, task, s, receive);
  });
  A* total = static_cast<A*>(a.weight_gradient);
  for (int64_t i = 0; i < numbers; ++i) total[i] = A(0);
  for (size_t i = 0; i < partial.size(); ++i) total[int64_t(i) % numbers] += partial[i];
}

}  // namespace

void flow_warp_forward(const FlowWarpArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { forward<decltype(zero)>(arguments); });
}

void flow_warp_pool_forward(const FlowWarpArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { pool_forward<decltype(zero)>(arguments); });
}

void flow_warp_pool_backward_weight(const FlowWarpArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { backward_weight<decltype(zero)>(arguments); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
