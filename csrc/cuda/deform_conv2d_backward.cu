#include "cuda/deform_conv2d.cuh"

namespace pyposeext::cuda {
namespace {

constexpr int kUnitPixels = 512;  // output pixels that the gradient of the weight takes together; a power of two

int64_t tiles(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Channels that share both a weight group and an offset group come in runs of this length.
__host__ __device__ int64_t piece_channels(const DeformConv2dArguments& a) {
  int64_t left = a.channels / a.groups, right = a.channels / a.offset_groups;
  while (right != 0) {
    const int64_t rest = left % right;
    left = right;
    right = rest;
  }
  return left;
}

template <typename A>
__global__ void cells_kernel(const DeformConv2dArguments a, int64_t total) {
  const int64_t pixels = a.out_height * a.out_width, taps = deform_taps(a), none = deform_cell_count(a);
  PYPOSEEXT_GRID_STRIDE(index, total) {
    const int64_t row = index / pixels, offset_group = row / taps % a.offset_groups;
    const DeformAxes<A> at = deform_axes<A>(a, row / (taps * a.offset_groups), int(index % pixels), int(row % taps), int(offset_group));
    a.cell[index] = int32_t(at.y.inside && at.x.inside ? (at.y.low + 1) * (a.width + 1) + at.x.low + 1 : none);
  }
}

__global__ void begin_kernel(const DeformConv2dArguments a, int64_t total) {
  const int64_t pixels = a.out_height * a.out_width, entries = deform_cell_count(a) + 1;
  PYPOSEEXT_GRID_STRIDE(index, total) {
    const int32_t* cells = a.sorted_cell + index / entries * pixels;
    const int32_t wanted = int32_t(index % entries);
    int32_t low = 0, high = int32_t(pixels);
    while (low < high) {
      const int32_t middle = low + (high - low) / 2;
      if (cells[middle] < wanted)
        low = middle + 1;
      else
        high = middle;
    }
    a.begin[index] = low;
  }
}

// For one input pixel and one tap, runs of 8 outputs of the sum over all samples that have the pixel as a corner: the output's
// gradient times the corner's weight and the mask. It is what the transposed convolution takes as its column.
template <typename T> struct GradientColumns {
  using A = Accumulate<T>;

  const DeformConv2dArguments& a;
  int64_t image, group, offset_group;
  int outputs, taps;  // outputs of the weight group
  bool vectors;

  __device__ void operator()(int pixel, int k, A* values) const {
#pragma unroll
    for (int i = 0; i < kRun; ++i) values[i] = A(0);
    if (k >= outputs * taps) return;
    if (vectors) return add(pixel, k / outputs, k % outputs, values);
    for (int i = 0; i < kRun && k + i < outputs * taps; ++i) {
      const A sum = single(pixel, (k + i) / outputs, (k + i) % outputs);
#pragma unroll
      for (int n = 0; n < kRun; ++n) values[n] = n == i ? sum : values[n];
    }
  }

 private:
  // body(output pixel, weight) for the samples of a tap that reach an input pixel, in a fixed order.
  template <typename Body>
  __device__ void for_samples(int pixel, int tap, const Body& body) const {
    const int y = pixel / int(a.width), x = pixel % int(a.width), og = int(offset_group);
    const int64_t row = (image * a.offset_groups + offset_group) * taps + tap, first = row * a.out_height * a.out_width;
    for (int side = 0; side < 2; ++side) {
      const int64_t cell = deform_first_cell(a, y, x, side);
      const int32_t* begin = a.begin + row * (deform_cell_count(a) + 1) + cell;
      for (int32_t i = begin[0], end = begin[2]; i < end; ++i) {
        const int sampled = int(a.order[first + i]), corner = 3 - 2 * side - (i >= begin[1]);
        const DeformAxes<A> at = deform_axes<A>(a, image, sampled, tap, og);
        body(sampled, deform_weight(at.y.fraction, at.x.fraction, corner) * deform_mask<T>(a, image, sampled, tap, og));
      }
    }
  }

  __device__ const T* gradient_of(int pixel, int output) const {
    return static_cast<const T*>(a.packed_gradient) + (image * a.out_height * a.out_width + pixel) * a.outputs + group * outputs + output;
  }

  __device__ void add(int pixel, int tap, int output, A* values) const {
    for_samples(pixel, tap, [&](int sampled, A weight) {
      A gradient[kRun];
      load_run(gradient_of(sampled, output), gradient);
#pragma unroll
      for (int i = 0; i < kRun; ++i) values[i] = multiply_add(weight, gradient[i], values[i]);
    });
  }

  __device__ A single(int pixel, int tap, int output) const {
    A sum = A(0);
    for_samples(pixel, tap, [&](int sampled, A weight) { sum = multiply_add(weight, A(load(*gradient_of(sampled, output))), sum); });
    return sum;
  }
};

// A block has 128 input pixels of an image (64 in double) and some of the channels of a piece.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kThreads) input_kernel(const DeformConv2dArguments a, int64_t pixel_tiles, int64_t channel_tiles, int64_t total) {
  using A = Accumulate<T>;
  using Tile = MatrixTile<T, kColumns, false>;
  alignas(128) __shared__ char shared[Tile::kSharedBytes];
  const int piece = int(piece_channels(a)), pixels = int(a.height * a.width), outputs = int(a.outputs / a.groups), taps = int(deform_taps(a));
  const int64_t pieces = a.channels / piece, group_channels = a.channels / a.groups;
  for (int64_t index = blockIdx.x; index < total; index += gridDim.x) {
    const int64_t first_channel = index / channel_tiles % pieces * piece, image = index / (channel_tiles * pieces * pixel_tiles);
    const int tile_channel = int(index % channel_tiles) * kColumns, first_pixel = int(index / (channel_tiles * pieces) % pixel_tiles) * Tile::kRows;
    const int64_t group = first_channel / group_channels, offset_group = first_channel / (a.channels / a.offset_groups);
    const bool whole = runs_fit<T>(a.packed_gradient, outputs);
    const GradientColumns<T> columns{a, image, group, offset_group, outputs, taps, whole};
    const T* weight = static_cast<const T*>(a.packed_weight) + group * outputs * taps * group_channels + first_channel % group_channels;
    const bool vectors = runs_fit<T>(weight, group_channels);
    const A* tile = Tile::product(
        outputs * taps, [&](int row, int k, A* values) { columns(min(first_pixel + row, pixels - 1), k, values); },
        [&](int k, int column, A* values) {
          const T* row = weight + (int64_t(k % outputs) * taps + k / outputs) * group_channels;
          load_part(row, tile_channel + column, k < outputs * taps ? piece : 0, vectors, values);
        },
        shared);
    const DeformMaps& out = a.input_gradient;
    const bool channels_last = out.stride[1] == 1;
    for (int i = threadIdx.x; i < Tile::kRows * kColumns; i += kThreads) {
      const int row = channels_last ? i / kColumns : i % Tile::kRows, column = channels_last ? i % kColumns : i / Tile::kRows;
      const int pixel = first_pixel + row;
      if (pixel >= pixels || tile_channel + column >= piece) continue;
      store(tile[row * Tile::kOutStride + column],
            static_cast<T*>(out.data) + image * out.stride[0] + (first_channel + tile_channel + column) * out.stride[1] +
                pixel / int(a.width) * out.stride[2] + pixel % int(a.width) * out.stride[3]);
    }
  }
}

// Adds to product[n] the sum over some channels of a tile of a pixel's column gradients times corner n.
template <typename T, int kShare>
__device__ void add_products(const DeformConv2dArguments& a, const DeformSample<Accumulate<T>>& sample, int64_t image, int64_t channel, int count,
                             const Accumulate<T>* gradient, Accumulate<T>* product) {
  using A = Accumulate<T>;
  const T* source = static_cast<const T*>(a.packed_input) + image * a.height * a.width * a.channels + channel;
  const bool vectors = runs_fit<T>(source, a.channels);
  for (int first = int(threadIdx.x) % kShare * kRun; first < count; first += kShare * kRun) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (sample.corner[n] < 0) continue;
      A corner[kRun];
      load_part(source + sample.corner[n] * a.channels, first, count, vectors, corner);
#pragma unroll
      for (int i = 0; i < kRun; ++i)
        if (first + i < count) product[n] = multiply_add(gradient[first + i], corner[i], product[n]);
    }
  }
}

