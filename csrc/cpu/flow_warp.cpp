#include "ops/flow_warp.h"

#include <vector>

#include "common/lanes.h"
#include "common/parallel.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kBlockPixels = 1024;  // of a task: few enough that their part of a plane stays in the first cache
constexpr int64_t kLanes = 8;            // channels summed in one register

template <typename T>
T* row_of(const StridedMaps& maps, int64_t b, int64_t y) {
  return static_cast<T*>(maps.data) + b * maps.stride[0] + y * maps.stride[2];
}

struct Rows {
  int64_t b, first, last;  // rows [first, last) of image b
};

// body(rows) for all rows of all images, in blocks of about kBlockPixels.
template <typename Body>
void for_blocks(const FlowWarpArguments& a, const Body& body) {
  const int64_t rows = a.width < kBlockPixels ? kBlockPixels / a.width : 1, blocks = (a.height + rows - 1) / rows;
  parallel_for(0, a.batch * blocks, 1, [&](int64_t from, int64_t to) {
    auto local = body;
    for (int64_t task = from; task < to; ++task) {
      const int64_t first = task % blocks * rows;
      local(Rows{task / blocks, first, first + rows < a.height ? first + rows : a.height});
    }
  });
}

// What the pixels of some rows are made of: pixel p is the sum of weight[i] * maps[offset[i]] for i in [end[p - 1], end[p]).
// The forward takes corners from the input, the backward takes output pixels from the gradient. Taps of weight 0 are left
// out, so that neither NaN nor infinity spreads from them.
template <typename A>
struct Taps {
  std::vector<int64_t> end, offset;
  std::vector<A> weight;

  void reserve(int64_t pixels, int64_t taps) {  // one more than there can be: a tap of weight 0 is written and then dropped
    if (int64_t(end.size()) < pixels) end.resize(size_t(pixels));
    if (int64_t(offset.size()) > taps) return;
    offset.resize(size_t(taps + 1));
    weight.resize(size_t(taps + 1));
  }
};

template <typename A>
void fill_corners(const FlowWarpArguments& arguments, const Rows& rows, Taps<A>* taps) {
  const FlowWarpArguments a = arguments;  // a copy, which the stores below cannot change: it stays in registers
  taps->reserve((rows.last - rows.first) * a.width, 4 * (rows.last - rows.first) * a.width);
  int64_t *end = taps->end.data(), *offset = taps->offset.data(), count = 0;
  A* weight = taps->weight.data();
  for (int64_t y = rows.first; y < rows.last; ++y) {
    for (int64_t x = 0; x < a.width; ++x) {
      const FlowSample<A> sample = flow_sample<A>(a, rows.b, y, x);
      for (int k = 0; k < 4; ++k) {
        const bool exists = flow_corner(a, sample, k, a.input, offset + count);
        weight[count] = flow_weight(sample.y.fraction, sample.x.fraction, k);
        count += exists && weight[count] != A(0);
      }
      *end++ = count;
    }
  }
}

// Channels outermost: planes often lie a power of two apart, where one pixel of all of them would not fit the cache.
template <typename T, typename A>
void sum_planes(const FlowWarpArguments& a, const Rows& rows, const Taps<A>& taps, const T* maps, int64_t stride) {
  const int64_t* offset = taps.offset.data();
  const A* weight = taps.weight.data();
  for (int64_t c = 0; c < a.channels; ++c, maps += stride) {
    const int64_t* end = taps.end.data();
    int64_t i = 0;
    for (int64_t y = rows.first; y < rows.last; ++y) {
      T* out = row_of<T>(a.out, rows.b, y) + c * a.out.stride[1];
      for (int64_t x = 0; x < a.width; ++x, ++end, out += a.out.stride[3]) {
        A sum = A(0);
        if (*end - i == 4) {  // the usual case, without a loop
          for (int k = 0; k < 4; ++k) sum = multiply_add(weight[i + k], A(load(maps[offset[i + k]])), sum);
          i += 4;
        } else {
          for (; i < *end; ++i) sum = multiply_add(weight[i], A(load(maps[offset[i]])), sum);
        }
        store(sum, out);
      }
    }
  }
}

