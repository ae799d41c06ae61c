// The gradients of the input and of the flow, of flow_warp and of flow_warp_pool: in the pooled sum all frames of an image
// share the output's gradient, and each scales it by its weight.
#include "ops/flow_warp.h"

#include <vector>

#include "common/parallel.h"
#include "cpu/flow_warp_tiles.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kBlockPixels = 1024;  // whose positions are computed at once
constexpr int64_t kBandPixels = 1 << 16;  // of the input whose gradient a task holds, at the most
constexpr int64_t kSliceGroups = 2;     // groups of channels whose gradient a task holds

int64_t rows_of(const FlowWarpArguments& a, int64_t pixels) { return a.width < pixels ? pixels / a.width : 1; }

// Rows [first, last) of an array of `size` rows.
struct Span {
  int64_t first, last;
};

Span span_of(int64_t index, int64_t rows, int64_t size) {
  const int64_t first = index * rows;
  return {first, first + rows < size ? first + rows : size};
}

// 1, or the weights of a group's channels in one frame.
template <typename A>
Vector<A> scale_of(const FlowWarpArguments& a, const ChannelGroups& groups, const ChannelGroup& group, int64_t s) {
  if (a.weight == nullptr) return broadcast(A(1));
  const A* weight = static_cast<const A*>(a.weight) + s * a.channels + group.first;
  return groups.is_single(group) ? broadcast(*weight) : load_row(weight, 1, group.count);
}

// Adds output pixels to the gradient of some rows of the input. In a tile neighbouring pixels, which share corners, are
// taken a few apart, because adding to what was stored just before has to wait for it.
template <typename A>
struct Band {
  Span rows;
  int64_t width;
  static constexpr int64_t kStride = kWidth<A> < 4 ? 1 : kWidth<A> / 4;

  // Whether corner k of lane i lies in these rows.
  bool holds(const FlowTaps<A>& taps, int64_t i, int k) const {
    const int64_t pixel = taps.pixel[i] + k / 2 * width + k % 2;
    return taps.weight[k][i] != A(0) && pixel >= rows.first * width && pixel < rows.last * width;
  }

  // sums: [rows, W], of one channel each, or of kWidth.
  template <typename V>
  void add(const FlowTaps<A>& taps, bool whole, const V* gradient, V* sums) const {
    const int64_t step[4] = {0, 1, width, width + 1};
    sums -= rows.first * width;
    for (int64_t start = 0; start < kStride; ++start) {
      for (int64_t i = start; i < taps.count; i += kStride) {
        V* corner = sums + taps.pixel[i];
        for (int k = 0; k < 4; ++k)
          if (whole || holds(taps, i, k)) corner[step[k]] = multiply_add(V{} + taps.weight[k][i], gradient[i], corner[step[k]]);
      }
    }
  }
};

// The gradient of some rows and groups of channels of one frame of the input. Every output pixel is added to its corners
// in a fixed order, so that the sums do not depend on how the input is split.
template <typename T>
class InputGradient {
 public:
  using A = Accumulate<T>;

  void run(const FlowWarpArguments& a, const ChannelGroups& groups, int64_t b, int64_t s, Span rows, Span slice, const Span* reach) {
    const Band<A> band{rows, a.width};
    const int64_t pixels = (rows.last - rows.first) * a.width, block_rows = rows_of(a, kBlockPixels);
    size_ = pixels + kWidth<A>;
    Vector<A>* sums = sums_.reserve((slice.last - slice.first) * size_);
    for (int64_t index = slice.first; index < slice.last; ++index) {
      Vector<A>* of_group = sums + (index - slice.first) * size_;
      const int64_t vectors = groups.is_single(groups.at(index)) ? size_ / kWidth<A> + 1 : size_;
      for (int64_t i = 0; i < vectors; ++i) of_group[i] = Vector<A>{};
    }
    for (int64_t first = 0; first < a.height; first += block_rows, reach += reach != nullptr) {
      if (reach != nullptr && (reach->last <= rows.first || reach->first >= rows.last)) continue;
      const FlowRows block{b, s, first, first + block_rows < a.height ? first + block_rows : a.height};
      block_.fill(a, block);
      for (int64_t index = slice.first; index < slice.last; ++index)
        add_block(a, band, groups.at(index), groups.is_single(groups.at(index)), sums + (index - slice.first) * size_);
    }
    for (int64_t index = slice.first; index < slice.last; ++index)
      store_group(a, groups, b, s, rows, groups.at(index), sums + (index - slice.first) * size_);
  }

