#include <type_traits>

#include "cpu/deform_conv2d.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

// The work is cut by images and by channels, never by threads: a task owns a slice of channels of a range of images, so that
// it alone adds to their gradient, and sums over images are taken range by range.
constexpr int64_t kImageRanges = 16;
constexpr int64_t kSliceChannels = 64;  // the fewest worth a slice of their own

struct Slice {
  int64_t first, last;               // channels
  int64_t first_group, last_group;   // offset groups, both included
  int64_t plane;                     // the number of its first (offset group, tap) among those of all slices
};

// Outputs of a group, and where their gradients start in a block's scratch.
struct OutputPiece {
  int64_t group, output, outputs, position;
};

// What one run of channels gets from the gradient of its columns and from the four corners.
template <typename A> struct Run {
  const A* gradient;     // of the columns
  A* columns;            // the columns themselves, made again
  A* input_gradient;     // added to at the corners, which lie `stride` a pixel apart
  int64_t stride;
};

// product[k][p] grows by the sum over channels of the column's gradient times corner k.
template <typename A>
void run_backward(const PixelBlock<A>& block, const SamplePlan<A>& plan, const Source<A>& source, int64_t channel, int64_t channels,
                  const Run<A>& run, A (*product)[kBlockPixels]) {
  const A* zeros = zero_channels<A>();
  A outside[kMaximumDepth];  // takes what belongs to no pixel
  std::fill_n(outside, channels, A(0));
  for (int64_t p = 0; p < block.count; ++p) {
    const A* gradient = run.gradient + p * kColumnStride;
    const A* corner[4];
    A *target[4], sum[4];
    Vector<A> weight[4], products[4] = {};
    for (int k = 0; k < 4; ++k) {
      corner[k] = source.corner(plan.corner[k][p], channel, zeros);
      target[k] = plan.corner[k][p] < 0 ? outside : run.input_gradient + int64_t(plan.corner[k][p]) * run.stride;
      weight[k] = broadcast(plan.scale[k][p]);
    }
    const auto step = [&](int64_t c, auto... count) {
      const Vector<A> of_column = load_vector(gradient + c, count...);
      Vector<A> column = {};
      for (int k = 0; k < 4; ++k) {
        const Vector<A> value = load_vector(corner[k] + c, count...);
        column = multiply_add(weight[k], value, column);
        products[k] = multiply_add(of_column, value, products[k]);
        store_vector(multiply_add(weight[k], of_column, load_vector(target[k] + c, count...)), target[k] + c, count...);
      }
      store_vector(column, run.columns + p * kColumnStride + c, count...);
    };
    int64_t c = 0;
    for (; c + kWidth<A> <= channels; c += kWidth<A>) step(c);
    if (c < channels) step(c, channels - c);
    sums_of_four(products, sum);
    for (int k = 0; k < 4; ++k) product[k][p] += sum[k];
  }
}

// The same for a run of one channel.
template <typename A>
void channel_backward(const PixelBlock<A>& block, const SamplePlan<A>& plan, const Source<A>& source, int64_t channel, const Run<A>& run,
                      A (*product)[kBlockPixels]) {
  const A* zeros = zero_channels<A>();
  A outside = A(0);
  for (int64_t p = 0; p < block.count; ++p) {
    const A gradient = run.gradient[p * kColumnStride];
    A column = A(0);
    for (int k = 0; k < 4; ++k) {
      const int64_t number = plan.corner[k][p];
      const A value = *source.corner(number, channel, zeros), weight = plan.scale[k][p];
      A* target = number < 0 ? &outside : run.input_gradient + number * run.stride;
      column = multiply_add(weight, value, column);
      product[k][p] += gradient * value;
      *target = multiply_add(weight, gradient, *target);
    }
    run.columns[p * kColumnStride] = column;
  }
}

template <typename T>
struct Backward {
  using A = Accumulate<T>;

  const DeformConv2dArguments& a;
  const int64_t taps = deform_taps(a), pixels = a.out_height * a.out_width, map = a.height * a.width;
  const int64_t ranges = std::min(a.batch, kImageRanges);
  const int64_t group_outputs = a.outputs / a.groups;
  const int64_t weight_stride = vectors_for<A>(group_outputs) * kWidth<A>;  // of a row of the weight's gradient, one column
  std::vector<Slice> slices;
  std::vector<OutputPiece> pieces;                    // rising by group, then output
  std::vector<std::vector<Chunk>> chunks;             // of each slice
  std::vector<std::vector<Scratch<A>>> weights;       // of each slice: [chunk, part, piece]
  std::vector<Scratch<A>> weight_sums;                // of each range of images: [channels * taps, weight_stride]
  std::vector<Scratch<A>> bias_sums;                  // of each range of images: [outputs]
  bool whole = true;                                  // each offset group is in one slice, and in one chunk at each tap
  std::vector<A> plane_sums;                          // [plane, 3: dy, dx, mask, N, pixels]: only where that is not so
  int64_t scratch_blocks = 0;                         // [pixels, kColumnStride] of scratch that the pieces take