// The last channels are summed in a register that overlaps the one before, rather than one by one.
template <typename T, typename A>
void sum_packed(const FlowWarpArguments& a, const Rows& rows, const Taps<A>& taps, const T* maps) {
  const int64_t* end = taps.end.data();
  int64_t begin = 0;
  for (int64_t y = rows.first; y < rows.last; ++y) {
    T* out = row_of<T>(a.out, rows.b, y);
    for (int64_t x = 0; x < a.width; ++x, begin = *end++, out += a.out.stride[3]) {
      for (int64_t block = 0; block < a.channels; block += kLanes) {
        const int64_t first = block + kLanes <= a.channels ? block : a.channels - kLanes;
        A sum[kLanes] = {}, value[kLanes];
        for (int64_t i = begin; i < *end; ++i) {
          load_lanes<kLanes>(maps + taps.offset[i] + first, value);
          PYPOSEEXT_LANES(c, kLanes) sum[c] = multiply_add(taps.weight[i], value[c], sum[c]);
        }
        PYPOSEEXT_LANES(c, kLanes) store(sum[c], out + first + c);
      }
    }
  }
}

template <typename T, typename A>
void sum_rows(const FlowWarpArguments& a, const Rows& rows, const Taps<A>& taps, const StridedMaps& maps) {
  const T* image = row_of<const T>(maps, rows.b, 0);
  if (maps.stride[1] == 1 && a.out.stride[1] == 1 && a.channels >= kLanes)
    sum_packed(a, rows, taps, image);
  else
    sum_planes(a, rows, taps, image, maps.stride[1]);
}

template <typename T>
void forward(const FlowWarpArguments& a) {
  for_blocks(a, [&a, taps = Taps<Accumulate<T>>()](const Rows& rows) mutable {
    fill_corners(a, rows, &taps);
    sum_rows<T>(a, rows, taps, a.input);
  });
}

// The output pixels of one image, ordered by the cell they sample: cell i has entries [begin[i], begin[i + 1]).
template <typename A>
struct CellLists {
  struct Entry {
    int64_t offset;  // of the pixel in a plane of the output's gradient
    A fraction_y, fraction_x;
  };
  std::vector<int64_t> begin;
  std::vector<Entry> entry;

  void fill(const FlowWarpArguments& a, int64_t b) {
    const int64_t cells = flow_cell_count(a), pixels = a.height * a.width;
    std::vector<int64_t> cell(size_t(pixels), 0);
    begin.assign(size_t(cells + 2), 0);
    for (int64_t y = 0, p = 0; y < a.height; ++y) {
      for (int64_t x = 0; x < a.width; ++x, ++p) {
        cell[p] = flow_cell(a, flow_sample<A>(a, b, y, x));
        ++begin[cell[p] + 1];
      }
    }
    for (int64_t i = 0; i <= cells; ++i) begin[i + 1] += begin[i];
    std::vector<int64_t> next(begin);
    entry.resize(size_t(pixels));
    for (int64_t y = 0, p = 0; y < a.height; ++y) {
      for (int64_t x = 0; x < a.width; ++x, ++p) {
        const FlowSample<A> sample = flow_sample<A>(a, b, y, x);
        entry[next[cell[p]]++] = {y * a.gradient.stride[2] + x * a.gradient.stride[3], sample.y.fraction, sample.x.fraction};
      }
    }
  }
};

template <typename A>
void fill_sources(const FlowWarpArguments& a, const CellLists<A>& lists, const Rows& rows, Taps<A>* taps) {
  int64_t pixel = 0, count = 0;
  for (int64_t y = rows.first; y < rows.last; ++y) {
    const int64_t first = flow_first_cell(a, y, 0, 0), last = flow_first_cell(a, y, a.width, 1) + 1;
    taps->reserve((rows.last - rows.first) * a.width, count + 2 * (lists.begin[last] - lists.begin[first]));
    int64_t* offset = taps->offset.data();
    A* weight = taps->weight.data();
    for (int64_t x = 0; x < a.width; ++x) {
      for (int k = 3; k >= 0; --k) {
        const int64_t cell = flow_first_cell(a, y, x, 1 - k / 2) + 1 - k % 2;
        for (int64_t i = lists.begin[cell], last_entry = lists.begin[cell + 1]; i < last_entry; ++i) {
          offset[count] = lists.entry[i].offset;
          weight[count] = flow_weight(lists.entry[i].fraction_y, lists.entry[i].fraction_x, k);
          count += weight[count] != A(0);
        }
      }
      taps->end[pixel++] = count;
    }
  }
}