 private:
  FlowBlock<A> block_;
  AlignedArray<Vector<A>> sums_;
  int64_t size_ = 0;

  void add_block(const FlowWarpArguments& a, const Band<A>& band, const ChannelGroup& group, bool single, Vector<A>* sums) {
    const FlowRows rows = block_.rows;
    const bool inner = block_.first_row >= band.rows.first && block_.last_row <= band.rows.last;
    const T* gradient = frame_of<const T>(a.gradient, rows.b, rows.s, group.first);
    const FlowTaps<A>* taps = block_.taps();
    for (int64_t y = rows.first; y < rows.last; ++y) {
      for (int64_t x = 0; x < a.width; x += kWidth<A>, ++taps) {
        const T* from = gradient + y * a.gradient.row + x * a.gradient.column;
        Vector<A> tile[kWidth<A>];
        if (single) {
          tile[0] = load_row(from, a.gradient.column, taps->count);
          add_tile(band, *taps, inner, reinterpret_cast<const A*>(tile), reinterpret_cast<A*>(sums));
        } else {
          load_tile(a.gradient, from, group.count, taps->count, tile);
          add_tile(band, *taps, inner, tile, sums);
        }
      }
    }
  }

  template <typename V>
  static void add_tile(const Band<A>& band, const FlowTaps<A>& taps, bool inner, const V* gradient, V* sums) {
    if (inner && taps.all_whole)
      band.add(taps, true, gradient, sums);
    else
      band.add(taps, false, gradient, sums);
  }

  static void store_group(const FlowWarpArguments& a, const ChannelGroups& groups, int64_t b, int64_t s, Span rows, const ChannelGroup& group,
                          Vector<A>* sums) {
    const Vector<A> scale = scale_of<A>(a, groups, group, s);
    T* out = frame_of<T>(a.out, b, s, group.first);
    for (int64_t y = rows.first; y < rows.last; ++y) {
      for (int64_t x = 0; x < a.width; x += kWidth<A>) {
        const int64_t pixel = (y - rows.first) * a.width + x, count = lanes_at<A>(x, a.width);
        T* to = out + y * a.out.row + x * a.out.column;
        if (groups.is_single(group)) {
          store_row(scale * load_vector(reinterpret_cast<const A*>(sums) + pixel), to, a.out.column, count);
        } else {
          Vector<A> tile[kWidth<A>];
          for (int64_t i = 0; i < kWidth<A>; ++i) tile[i] = scale * sums[pixel + i];
          store_tile(a.out, to, group.count, count, tile);
        }
      }
    }
  }
};

// Which rows of the input the output pixels of each block of rows sample: [B, S, blocks].
template <typename A>
std::vector<Span> reach_of_blocks(const FlowWarpArguments& a) {
  const int64_t rows = rows_of(a, kBlockPixels), blocks = (a.height + rows - 1) / rows;
  std::vector<Span> reach(size_t(a.batch * a.steps * blocks));
  parallel_for(0, int64_t(reach.size()), 1, [&](int64_t from, int64_t to) {
    FlowBlock<A> samples;
    for (int64_t i = from; i < to; ++i) {
      const Span block = span_of(i % blocks, rows, a.height);
      samples.fill(a, {i / blocks / a.steps, i / blocks % a.steps, block.first, block.last});
      reach[size_t(i)] = {samples.first_row, samples.last_row};
    }
  });
  return reach;
}

template <typename T>
void backward_input(const FlowWarpArguments& a) {
  const ChannelGroups groups{a.channels, kWidth<Accumulate<T>>, false};
  const int64_t slices = (groups.count() + kSliceGroups - 1) / kSliceGroups, frames = a.batch * a.steps * slices;
  const int64_t wanted = (3 * thread_count() + frames - 1) / frames, smallest = rows_of(a, kBlockPixels);
  int64_t rows = rows_of(a, kBandPixels);
  if (rows > (a.height + wanted - 1) / wanted) rows = (a.height + wanted - 1) / wanted;
  if (rows < smallest) rows = smallest;
  const int64_t bands = (a.height + rows - 1) / rows, blocks = (a.height + smallest - 1) / smallest;
  const std::vector<Span> reach = bands > 1 ? reach_of_blocks<Accumulate<T>>(a) : std::vector<Span>();
  parallel_for(0, frames * bands, 1, [&](int64_t from, int64_t to) {
    InputGradient<T> gradient;
    for (int64_t i = from; i < to; ++i) {
      const int64_t frame = i / bands / slices;
      const Span slice = span_of(i / bands % slices, kSliceGroups, groups.count());
      gradient.run(a, groups, frame / a.steps, frame % a.steps, span_of(i % bands, rows, a.height), slice,
                   bands > 1 ? reach.data() + frame * blocks : nullptr);
    }
  });
}

