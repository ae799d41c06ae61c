// What the forward and the backward of deform_conv2d share on the CPU: blocks of output pixels, the columns a block needs at
// a time, where each tap samples, and the weights packed for the matrix product.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/channels_last.h"
#include "common/matrix.h"
#include "common/parallel.h"
#include "ops/deform_conv2d.h"

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

constexpr int64_t kBlockPixels = 96;                   // of a task: a multiple of every tile's rows
constexpr int64_t kMaximumDepth = 512;                 // columns of a block at a time: they stay in the second cache
constexpr int64_t kColumnStride = kMaximumDepth + 32;  // room for a tile's last rows, and no power of two

// Scratch that starts on a cache line, filled with 0.
template <typename A>
class Scratch {
 public:
  explicit Scratch(int64_t count) : storage_(size_t(count) + kLine) {}
  A* data() { return reinterpret_cast<A*>((reinterpret_cast<uintptr_t>(storage_.data()) + 63) / 64 * 64); }
  const A* data() const { return const_cast<Scratch*>(this)->data(); }

 private:
  static constexpr size_t kLine = 64 / sizeof(A);
  std::vector<A> storage_;
};

template <typename T>
inline PixelMaps<T> image_maps(const DeformMaps& maps, int64_t image, int64_t channel, int64_t width) {
  return {static_cast<T*>(maps.data) + image * maps.stride[0] + channel * maps.stride[1], maps.stride[1], maps.stride[2], maps.stride[3], width};
}

// Taps [tap, tap + taps) of channels [channel, channel + channels): what a block holds as columns at a time.
struct Chunk {
  int64_t tap, taps, channel, channels;
};

// The channels of a chunk that belong to one weight group. Their columns, tap after tap, start at `column`.
struct Part {
  int64_t group, channel, channels, column;
};

inline std::vector<Chunk> chunks_of(const DeformConv2dArguments& a, int64_t channel_begin, int64_t channel_end) {
  std::vector<Chunk> chunks;
  const int64_t taps = deform_taps(a), width = std::min(channel_end - channel_begin, kMaximumDepth);
  const int64_t most_taps = std::min(taps, kMaximumDepth / width);
  const int64_t rounds = (taps + most_taps - 1) / most_taps, taps_a_round = (taps + rounds - 1) / rounds;
  for (int64_t channel = channel_begin; channel < channel_end; channel += width)
    for (int64_t tap = 0; tap < taps; tap += taps_a_round)
      chunks.push_back({tap, std::min(taps_a_round, taps - tap), channel, std::min(width, channel_end - channel)});
  return chunks;
}

template <typename Body>
inline void for_parts(const DeformConv2dArguments& a, const Chunk& chunk, const Body& body) {
  const int64_t group_channels = a.channels / a.groups, end = chunk.channel + chunk.channels;
  for (int64_t channel = chunk.channel, last; channel < end; channel = last) {
    const int64_t group = channel / group_channels;
    last = std::min((group + 1) * group_channels, end);
    body(Part{group, channel, last - channel, chunk.taps * (channel - chunk.channel)});
  }
}

// Calls body(offset group, channel, channels, column) for the runs of a chunk's channels that share samples and a weight
// group, for the chunk's tap number `t`.
template <typename Body>
inline void for_runs(const DeformConv2dArguments& a, const Chunk& chunk, int64_t t, int64_t offset_group, const Body& body) {
  const int64_t shared = a.channels / a.offset_groups, begin = offset_group * shared;
  for_parts(a, chunk, [&](const Part& part) {
    const int64_t first = std::max(begin, part.channel), last = std::min(begin + shared, part.channel + part.channels);
    if (first < last) body(first, last - first, part.column + t * part.channels + first - part.channel);
  });
}

inline int64_t first_offset_group(const DeformConv2dArguments& a, const Chunk& chunk) { return chunk.channel / (a.channels / a.offset_groups); }
inline int64_t last_offset_group(const DeformConv2dArguments& a, const Chunk& chunk) {
  return (chunk.channel + chunk.channels - 1) / (a.channels / a.offset_groups);
}

