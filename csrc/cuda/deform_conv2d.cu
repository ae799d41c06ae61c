#include "cuda/deform_conv2d.cuh"

namespace pyposeext::cuda {
namespace {

// A block has 128 output pixels of an image (64 in double) and some outputs of a weight group. The columns are the left
// factor, made of the input's corners as they are needed and never stored.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kThreads) forward_kernel(const DeformConv2dArguments a, int64_t pixel_tiles, int64_t output_tiles, int64_t total) {
  using A = Accumulate<T>;
  using Tile = MatrixTile<T, kColumns, false>;
  alignas(128) __shared__ char shared[Tile::kSharedBytes];
  const int outputs = int(a.outputs / a.groups), pixels = int(a.out_height * a.out_width);
  for (int64_t index = blockIdx.x; index < total; index += gridDim.x) {
    const int64_t group = index / output_tiles % a.groups, image = index / (output_tiles * a.groups * pixel_tiles);
    const int first_output = int(index % output_tiles) * kColumns;
    const int first_pixel = int(index / (output_tiles * a.groups) % pixel_tiles) * Tile::kRows;
    const DeformColumns<T> columns(a, group);
    const T* weight = static_cast<const T*>(a.packed_weight) + group * outputs;
    const bool vectors = runs_fit<T>(weight, outputs) && a.outputs % kRun == 0;
    const A* tile = Tile::product(
        columns.count,
        [&](int row, int k, A* values) { columns(image, min(first_pixel + row, pixels - 1), k, values); },
        [&](int k, int column, A* values) {
          const int tap = k / columns.channels, channel = k % columns.channels;
          const T* row = weight + (channel * deform_taps(a) + tap) * a.outputs;
          load_part(row, first_output + column, k < columns.count ? outputs : 0, vectors, values);
        },
        shared);
    const bool channels_last = a.out.stride[1] == 1;
    for (int i = threadIdx.x; i < Tile::kRows * kColumns; i += kThreads) {
      const int row = channels_last ? i / kColumns : i % Tile::kRows, column = channels_last ? i % kColumns : i / Tile::kRows;
      const int pixel = first_pixel + row, output = first_output + column;
      if (pixel >= pixels || output >= outputs) continue;
      const int64_t channel = group * outputs + output;
      A sum = tile[row * Tile::kOutStride + column];
      if (a.bias.data != nullptr) sum += load(static_cast<const T*>(a.bias.data)[channel * a.bias.stride[0]]);
      store(sum, static_cast<T*>(a.out.data) + image * a.out.stride[0] + channel * a.out.stride[1] + pixel / int(a.out_width) * a.out.stride[2] +
                     pixel % int(a.out_width) * a.out.stride[3]);
    }
  }
}

}  // namespace

void deform_conv2d_forward(const DeformConv2dArguments& a, void* stream) {
  dispatch_floating(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_columns(a.outputs / a.groups, [&](auto columns) {
      constexpr int kColumns = decltype(columns)::value;
      constexpr int64_t kRows = MatrixTile<T, kColumns, false>::kRows;
      const int64_t pixel_tiles = (a.out_height * a.out_width + kRows - 1) / kRows, output_tiles = (a.outputs / a.groups + kColumns - 1) / kColumns;
      const int64_t total = a.batch * pixel_tiles * a.groups * output_tiles;
      forward_kernel<T, kColumns><<<blocks_for(total, 1), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, pixel_tiles, output_tiles, total);
    });
  });
  check_launch("deform_conv2d_forward");
}

}  // namespace pyposeext::cuda