// What the channels of a tile add to dx and dy where all corners are read.
template <typename E, typename A>
void flow_products(const FlowSource<E, A>& source, const FlowTaps<A>& taps, const Integer<A>* place, int64_t lanes, const Vector<A>* gradient,
                   Vector<A>* dx, Vector<A>* dy) {
  for (int64_t i = 0; i < taps.count; ++i) {
    const E* corner = source.data + place[i] * source.pitch;
    Vector<A> value[4];
    for (int k = 0; k < 4; ++k) value[k] = load_row(corner + source.step[k], 1, lanes);
    const Vector<A> y = broadcast(taps.fraction_y[i]), x = broadcast(taps.fraction_x[i]), top = value[1] - value[0], left = value[2] - value[0];
    dx[i] = gradient[i] * multiply_add(y, value[3] - value[2], multiply_add(-y, top, top));
    dy[i] = gradient[i] * multiply_add(x, value[3] - value[1], multiply_add(-x, left, left));
  }
}

// The same where they are not.
template <typename E, typename A>
void flow_products_at_edges(const FlowSource<E, A>& source, const FlowTaps<A>& taps, const Integer<A>* place, int64_t lanes,
                            const Vector<A>* gradient, Vector<A>* dx, Vector<A>* dy) {
  for (int64_t i = 0; i < taps.count; ++i) {
    dx[i] = dy[i] = Vector<A>{};
    for (int k = 0; k < 4; ++k) {
      if ((taps.flags[i] >> k & 1) == 0) continue;
      const FlowSlopes<A> slopes = flow_slopes(taps.fraction_y[i], taps.fraction_x[i], k);
      const Vector<A> product = gradient[i] * load_row(source.data + place[i] * source.pitch + source.step[k], 1, lanes);
      if (slopes.along_x != A(0)) dx[i] = multiply_add(broadcast(slopes.along_x), product, dx[i]);
      if (slopes.along_y != A(0)) dy[i] = multiply_add(broadcast(slopes.along_y), product, dy[i]);
    }
  }
}

// The same of one channel of a vector of pixels.
template <typename A>
void flow_products_of_pixels(const FlowSource<A, A>& source, const FlowTaps<A>& taps, const Integer<A>* places, Vector<A> gradient, Vector<A>* dx,
                             Vector<A>* dy) {
  using I = Vector<Integer<A>>;
  I flags;
  std::memcpy(&flags, taps.flags, sizeof flags);
  Vector<A> corner[4];
  load_corners(source, taps, places, corner);
  const Vector<A> y = load_vector(taps.fraction_y), x = load_vector(taps.fraction_x);
  const Vector<A> along_x[2] = {A(1) - y, y}, along_y[2] = {A(1) - x, x};
  for (int k = 0; k < 4; ++k) {
    const Vector<A> product = gradient * ((flags & (1 << k)) != 0 ? corner[k] : Vector<A>{});
    const Vector<A> of_x = along_x[k / 2] * product, of_y = along_y[k % 2] * product;
    *dx += along_x[k / 2] != A(0) ? (k % 2 ? of_x : -of_x) : Vector<A>{};
    *dy += along_y[k % 2] != A(0) ? (k / 2 ? of_y : -of_y) : Vector<A>{};
  }
}

// The gradient of the flow of some rows of one frame.
template <typename T>
class FlowGradient {
 public:
  using A = Accumulate<T>;

  void run(const FlowWarpArguments& a, const ChannelGroups& groups, const FlowRows& rows) {
    block_.fill(a, rows);
    dx_ = sums_.reserve(2 * block_.vectors());
    dy_ = dx_ + block_.vectors();
    for (int64_t i = 0; i < 2 * block_.vectors(); ++i) dx_[i] = Vector<A>{};
    const bool direct = reads_directly(a);
    for (int64_t index = 0; index < groups.count(); ++index) {
      const ChannelGroup group = groups.at(index);
      const Vector<A> scale = scale_of<A>(a, groups, group, rows.s);
      if (groups.is_single(group))
        add_pixels(a, group, window_.template copy<T>(a, block_, group), scale);
      else if (direct)
        add_tiles(a, group, window_.template direct<T>(a, block_, group.first), group.count, scale);
      else
        add_tiles(a, group, window_.template copy<T>(a, block_, group), kWidth<A>, scale);
    }
    store_sums(a);
  }