  explicit Backward(const DeformConv2dArguments& arguments) : a(arguments) {
    set_slices();
    set_pieces();
    for (const Slice& slice : slices) {
      chunks.push_back(chunks_of(a, slice.first, slice.last));
      weights.push_back(pack_weights<T>(a, chunks.back(), kMaximumDepth, true));
    }
    for (int64_t range = 0; range < ranges; ++range) {
      weight_sums.emplace_back(a.weight_gradient.data != nullptr ? a.channels * taps * weight_stride : 0);
      bias_sums.emplace_back(a.outputs);
    }
  }

  void set_slices() {
    const int64_t wanted = std::min((a.channels + kSliceChannels - 1) / kSliceChannels, (kImageRanges + ranges - 1) / ranges);
    const int64_t shared = a.channels / a.offset_groups, unit = a.offset_groups > 1 ? shared : 16;
    const int64_t width = ((a.channels + wanted - 1) / wanted + unit - 1) / unit * unit;
    int64_t plane = 0;
    for (int64_t first = 0; first < a.channels; first += width) {
      const int64_t last = std::min(a.channels, first + width);
      slices.push_back({first, last, first / shared, (last - 1) / shared, plane});
      plane += (slices.back().last_group - slices.back().first_group + 1) * taps;
    }
    whole = std::min(width, a.channels) <= kMaximumDepth && (a.offset_groups > 1 || slices.size() == 1);
    if (!whole) plane_sums.resize(size_t(plane * 3 * a.batch * pixels));
  }

  void set_pieces() {
    int64_t block = 0, column = 0;
    for (int64_t group = 0; group < a.groups; ++group) {
      for (int64_t output = 0; output < group_outputs; output += kMaximumDepth) {
        const int64_t outputs = std::min(kMaximumDepth, group_outputs - output), width = vectors_for<A>(outputs) * kWidth<A>;
        if (column + width > kMaximumDepth) {
          ++block;
          column = 0;
        }
        pieces.push_back({group, output, outputs, block * kBlockPixels * kColumnStride + column});
        column += width;
      }
    }
    scratch_blocks = block + 1;
  }

  // What a task needs.
  struct Buffers {
    Scratch<A> input, input_gradient;       // [map, channels of a slice]
    Scratch<A> columns, column_gradient;    // [block pixels, kColumnStride]
    Scratch<A> output_gradient;             // of the pieces, each [block pixels, kColumnStride]
    SamplePlan<A> plan;
    A product[4][kBlockPixels];
  };

  A* plane_of(const Slice& slice, int64_t offset_group, int64_t tap, int which, int64_t image) {
    const int64_t plane = slice.plane + (offset_group - slice.first_group) * taps + tap;
    return plane_sums.data() + ((plane * 3 + which) * a.batch + image) * pixels;
  }

  // The slice's channels of an image: the tensor itself where it has the layout, else a copy in scratch.
  Source<A> source_of(const Slice& slice, int64_t image, Buffers* buffers) const {
    const PixelMaps<const T> maps = image_maps<const T>(a.input, image, slice.first, a.width);
    if constexpr (std::is_same_v<T, A>)
      if (maps.channel_stride == 1 && maps.rows_join()) return {maps.data - slice.first, maps.column_stride};
    read_pixels(maps, slice.last - slice.first, 0, map, buffers->input.data(), slice.last - slice.first);
    return {buffers->input.data() - slice.first, slice.last - slice.first};
  }

  void read_output_gradient(const PixelBlock<A>& block, Buffers* buffers) const {
    for (const OutputPiece& piece : pieces)
      read_pixels(image_maps<const T>(a.out, block.image, piece.group * group_outputs + piece.output, a.out_width), piece.outputs, block.first,
                  block.count, buffers->output_gradient.data() + piece.position, kColumnStride);
  }

  template <typename Body>
  void for_pieces(int64_t group, const Body& body) const {
    const int64_t per_group = int64_t(pieces.size()) / a.groups;
    for (int64_t i = 0; i < per_group; ++i) body(pieces[size_t(group * per_group + i)]);
  }