// Where each column of a part lies in one output's weights.
inline std::vector<int64_t> weight_positions(const DeformConv2dArguments& a, const Chunk& chunk, const Part& part) {
  std::vector<int64_t> positions;
  const int64_t first = part.channel - part.group * (a.channels / a.groups);
  for (int64_t tap = chunk.tap; tap < chunk.tap + chunk.taps; ++tap)
    for (int64_t c = first; c < first + part.channels; ++c)
      positions.push_back(c * a.weight.stride[1] + tap / a.kernel_width * a.weight.stride[2] + tap % a.kernel_width * a.weight.stride[3]);
  return positions;
}

// The weights of all chunks and parts in their order, and in each of at most `most_outputs` outputs of its group at a time:
// [columns, outputs] for the forward, [outputs, columns] (by_output) for the backward.
template <typename T>
inline std::vector<Scratch<Accumulate<T>>> pack_weights(const DeformConv2dArguments& a, const std::vector<Chunk>& chunks, int64_t most_outputs,
                                                        bool by_output) {
  using A = Accumulate<T>;
  struct Place {
    Chunk chunk;
    Part part;
    int64_t output, outputs;
  };
  std::vector<Place> places;
  std::vector<Scratch<A>> packed;
  const int64_t group_outputs = a.outputs / a.groups;
  for (const Chunk& chunk : chunks) {
    for_parts(a, chunk, [&](const Part& part) {
      const int64_t columns = chunk.taps * part.channels;
      for (int64_t output = 0; output < group_outputs; output += most_outputs) {
        const int64_t outputs = std::min(most_outputs, group_outputs - output);
        places.push_back({chunk, part, part.group * group_outputs + output, outputs});
        packed.emplace_back(kWidth<A> * (by_output ? outputs * vectors_for<A>(columns) : columns * vectors_for<A>(outputs)));
      }
    });
  }
  parallel_for(0, int64_t(places.size()), 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const std::vector<int64_t> position = weight_positions(a, places[i].chunk, places[i].part);
      const int64_t columns = int64_t(position.size()), outputs = places[i].outputs, stride = a.weight.stride[0];
      const T* weight = static_cast<const T*>(a.weight.data) + places[i].output * stride;
      const auto element = [&](int64_t output, int64_t column) { return load(weight[output * stride + position[column]]); };
      if (by_output)
        pack_panels(outputs, columns, element, packed[i].data());
      else
        pack_panels(columns, outputs, [&](int64_t column, int64_t output) { return element(output, column); }, packed[i].data());
    }
  });
  return packed;
}

// Output pixels [first, first + count) of an image, and the positions of their first tap.
template <typename A> struct PixelBlock {
  int64_t image, first, count;
  A y[kBlockPixels] = {}, x[kBlockPixels] = {};

  PixelBlock(const DeformConv2dArguments& a, int64_t image_number, int64_t first_pixel)
      : image(image_number), first(first_pixel), count(std::min(kBlockPixels, a.out_height * a.out_width - first_pixel)) {
    for (int64_t p = 0; p < count; ++p) {
      y[p] = A((first + p) / a.out_width * a.stride_y - a.padding_y);
      x[p] = A((first + p) % a.out_width * a.stride_x - a.padding_x);
    }
  }
};

inline int64_t blocks_of(const DeformConv2dArguments& a) { return (a.out_height * a.out_width + kBlockPixels - 1) / kBlockPixels; }

template <typename A> using IntegerOfSize = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;

// Where one tap of one offset group samples, for the pixels of a block.
template <typename A> struct SamplePlan {
  IntegerOfSize<A> corner[4][kBlockPixels];  // the number of the pixel, or -1
  A fraction_y[kBlockPixels], fraction_x[kBlockPixels];
  A mask[kBlockPixels];
  A weight[4][kBlockPixels], scale[4][kBlockPixels];  // of the corners: without the mask, and times the mask
  A dy[kBlockPixels], dx[kBlockPixels];
};

template <typename T, typename A>
inline void read_channel(const DeformMaps& maps, int64_t channel, int64_t width, const PixelBlock<A>& block, A* values) {
  const PixelMaps<const T> channel_maps = image_maps<const T>(maps, block.image, channel, width);
  if (channel_maps.rows_join()) {
    const T* from = channel_maps.data + block.first * channel_maps.column_stride;
    if (channel_maps.column_stride == 1) return copy_row(block.count, from, values);
    for (int64_t p = 0; p < block.count; ++p) values[p] = load(from[p * channel_maps.column_stride]);
  } else {
    for (int64_t p = 0; p < block.count; ++p) values[p] = load(*channel_maps.pixel(block.first + p));
  }
}