 private:
  FlowBlock<A> block_;
  FlowWindow<A> window_;
  AlignedArray<Vector<A>> sums_;
  Vector<A>*dx_ = nullptr, *dy_ = nullptr;

  template <typename E>
  void add_tiles(const FlowWarpArguments& a, const ChannelGroup& group, const FlowSource<E, A>& source, int64_t lanes, Vector<A> scale) {
    const T* gradient = frame_of<const T>(a.gradient, block_.rows.b, block_.rows.s, group.first);
    for (int64_t y = block_.rows.first, vector = 0; y < block_.rows.last; ++y) {
      for (int64_t x = 0; x < a.width; x += kWidth<A>, ++vector) {
        const FlowTaps<A>& taps = block_.taps()[vector];
        const Integer<A>* place = source.places(taps, vector);
        Vector<A> tile[kWidth<A>], dx[kWidth<A>], dy[kWidth<A>];
        load_tile(a.gradient, gradient + y * a.gradient.row + x * a.gradient.column, group.count, taps.count, tile);
        for (int64_t i = 0; i < taps.count; ++i) tile[i] *= scale;
        if (!taps.all_whole)
          flow_products_at_edges(source, taps, place, lanes, tile, dx, dy);
        else if (lanes == kWidth<A>)
          flow_products(source, taps, place, kWidth<A>, tile, dx, dy);
        else
          flow_products(source, taps, place, lanes, tile, dx, dy);
        dx_[vector] += sums_of_rows(dx);
        dy_[vector] += sums_of_rows(dy);
      }
    }
  }

  void add_pixels(const FlowWarpArguments& a, const ChannelGroup& group, const FlowSource<A, A>& source, Vector<A> scale) {
    const T* gradient = frame_of<const T>(a.gradient, block_.rows.b, block_.rows.s, group.first);
    for (int64_t y = block_.rows.first, vector = 0; y < block_.rows.last; ++y) {
      for (int64_t x = 0; x < a.width; x += kWidth<A>, ++vector) {
        const FlowTaps<A>& taps = block_.taps()[vector];
        const Vector<A> value = load_row(gradient + y * a.gradient.row + x * a.gradient.column, a.gradient.column, taps.count);
        flow_products_of_pixels(source, taps, source.places(taps, vector), scale * value, dx_ + vector, dy_ + vector);
      }
    }
  }

  void store_sums(const FlowWarpArguments& a) {
    A* out = frame_of<A>(a.out, block_.rows.b, block_.rows.s, 0);
    for (int64_t y = block_.rows.first, vector = 0; y < block_.rows.last; ++y) {
      for (int64_t x = 0; x < a.width; x += kWidth<A>, ++vector) {
        const FlowTaps<A>& taps = block_.taps()[vector];
        A* to = out + y * a.out.row + x * a.out.column;
        store_row(load_vector(taps.slope_x) != A(0) ? dx_[vector] : Vector<A>{}, to, a.out.column, taps.count);
        store_row(load_vector(taps.slope_y) != A(0) ? dy_[vector] : Vector<A>{}, to + a.out.channel, a.out.column, taps.count);
      }
    }
  }
};

template <typename T>
void backward_flow(const FlowWarpArguments& a) {
  const ChannelGroups groups{a.channels, kWidth<Accumulate<T>>, false};
  const int64_t rows = rows_of(a, kBlockPixels), blocks = (a.height + rows - 1) / rows;
  parallel_for(0, a.batch * a.steps * blocks, 1, [&](int64_t from, int64_t to) {
    FlowGradient<T> gradient;
    for (int64_t i = from; i < to; ++i) {
      const Span block = span_of(i % blocks, rows, a.height);
      gradient.run(a, groups, {i / blocks / a.steps, i / blocks % a.steps, block.first, block.last});
    }
  });
}

}  // namespace

void flow_warp_backward_input(const FlowWarpArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { backward_input<decltype(zero)>(arguments); });
}

void flow_warp_backward_flow(const FlowWarpArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { backward_flow<decltype(zero)>(arguments); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