  void add_offset_gradient(const Slice& slice, const PixelBlock<A>& block, int64_t offset_group, int64_t tap, bool add, const Buffers& buffers) {
    A gradient[3][kBlockPixels];  // dy, dx, mask
    const SamplePlan<A>& plan = buffers.plan;
    for (int64_t p = 0; p < block.count; ++p) {
      A product[4], of_mask = A(0);
      for (int k = 0; k < 4; ++k) {
        product[k] = buffers.product[k][p];
        of_mask = multiply_add(plan.weight[k][p], product[k], of_mask);
      }
      gradient[0][p] = plan.mask[p] * deform_slope_y(product, plan.fraction_x[p]);
      gradient[1][p] = plan.mask[p] * deform_slope_x(product, plan.fraction_y[p]);
      gradient[2][p] = of_mask;
    }
    if (whole) return write_sample_gradient(block, offset_group * taps + tap, gradient);
    for (int which = 0; which < 3; ++which) {
      A* sum = plane_of(slice, offset_group, tap, which, block.image) + block.first;
      for (int64_t p = 0; p < block.count; ++p) sum[p] = add ? sum[p] + gradient[which][p] : gradient[which][p];
    }
  }

  void write_sample_gradient(const PixelBlock<A>& block, int64_t sample, const A (*gradient)[kBlockPixels]) const {
    if (a.offset_gradient.data != nullptr)
      for (int which = 0; which < 2; ++which) write_channel<A>(a.offset_gradient, 2 * sample + which, a.out_width, block, gradient[which]);
    if (a.mask_gradient.data != nullptr) write_channel<T>(a.mask_gradient, sample, a.out_width, block, gradient[2]);
  }

  void chunk_samples(const Slice& slice, const PixelBlock<A>& block, const Chunk& chunk, const Source<A>& source, Buffers* buffers) {
    const int64_t stride = slice.last - slice.first, shared = a.channels / a.offset_groups;
    for (int64_t t = 0; t < chunk.taps; ++t) {
      for (int64_t offset_group = first_offset_group(a, chunk); offset_group <= last_offset_group(a, chunk); ++offset_group) {
        fill_plan<T>(a, block, offset_group, chunk.tap + t, &buffers->plan);
        for (int k = 0; k < 4; ++k) std::fill_n(buffers->product[k], block.count, A(0));
        for_runs(a, chunk, t, offset_group, [&](int64_t channel, int64_t channels, int64_t column) {
          const Run<A> run{buffers->column_gradient.data() + column, buffers->columns.data() + column,
                           buffers->input_gradient.data() + channel - slice.first, stride};
          if (channels == 1)
            channel_backward(block, buffers->plan, source, channel, run, buffers->product);
          else
            run_backward(block, buffers->plan, source, channel, channels, run, buffers->product);
        });
        const bool add = chunk.channel > std::max(slice.first, offset_group * shared);
        add_offset_gradient(slice, block, offset_group, chunk.tap + t, add, *buffers);
      }
    }
  }

  void block(int64_t s, int64_t range, int64_t image, int64_t first, const Source<A>& source, Buffers* buffers) {
    const Slice& slice = slices[s];
    const PixelBlock<A> block(a, image, first);
    read_output_gradient(block, buffers);
    if (s == 0) add_bias_gradient(range, block, *buffers);
    A* weight_sum = weight_sums[range].data() + slice.first * taps * weight_stride;
    size_t packed = 0;
    for (const Chunk& chunk : chunks[s]) {
      for_parts(a, chunk, [&](const Part& part) {
        for_pieces(part.group, [&](const OutputPiece& piece) {
          multiply_matrices<kColumnStride, 1>(block.count, vectors_for<A>(chunk.taps * part.channels), piece.outputs,
                                              buffers->output_gradient.data() + piece.position, weights[s][packed++].data(), 0,
                                              buffers->column_gradient.data() + part.column, kColumnStride, piece.output != 0);
        });
      });
      chunk_samples(slice, block, chunk, source, buffers);
      if (a.weight_gradient.data == nullptr) continue;
      for_parts(a, chunk, [&](const Part& part) {
        for_pieces(part.group, [&](const OutputPiece& piece) {
          multiply_matrices<1, kColumnStride>(chunk.taps * part.channels, vectors_for<A>(piece.outputs), block.count,
                                              buffers->columns.data() + part.column, buffers->output_gradient.data() + piece.position, kColumnStride,
                                              weight_sum + part.column * weight_stride + piece.output, weight_stride, true);
        });
      });
      weight_sum += chunk.taps * chunk.channels * weight_stride;
    }
  }

  void add_bias_gradient(int64_t range, const PixelBlock<A>& block, const Buffers& buffers) {
    for (const OutputPiece& piece : pieces) {
      A* sum = bias_sums[range].data() + piece.group * group_outputs + piece.output;
      for (int64_t p = 0; p < block.count; ++p)
        for (int64_t o = 0; o < piece.outputs; ++o) sum[o] += buffers.output_gradient.data()[piece.position + p * kColumnStride + o];
    }
  }