template <typename T, typename A>
inline void write_channel(const DeformMaps& maps, int64_t channel, int64_t width, const PixelBlock<A>& block, const A* values) {
  const PixelMaps<T> channel_maps = image_maps<T>(maps, block.image, channel, width);
  if (channel_maps.rows_join() && channel_maps.column_stride == 1) return copy_row(block.count, values, channel_maps.data + block.first);
  for (int64_t p = 0; p < block.count; ++p) store(values[p], channel_maps.pixel(block.first + p));
}

// deform_axis of common/deform_conv2d_math.h, a vector at a time.
template <typename A> struct AxisVectors {
  Vector<IntegerOfSize<A>> low, inside;  // inside: all bits or none
  Vector<A> fraction;

  AxisVectors(Vector<A> position, int64_t size) {
    inside = (position >= A(-1)) & (position < A(size));
    const Vector<A> safe = inside ? position : Vector<A>{}, whole = floor(safe);
    low = __builtin_convertvector(whole, Vector<IntegerOfSize<A>>);
    fraction = safe - whole;
  }
};

template <typename A>
inline void fill_vector(const DeformConv2dArguments& a, const AxisVectors<A>& y, const AxisVectors<A>& x, int64_t p, SamplePlan<A>* plan) {
  using I = IntegerOfSize<A>;
  const Vector<I> number = y.low * I(a.width) + x.low;
  const Vector<I> row[2] = {y.inside & (y.low >= 0), y.inside & (y.low < I(a.height - 1))};
  const Vector<I> column[2] = {x.inside & (x.low >= 0), x.inside & (x.low < I(a.width - 1))};
  const Vector<A> weight_y[2] = {A(1) - y.fraction, y.fraction}, weight_x[2] = {A(1) - x.fraction, x.fraction}, mask = load_vector(plan->mask + p);
  for (int k = 0; k < 4; ++k) {
    const Vector<I> corner = (number + I(k / 2 * a.width + k % 2)) | ~(row[k / 2] & column[k % 2]);
    const Vector<A> weight = weight_y[k / 2] * weight_x[k % 2];
    std::memcpy(plan->corner[k] + p, &corner, sizeof corner);
    store_vector(weight, plan->weight[k] + p);
    store_vector(weight * mask, plan->scale[k] + p);
  }
  store_vector(y.fraction, plan->fraction_y + p);
  store_vector(x.fraction, plan->fraction_x + p);
}

// What lies beyond the block's last pixel, to the end of a vector, is filled from old values and never used.
template <typename T, typename A>
inline void fill_plan(const DeformConv2dArguments& a, const PixelBlock<A>& block, int64_t offset_group, int64_t tap, SamplePlan<A>* plan) {
  const int64_t sample = offset_group * deform_taps(a) + tap;
  const A tap_y = A(tap / a.kernel_width * a.dilation_y), tap_x = A(tap % a.kernel_width * a.dilation_x);
  read_channel<A>(a.offset, 2 * sample, a.out_width, block, plan->dy);
  read_channel<A>(a.offset, 2 * sample + 1, a.out_width, block, plan->dx);
  if (a.mask.data != nullptr)
    read_channel<T>(a.mask, sample, a.out_width, block, plan->mask);
  else
    std::fill_n(plan->mask, block.count, A(1));
  for (int64_t p = 0; p < block.count; p += kWidth<A>) {
    const AxisVectors<A> y(load_vector(block.y + p) + tap_y + load_vector(plan->dy + p), a.height);
    const AxisVectors<A> x(load_vector(block.x + p) + tap_x + load_vector(plan->dx + p), a.width);
    fill_vector(a, y, x, p, plan);
  }
}

// The image's pixels, their channels next to each other.
template <typename S> struct Source {
  const S* data;
  int64_t stride;  // from pixel to pixel

  const S* corner(int64_t number, int64_t channel, const S* zeros) const { return number < 0 ? zeros : data + number * stride + channel; }
};

template <typename S>
inline const S* zero_channels() {  // read in place of pixels outside the map
  static const S zeros[kMaximumDepth] = {};
  return zeros;
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