template <typename T>
void backward_input(const FlowWarpArguments& a) {
  using A = Accumulate<T>;
  std::vector<CellLists<A>> lists{size_t(a.batch)};
  parallel_for(0, a.batch, 1, [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b) lists[b].fill(a, b);
  });
  for_blocks(a, [&, taps = Taps<A>()](const Rows& rows) mutable {
    fill_sources(a, lists[rows.b], rows, &taps);
    sum_rows<T>(a, rows, taps, a.gradient);
  });
}

// product[k]: the sum over channels of one pixel's gradient times corner k.
template <typename T, typename A>
void multiply_corners(const FlowWarpArguments& a, const T* gradient, const T* const* corner, A* product) {
  A lane[4][kLanes] = {};
  const int64_t stride = a.gradient.stride[1], corner_stride = a.input.stride[1];
  int64_t c = 0;
  if (stride == 1 && corner_stride == 1) {
    A g[kLanes], value[kLanes];
    for (; c + kLanes <= a.channels; c += kLanes) {
      load_lanes<kLanes>(gradient + c, g);
      for (int k = 0; k < 4; ++k) {
        load_lanes<kLanes>(corner[k] + c, value);
        PYPOSEEXT_LANES(i, kLanes) lane[k][i] = multiply_add(g[i], value[i], lane[k][i]);
      }
    }
  }
  for (int k = 0; k < 4; ++k) {
    product[k] = A(0);
    for (int64_t i = 0; i < kLanes; ++i) product[k] += lane[k][i];
  }
  for (; c < a.channels; ++c) {
    const A g = load(gradient[c * stride]);
    for (int k = 0; k < 4; ++k) product[k] = multiply_add(g, A(load(corner[k][c * corner_stride])), product[k]);
  }
}

template <typename T>
void flow_gradient_at(const FlowWarpArguments& a, int64_t b, int64_t y, int64_t x, const T* gradient, const T* input, Accumulate<T>* out) {
  using A = Accumulate<T>;
  const FlowSample<A> sample = flow_sample<A>(a, b, y, x);
  const T* corner[4];
  bool exists[4];
  A product[4];
  for (int k = 0; k < 4; ++k) {
    int64_t offset;
    exists[k] = flow_corner(a, sample, k, a.input, &offset);
    corner[k] = input + (exists[k] ? offset : 0);
  }
  multiply_corners(a, gradient, corner, product);
  for (int k = 0; k < 4; ++k)
    if (!exists[k]) product[k] = A(0);
  flow_gradient(sample, product, out, out + a.out.stride[1]);
}

template <typename T>
void backward_flow(const FlowWarpArguments& a) {
  for_blocks(a, [&](const Rows& rows) {
    const T* input = row_of<const T>(a.input, rows.b, 0);
    for (int64_t y = rows.first; y < rows.last; ++y) {
      const T* gradient = row_of<const T>(a.gradient, rows.b, y);
      auto* out = row_of<Accumulate<T>>(a.out, rows.b, y);
      for (int64_t x = 0; x < a.width; ++x) flow_gradient_at(a, rows.b, y, x, gradient + x * a.gradient.stride[3], input, out + x * a.out.stride[3]);
    }
  });
}

}  // namespace

void flow_warp_forward(const FlowWarpArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { forward<decltype(zero)>(arguments); });
}

void flow_warp_backward_input(const FlowWarpArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { backward_input<decltype(zero)>(arguments); });
}

void flow_warp_backward_flow(const FlowWarpArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { backward_flow<decltype(zero)>(arguments); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