template <typename T, typename A>
__device__ void write_sample_gradient(const DeformConv2dArguments& a, const DeformSample<A>& sample, const A* product, int64_t image, int pixel,
                                      int64_t number) {
  const int row = pixel / int(a.out_width), column = pixel % int(a.out_width);
  if (a.offset_gradient.data != nullptr) {
    const DeformMaps& maps = a.offset_gradient;
    A* out = static_cast<A*>(maps.data) + image * maps.stride[0] + 2 * number * maps.stride[1] + row * maps.stride[2] + column * maps.stride[3];
    out[0] = sample.mask * deform_slope_y(product, sample.fraction_x);
    out[maps.stride[1]] = sample.mask * deform_slope_x(product, sample.fraction_y);
  }
  if (a.mask_gradient.data != nullptr) {
    const DeformMaps& maps = a.mask_gradient;
    A sum = A(0);
    for (int n = 0; n < 4; ++n) sum = multiply_add(sample.weight[n], product[n], sum);
    store(sum, static_cast<T*>(maps.data) + image * maps.stride[0] + number * maps.stride[1] + row * maps.stride[2] + column * maps.stride[3]);
  }
}

// A block has 128 output pixels (64 in double) and one tap of one offset group: it alone sums over the group's channels.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kThreads) sample_kernel(const DeformConv2dArguments a, int64_t pixel_tiles, int64_t total) {
  using A = Accumulate<T>;
  using Tile = MatrixTile<T, kColumns, false>;
  constexpr int kShare = kThreads / Tile::kRows;  // threads that share a pixel
  alignas(128) __shared__ char shared[Tile::kSharedBytes];
  const int piece = int(piece_channels(a)), pixels = int(a.out_height * a.out_width), outputs = int(a.outputs / a.groups), taps = int(deform_taps(a));
  const int64_t group_channels = a.channels / a.groups, shared_channels = a.channels / a.offset_groups;
  for (int64_t index = blockIdx.x; index < total; index += gridDim.x) {
    const int64_t number = index / pixel_tiles % (a.offset_groups * taps), image = index / (pixel_tiles * a.offset_groups * taps);
    const int first_pixel = int(index % pixel_tiles) * Tile::kRows, tap = int(number % taps), own_row = int(threadIdx.x) / kShare;
    const int own_pixel = min(first_pixel + own_row, pixels - 1);
    const DeformSample<A> sample = deform_sample<T>(a, image, own_pixel, tap, int(number / taps));
    A product[4] = {};
    const int64_t begin = number / taps * shared_channels;
    for (int64_t channel = begin; channel < begin + shared_channels; channel += piece) {
      const int64_t group = channel / group_channels;
      const T* weight = static_cast<const T*>(a.packed_weight) + (group * outputs * taps + tap) * group_channels + channel % group_channels;
      const T* gradient = static_cast<const T*>(a.packed_gradient) + image * pixels * a.outputs + group * outputs;
      const bool whole = runs_fit<T>(gradient, outputs) && a.outputs % kRun == 0, vectors = runs_fit<T>(weight, group_channels);
      for (int first = 0; first < piece; first += kColumns) {
        const A* tile = Tile::product(
            outputs,
            [&](int row, int k, A* values) { load_part(gradient + min(first_pixel + row, pixels - 1) * a.outputs, k, outputs, whole, values); },
            [&](int k, int column, A* values) {
              load_part(weight + int64_t(k) * taps * group_channels, first + column, k < outputs ? piece : 0, vectors, values);
            },
            shared);
        const A* own = tile + own_row * Tile::kOutStride;
        add_products<T, kShare>(a, sample, image, channel + first, min(kColumns, piece - first), own, product);
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n)
      for (int step = 1; step < kShare; step *= 2) product[n] += __shfl_xor_sync(0xffffffffu, product[n], step);
    if (threadIdx.x % kShare == 0 && first_pixel + own_row < pixels) write_sample_gradient<T>(a, sample, product, image, own_pixel, number);
  }
}

