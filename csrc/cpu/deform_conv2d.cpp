#include "cpu/deform_conv2d.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kRoundBytes = 8 << 20;  // of images copied to channels-last scratch at a time: they stay in the last cache

// One column for each channel of a run: the sum of the four corners, each times its weight.
template <typename S, typename A>
void gather_run(const PixelBlock<A>& block, const SamplePlan<A>& plan, const Source<S>& source, int64_t channel, int64_t channels, A* columns) {
  const S* zeros = zero_channels<S>();
  for (int64_t p = 0; p < block.count; ++p, columns += kColumnStride) {
    const S* corner[4];
    Vector<A> weight[4];
    for (int k = 0; k < 4; ++k) {
      corner[k] = source.corner(plan.corner[k][p], channel, zeros);
      weight[k] = broadcast(plan.scale[k][p]);
    }
    int64_t c = 0;
    for (; c + kWidth<A> <= channels; c += kWidth<A>) {
      Vector<A> sum = weight[0] * load_vector(corner[0] + c);
      for (int k = 1; k < 4; ++k) sum = multiply_add(weight[k], load_vector(corner[k] + c), sum);
      store_vector(sum, columns + c);
    }
    if (c == channels) continue;
    Vector<A> sum = weight[0] * load_vector(corner[0] + c, channels - c);
    for (int k = 1; k < 4; ++k) sum = multiply_add(weight[k], load_vector(corner[k] + c, channels - c), sum);
    store_vector(sum, columns + c, channels - c);
  }
}

// Offset groups of one channel: no vectors to be had.
template <typename S, typename A>
void gather_channel(const PixelBlock<A>& block, const SamplePlan<A>& plan, const Source<S>& source, int64_t channel, A* columns) {
  const S* zeros = zero_channels<S>();
  for (int64_t p = 0; p < block.count; ++p) {
    A sum = A(0);
    for (int k = 0; k < 4; ++k) sum = multiply_add(plan.scale[k][p], A(load(*source.corner(plan.corner[k][p], channel, zeros))), sum);
    columns[p * kColumnStride] = sum;
  }
}

template <typename T, typename S, typename A>
void gather_chunk(const DeformConv2dArguments& a, const PixelBlock<A>& block, const Source<S>& source, const Chunk& chunk, SamplePlan<A>* plan,
                  A* columns) {
  for (int64_t t = 0; t < chunk.taps; ++t) {
    for (int64_t offset_group = first_offset_group(a, chunk); offset_group <= last_offset_group(a, chunk); ++offset_group) {
      fill_plan<T>(a, block, offset_group, chunk.tap + t, plan);
      for_runs(a, chunk, t, offset_group, [&](int64_t channel, int64_t channels, int64_t column) {
        if (channels == 1)
          gather_channel(block, *plan, source, channel, columns + column);
        else
          gather_run(block, *plan, source, channel, channels, columns + column);
      });
    }
  }
}

template <typename T>
struct Forward {
  using A = Accumulate<T>;

  const DeformConv2dArguments& a;
  const std::vector<Chunk> chunks = chunks_of(a, 0, a.channels);
  const std::vector<Scratch<A>> weights = pack_weights<T>(a, chunks, a.outputs, false);
  const int64_t group_outputs = a.outputs / a.groups, group_vectors = vectors_for<A>(group_outputs);
  const int64_t row_stride = a.groups * group_vectors * kWidth<A>;

  // What a thread needs for a block.
  struct Buffers {
    Scratch<A> columns, rows;
    SamplePlan<A> plan;
  };

  template <typename S>
  void block(int64_t image, int64_t first, const Source<S>& source, Buffers* buffers) const {
    const PixelBlock<A> block(a, image, first);
    A *columns = buffers->columns.data(), *rows = buffers->rows.data();
    size_t packed = 0;
    for (const Chunk& chunk : chunks) {
      gather_chunk<T>(a, block, source, chunk, &buffers->plan, columns);
      for_parts(a, chunk, [&](const Part& part) {
        const bool add = chunk.tap != 0 || part.channel % (a.channels / a.groups) != 0;
        multiply_matrices<kColumnStride, 1>(block.count, group_vectors, chunk.taps * part.channels, columns + part.column,
                                            weights[packed++].data(), 0, rows + part.group * group_vectors * kWidth<A>, row_stride, add);
      });
    }
    finish(block, rows);
  }

  void finish(const PixelBlock<A>& block, A* rows) const {
    const T* bias = static_cast<const T*>(a.bias.data);
    for (int64_t group = 0; group < a.groups; ++group) {
      A* group_rows = rows + group * group_vectors * kWidth<A>;
      const int64_t output = group * group_outputs;
      if (bias != nullptr)
        for (int64_t p = 0; p < block.count; ++p)
          for (int64_t o = 0; o < group_outputs; ++o) group_rows[p * row_stride + o] += load(bias[(output + o) * a.bias.stride[0]]);
      write_pixels(image_maps<T>(a.out, block.image, output, a.out_width), group_outputs, block.first, block.count, group_rows, row_stride);
    }
  }

  template <typename SourceOf>
  void images(int64_t first, int64_t last, const SourceOf& source_of) const {
    const int64_t blocks = blocks_of(a);
    parallel_for(first * blocks, last * blocks, 1, [&](int64_t from, int64_t to) {
      Buffers buffers{Scratch<A>(kBlockPixels * kColumnStride), Scratch<A>(kBlockPixels * row_stride), {}};
      for (int64_t task = from; task < to; ++task)
        block(task / blocks, task % blocks * kBlockPixels, source_of(task / blocks), &buffers);
    });
  }

  void run() const {
    const PixelMaps<const T> maps = image_maps<const T>(a.input, 0, 0, a.width);
    if (maps.channel_stride == 1 && maps.rows_join())
      images(0, a.batch, [&](int64_t image) { return Source<T>{maps.data + image * a.input.stride[0], maps.column_stride}; });
    else
      run_through_scratch();
  }

  void run_through_scratch() const {
    constexpr int64_t kPart = 256;  // pixels of a task
    const int64_t pixels = a.height * a.width, size = pixels * a.channels, parts = (pixels + kPart - 1) / kPart;
    const int64_t round = std::min(a.batch, std::max<int64_t>(1, kRoundBytes / (size * int64_t(sizeof(A)))));
    Scratch<A> scratch(round * size);
    for (int64_t first = 0; first < a.batch; first += round) {
      const int64_t last = std::min(a.batch, first + round);
      parallel_for(first * parts, last * parts, 1, [&](int64_t from, int64_t to) {
        for (int64_t task = from; task < to; ++task) {
          const int64_t image = task / parts, pixel = task % parts * kPart;
          read_pixels(image_maps<const T>(a.input, image, 0, a.width), a.channels, pixel, std::min(kPart, pixels - pixel),
                      scratch.data() + (image - first) * size + pixel * a.channels, a.channels);
        }
      });
      images(first, last, [&](int64_t image) { return Source<A>{scratch.data() + (image - first) * size, a.channels}; });
    }
  }
};

}  // namespace

void deform_conv2d_forward(const DeformConv2dArguments& arguments) {
  dispatch_floating(arguments.dtype, [&](auto zero) { Forward<decltype(zero)>{arguments}.run(); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