  void task(int64_t range, int64_t s, Buffers* buffers) {
    const Slice& slice = slices[s];
    const int64_t channels = slice.last - slice.first;
    for (int64_t image = range * a.batch / ranges; image < (range + 1) * a.batch / ranges; ++image) {
      const Source<A> source = source_of(slice, image, buffers);
      std::fill_n(buffers->input_gradient.data(), map * channels, A(0));
      for (int64_t first = 0; first < pixels; first += kBlockPixels) block(s, range, image, first, source, buffers);
      if (a.input_gradient.data != nullptr)
        write_pixels(image_maps<T>(a.input_gradient, image, slice.first, a.width), channels, 0, map, buffers->input_gradient.data(), channels);
    }
  }

  void run() {
    const int64_t count = int64_t(slices.size()), widest = slices[0].last - slices[0].first;
    parallel_for(0, ranges * count, 1, [&](int64_t from, int64_t to) {
      Buffers buffers{Scratch<A>(map * widest),
                      Scratch<A>(map * widest),
                      Scratch<A>(kBlockPixels * kColumnStride),
                      Scratch<A>(kBlockPixels * kColumnStride),
                      Scratch<A>(scratch_blocks * kBlockPixels * kColumnStride),
                      {},
                      {}};
      for (int64_t i = from; i < to; ++i) task(i / count, i % count, &buffers);
    });
    if (!whole && (a.offset_gradient.data != nullptr || a.mask_gradient.data != nullptr)) write_planes();
    if (a.weight_gradient.data != nullptr) write_weight_gradient();
    if (a.bias_gradient.data != nullptr) write_bias_gradient();
  }

  // The sum of plane `which` over the slices that hold the offset group.
  template <typename To>
  void write_plane(const DeformMaps& maps, int64_t image, int64_t channel, int64_t offset_group, int64_t tap, int which) {
    const PixelMaps<To> to = image_maps<To>(maps, image, channel, a.out_width);
    std::vector<const A*> parts;
    for (const Slice& slice : slices)
      if (slice.first_group <= offset_group && offset_group <= slice.last_group) parts.push_back(plane_of(slice, offset_group, tap, which, image));
    for (int64_t p = 0; p < pixels; ++p) {
      A sum = parts[0][p];
      for (size_t i = 1; i < parts.size(); ++i) sum += parts[i][p];
      store(sum, to.rows_join() ? to.data + p * to.column_stride : to.pixel(p));
    }
  }

  void write_planes() {
    const int64_t samples = a.offset_groups * taps;
    parallel_for(0, a.batch * samples, 1, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t image = i / samples, sample = i % samples, offset_group = sample / taps, tap = sample % taps;
        if (a.offset_gradient.data != nullptr)
          for (int which = 0; which < 2; ++which) write_plane<A>(a.offset_gradient, image, 2 * sample + which, offset_group, tap, which);
        if (a.mask_gradient.data != nullptr) write_plane<T>(a.mask_gradient, image, sample, offset_group, tap, 2);
      }
    });
  }

  void write_weight_gradient() {
    int64_t row = 0;
    for (const std::vector<Chunk>& slice_chunks : chunks) {
      for (const Chunk& chunk : slice_chunks) {
        for_parts(a, chunk, [&](const Part& part) { write_part(chunk, part, row + part.column); });
        row += chunk.taps * chunk.channels;
      }
    }
  }

  void write_part(const Chunk& chunk, const Part& part, int64_t first_row) {
    DeformConv2dArguments of_gradient = a;
    of_gradient.weight = a.weight_gradient;
    const std::vector<int64_t> position = weight_positions(of_gradient, chunk, part);
    T* gradient = static_cast<T*>(a.weight_gradient.data) + part.group * group_outputs * a.weight_gradient.stride[0];
    parallel_for(0, int64_t(position.size()), 64, [&](int64_t from, int64_t to) {
      for (int64_t k = from; k < to; ++k) {
        for (int64_t output = 0; output < group_outputs; ++output) {
          A sum = A(0);
          for (const Scratch<A>& sums : weight_sums) sum += sums.data()[(first_row + k) * weight_stride + output];
          store(sum, gradient + output * a.weight_gradient.stride[0] + position[k]);
        }
      }
    });
  }

  void write_bias_gradient() {
    for (int64_t output = 0; output < a.outputs; ++output) {
      A sum = A(0);
      for (const Scratch<A>& sums : bias_sums) sum += sums.data()[output];
      store(sum, static_cast<T*>(a.bias_gradient.data) + output * a.bias_gradient.stride[0]);
    }
  }
};

}  // namespace

void deform_conv2d_backward(const DeformConv2dArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { Backward<decltype(zero)>(arguments).run(); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
