#include "ops/roi_pooling.h"

#include "common/cuda_launch.cuh"

namespace pyposeext::cuda {
namespace {

constexpr int kTile = 8;              // a backward block owns a tile of 8 x 8 pixels
constexpr int kLanes = 4;             // times 4 groups of channels: 256 threads
constexpr int kChannelsPerThread = 8;
constexpr int kChannelsPerBlock = kLanes * kChannelsPerThread;

// Sizes of the pooled tensor, and its dimensions from the one that moves slowest in memory to the fastest, so that
// neighbouring threads write neighbouring elements in either layout.
struct Traversal {
  int64_t size[5];
  int order[5];
};

Traversal traversal_of(const RoiAlignArguments& a) {
  Traversal traversal{{a.rois, a.channels, a.frames, a.pooled_height, a.pooled_width}, {0, 1, 2, 3, 4}};
  for (int i = 1; i < 5; ++i)  // insertion sort by falling stride; equal strides keep their order
    for (int j = i; j > 0 && a.pooled_stride[traversal.order[j]] > a.pooled_stride[traversal.order[j - 1]]; --j) {
      const int swapped = traversal.order[j];
      traversal.order[j] = traversal.order[j - 1];
      traversal.order[j - 1] = swapped;
    }
  return traversal;
}

template <typename T>
__global__ void forward_kernel(const RoiAlignArguments a, const Traversal traversal, int64_t total) {
  using A = Accumulate<T>;
  PYPOSEEXT_GRID_STRIDE(element, total) {
    int64_t at[5], rest = element;
    for (int i = 4; i >= 0; --i) {
      const int d = traversal.order[i];
      at[d] = rest % traversal.size[d];
      rest /= traversal.size[d];
    }
    const int64_t k = at[0], image = roi_image<A>(a, k);
    A sum = A(0);
    if (image >= 0) {
      const RoiLevel& level = a.level[roi_level<A>(a, k)];
      const A* box = roi_box<A>(a, k, at[2]);
      const RoiAxis<A> y = roi_axis(box[1], box[3], A(level.scale), a.pooled_height, a.sampling_ratio, a.aligned);
      const RoiAxis<A> x = roi_axis(box[0], box[2], A(level.scale), a.pooled_width, a.sampling_ratio, a.aligned);
      const T* source = static_cast<const T*>(level.data) + image * level.stride[0] + at[1] * level.stride[1] + at[2] * level.stride[2];
      A first_y, last_y, first_x, last_x;
      sample_range(y, at[3], A(-1), A(level.height), &first_y, &last_y);
      sample_range(x, at[4], A(-1), A(level.width), &first_x, &last_x);
      for (A i = first_y; i < last_y; i += A(1)) {
        const AxisSample<A> row = sample_axis(sample_position(y, at[3], i), level.height);
        if (!row.inside) continue;
        const T *top = source + row.low * level.stride[3], *bottom = source + row.high * level.stride[3];
        for (A j = first_x; j < last_x; j += A(1)) {
          const AxisSample<A> column = sample_axis(sample_position(x, at[4], j), level.width);
          if (!column.inside) continue;
          const int64_t left = column.low * level.stride[4], right = column.high * level.stride[4];
          const A upper = (A(1) - column.fraction) * A(load(top[left])) + column.fraction * A(load(top[right]));
          const A lower = (A(1) - column.fraction) * A(load(bottom[left])) + column.fraction * A(load(bottom[right]));
          sum += (A(1) - row.fraction) * upper + row.fraction * lower;
        }
      }
      if (y.grid > A(0) && x.grid > A(0)) sum /= y.grid * x.grid;
    }
    store(sum, static_cast<T*>(a.pooled) + k * a.pooled_stride[0] + at[1] * a.pooled_stride[1] + at[2] * a.pooled_stride[2] +
                   at[3] * a.pooled_stride[3] + at[4] * a.pooled_stride[4]);
  }
}

// Whether roi k of this level and image reaches the tile's pixels on both axes.
template <typename A>
__device__ bool reaches(const RoiAlignArguments& a, const RoiLevel& level, int64_t l, int64_t image, int64_t t, int64_t k, int64_t y0, int64_t x0) {
  if (roi_image<A>(a, k) != image || roi_level<A>(a, k) != l) return false;
  const A* box = roi_box<A>(a, k, t);
  int64_t first, last;
  pixel_range(roi_axis(box[1], box[3], A(level.scale), a.pooled_height, a.sampling_ratio, a.aligned), 0, a.pooled_height, level.height, &first, &last);
  if (first >= y0 + kTile || last <= y0) return false;
  pixel_range(roi_axis(box[0], box[2], A(level.scale), a.pooled_width, a.sampling_ratio, a.aligned), 0, a.pooled_width, level.width, &first, &last);
  return first < x0 + kTile && last > x0;
}

// The bins [*first, *last) of an axis whose samples can touch one pixel.
template <typename A>
__device__ void bin_range(const RoiAxis<A>& axis, int64_t bins, int64_t pixel, int64_t* first, int64_t* last) {
  *first = 0;
  *last = bins;
  if (!(axis.bin > A(0))) return;
  const A low = floor((A(pixel - 1) - axis.start) / axis.bin) - A(1), high = ceil((A(pixel + 1) - axis.start) / axis.bin) + A(1);
  if (low > A(0)) *first = low < A(bins) ? int64_t(low) : bins;
  if (high < A(bins)) *last = high > A(0) ? int64_t(high) : 0;
}

// What one roi gives to one pixel of kChannelsPerThread channels.
template <typename T, typename A>
__device__ void gather(const RoiAlignArguments& a, const RoiLevel& level, int64_t k, int64_t t, int64_t y, int64_t x, int64_t c, A* sum) {
  const A* box = roi_box<A>(a, k, t);
  const RoiAxis<A> rows = roi_axis(box[1], box[3], A(level.scale), a.pooled_height, a.sampling_ratio, a.aligned);
  const RoiAxis<A> columns = roi_axis(box[0], box[2], A(level.scale), a.pooled_width, a.sampling_ratio, a.aligned);
  int64_t first_p, last_p, first_q, last_q;
  bin_range(rows, a.pooled_height, y, &first_p, &last_p);
  bin_range(columns, a.pooled_width, x, &first_q, &last_q);
  const T* source = static_cast<const T*>(a.pooled) + k * a.pooled_stride[0] + c * a.pooled_stride[1] + t * a.pooled_stride[2];
  for (int64_t p = first_p; p < last_p; ++p) {
    const A wy = axis_weight(rows, p, y, level.height);
    if (wy == A(0)) continue;
    for (int64_t q = first_q; q < last_q; ++q) {
      const A w = wy * axis_weight(columns, q, x, level.width);
      if (w == A(0)) continue;
      const T* bin = source + p * a.pooled_stride[3] + q * a.pooled_stride[4];
#pragma unroll
      for (int i = 0; i < kChannelsPerThread; ++i)
        if (c + i < a.channels) sum[i] += w * A(load(bin[i * a.pooled_stride[1]]));
    }
  }
}

// A block owns one tile of one image, frame and slice of channels. It reads the rois in their order and adds up what
// they give to its pixels: no atomics, the same bits every time, and every pixel is written once.
template <typename T>
__global__ void backward_kernel(const RoiAlignArguments a, int64_t l, int64_t tiles_y, int64_t tiles_x, int64_t slices, int64_t total) {
  using A = Accumulate<T>;
  __shared__ int64_t listed[kThreads];
  __shared__ int warp_count[kThreads / 32];
  const RoiLevel& level = a.level[l];
  const int thread = threadIdx.x, pixel = thread % (kTile * kTile), warp = thread / 32;
  for (int64_t block = blockIdx.x; block < total; block += gridDim.x) {
    int64_t rest = block;
    const int64_t x0 = rest % tiles_x * kTile;
    rest /= tiles_x;
    const int64_t y0 = rest % tiles_y * kTile;
    rest /= tiles_y;
    const int64_t c = rest % slices * kChannelsPerBlock + thread / (kTile * kTile) * kChannelsPerThread;
    rest /= slices;
    const int64_t t = rest % a.frames, image = rest / a.frames;
    const int64_t y = y0 + pixel / kTile, x = x0 + pixel % kTile;
    const bool owns = y < level.height && x < level.width && c < a.channels;
    A sum[kChannelsPerThread] = {};
    for (int64_t begin = 0; begin < a.rois; begin += kThreads) {
      const int64_t k = begin + thread;
      const bool mine = k < a.rois && reaches<A>(a, level, l, image, t, k, y0, x0);
      const unsigned ballot = __ballot_sync(0xffffffffu, mine);
      if (thread % 32 == 0) warp_count[warp] = __popc(ballot);
      __syncthreads();
      int before = __popc(ballot & ((1u << (thread % 32)) - 1)), count = 0;
      for (int w = 0; w < kThreads / 32; ++w) {
        if (w < warp) before += warp_count[w];
        count += warp_count[w];
      }
      if (mine) listed[before] = k;
      __syncthreads();
      if (owns)
        for (int i = 0; i < count; ++i) gather<T>(a, level, listed[i], t, y, x, c, sum);
      __syncthreads();  // before the next chunk overwrites the list
    }
    if (!owns) continue;
    T* out = static_cast<T*>(level.data) + image * level.stride[0] + c * level.stride[1] + t * level.stride[2] + y * level.stride[3] + x * level.stride[4];
    for (int i = 0; i < kChannelsPerThread; ++i)
      if (c + i < a.channels) store(sum[i], out + i * level.stride[1]);
  }
}

}  // namespace

void roi_pooling_forward(const RoiAlignArguments& a, void* stream) {
  const int64_t total = a.rois * a.channels * a.frames * a.pooled_height * a.pooled_width;
  if (total == 0) return;
  dispatch_floating(a.dtype, [&](auto zero) {
    forward_kernel<decltype(zero)><<<blocks_for(total), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, traversal_of(a), total);
  });
  check_launch("roi_pooling_forward");
}

void roi_pooling_backward(const RoiAlignArguments& a, void* stream) {
  for (int64_t l = 0; l < a.levels; ++l) {
    const int64_t tiles_y = (a.level[l].height + kTile - 1) / kTile, tiles_x = (a.level[l].width + kTile - 1) / kTile;
    const int64_t slices = (a.channels + kChannelsPerBlock - 1) / kChannelsPerBlock;
    const int64_t total = a.batch * a.frames * slices * tiles_y * tiles_x;
    if (total == 0) continue;
    dispatch_floating(a.dtype, [&](auto zero) {
      backward_kernel<decltype(zero)>
          <<<blocks_for(total, 1), kTile * kTile * kLanes, 0, static_cast<cudaStream_t>(stream)>>>(a, l, tiles_y, tiles_x, slices, total);
    });
    check_launch("roi_pooling_backward");
  }
}

}  // namespace pyposeext::cuda