// A block has 128 columns (64 in double) and some outputs of a weight group, and a part of all output pixels: its sums are
// added to those of the other parts afterwards, in their order.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kThreads) weight_kernel(const DeformConv2dArguments a, int64_t column_tiles, int64_t output_tiles, int64_t total) {
  using A = Accumulate<T>;
  using Tile = MatrixTile<T, kColumns, true>;
  alignas(128) __shared__ char shared[Tile::kSharedBytes];
  const int outputs = int(a.outputs / a.groups), pixels = int(a.out_height * a.out_width), image_units = (pixels + kUnitPixels - 1) / kUnitPixels;
  for (int64_t index = blockIdx.x; index < total; index += gridDim.x) {
    const int64_t group = index / (output_tiles * column_tiles) % a.groups, split = index / (output_tiles * column_tiles * a.groups);
    const int first_output = int(index % output_tiles) * kColumns, first_column = int(index / output_tiles % column_tiles) * Tile::kRows;
    const int64_t units = a.batch * image_units, unit = split * units / a.splits;
    const int depth = int((split + 1) * units / a.splits - unit) * kUnitPixels;
    const DeformColumns<T> columns(a, group);
    const T* gradient = static_cast<const T*>(a.packed_gradient) + group * outputs;
    const bool vectors = runs_fit<T>(gradient, outputs) && a.outputs % kRun == 0;
    const auto pixel_of = [&](int k, int64_t* image) {
      const int64_t own = unit + k / kUnitPixels;
      *image = own / image_units;
      return int(own % image_units) * kUnitPixels + k % kUnitPixels;
    };
    const A* tile = Tile::product(
        depth,
        [&](int row, int k, A* values) {
          int64_t image;
          const int pixel = pixel_of(k, &image);
          columns(image < a.batch ? image : 0, min(pixel, pixels - 1), first_column + row, values);
        },
        [&](int k, int column, A* values) {
          int64_t image;
          const int pixel = pixel_of(k, &image);
          const bool exists = k < depth && pixel < pixels;
          load_part(gradient + (exists ? image * pixels + pixel : 0) * a.outputs, first_output + column, exists ? outputs : 0, vectors, values);
        },
        shared);
    A* sums = static_cast<A*>(a.weight_sums) + (split * a.groups + group) * columns.count * outputs;
    for (int i = threadIdx.x; i < Tile::kRows * kColumns; i += kThreads) {
      const int row = i / kColumns, column = i % kColumns;
      if (first_column + row < columns.count && first_output + column < outputs)
        sums[int64_t(first_column + row) * outputs + first_output + column] = tile[row * Tile::kOutStride + column];
    }
  }
}

template <typename T>
__global__ void weight_sum_kernel(const DeformConv2dArguments a, int64_t total) {
  using A = Accumulate<T>;
  const int64_t outputs = a.outputs / a.groups, channels = a.channels / a.groups, columns = channels * deform_taps(a);
  PYPOSEEXT_GRID_STRIDE(index, total) {
    const int64_t group = index / (columns * outputs), k = index / outputs % columns, output = group * outputs + index % outputs;
    A sum = A(0);
    for (int64_t split = 0; split < a.splits; ++split) sum += static_cast<const A*>(a.weight_sums)[split * total + index];
    const int64_t tap = k / channels;
    store(sum, static_cast<T*>(a.weight_gradient.data) + output * a.weight_gradient.stride[0] + k % channels * a.weight_gradient.stride[1] +
                   tap / a.kernel_width * a.weight_gradient.stride[2] + tap % a.kernel_width * a.weight_gradient.stride[3]);
  }
}

template <typename T>
void input_gradient(const DeformConv2dArguments& a, cudaStream_t queue) {
  const int64_t piece = piece_channels(a);
  dispatch_columns(piece, [&](auto columns) {
    constexpr int kColumns = decltype(columns)::value;
    const int64_t pixel_tiles = tiles(a.height * a.width, MatrixTile<T, kColumns, false>::kRows), channel_tiles = tiles(piece, kColumns);
    const int64_t total = a.batch * pixel_tiles * (a.channels / piece) * channel_tiles;
    input_kernel<T, kColumns><<<blocks_for(total, 1), kThreads, 0, queue>>>(a, pixel_tiles, channel_tiles, total);
  });
}

template <typename T>
void sample_gradient(const DeformConv2dArguments& a, cudaStream_t queue) {
  dispatch_columns(piece_channels(a), [&](auto columns) {
    constexpr int kColumns = decltype(columns)::value;
    const int64_t pixel_tiles = tiles(a.out_height * a.out_width, MatrixTile<T, kColumns, false>::kRows);
    const int64_t total = a.batch * pixel_tiles * a.offset_groups * deform_taps(a);
    sample_kernel<T, kColumns><<<blocks_for(total, 1), kThreads, 0, queue>>>(a, pixel_tiles, total);
  });
}

template <typename T>
void weight_gradient(const DeformConv2dArguments& a, cudaStream_t queue) {
  const int64_t outputs = a.outputs / a.groups, rows = a.channels / a.groups * deform_taps(a);
  dispatch_columns(outputs, [&](auto columns) {
    constexpr int kColumns = decltype(columns)::value;
    const int64_t column_tiles = tiles(rows, MatrixTile<T, kColumns, true>::kRows), output_tiles = tiles(outputs, kColumns);
    const int64_t total = a.splits * a.groups * column_tiles * output_tiles;
    weight_kernel<T, kColumns><<<blocks_for(total, 1), kThreads, 0, queue>>>(a, column_tiles, output_tiles, total);
  });
  const int64_t total = a.groups * rows * outputs;
  weight_sum_kernel<T><<<blocks_for(total), kThreads, 0, queue>>>(a, total);
}

}  // namespace

int64_t deform_conv2d_splits(const DeformConv2dArguments& a) {
  constexpr int64_t kBlocks = 1024, kMostSplits = 64;
  const int64_t units = a.batch * tiles(a.out_height * a.out_width, kUnitPixels);
  const int64_t others = a.groups * tiles(a.channels / a.groups * deform_taps(a), 128) * tiles(a.outputs / a.groups, 64);
  const int64_t wanted = kBlocks / others < 1 ? 1 : kBlocks / others < kMostSplits ? kBlocks / others : kMostSplits;
  return wanted < units ? wanted : units;
}

void deform_conv2d_cells(const DeformConv2dArguments& a, void* stream) {
  const int64_t total = a.batch * a.offset_groups * deform_taps(a) * a.out_height * a.out_width;
  if (a.dtype == DType::float64)
    cells_kernel<double><<<blocks_for(total), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, total);
  else
    cells_kernel<float><<<blocks_for(total), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, total);
  check_launch("deform_conv2d_cells");
}

void deform_conv2d_backward(const DeformConv2dArguments& a, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (a.input_gradient.data != nullptr) {
    const int64_t total = a.batch * a.offset_groups * deform_taps(a) * (deform_cell_count(a) + 1);
    begin_kernel<<<blocks_for(total), kThreads, 0, queue>>>(a, total);
  }
  dispatch_floating(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (a.input_gradient.data != nullptr) input_gradient<T>(a, queue);
    if (a.offset_gradient.data != nullptr || a.mask_gradient.data != nullptr) sample_gradient<T>(a, queue);
    if (a.weight_gradient.data != nullptr) weight_gradient<T>(a, queue);
  });
  check_launch("deform_conv2d_backward");
}

}  // namespace pyposeext::cuda
