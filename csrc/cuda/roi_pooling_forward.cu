// The forward of RoIAlign on the GPU: a block has one roi and frame and a slice of its channels. It first tabulates the
// merged weights of both axes in shared memory, and then reads every pixel that has weight, whole channels at a time.
#include "cuda/roi_pooling.cuh"

namespace pyposeext::cuda {
namespace {

constexpr int kTogether = 4;              // taps of an axis whose loads are in flight together
constexpr int64_t kSharedBytes = 47104;   // of the 48 KB that a block gets without asking; the rest is static
constexpr int64_t kRowBytes = 16384;      // of reduced rows that the kernel for planes keeps
constexpr int kPlanes = 16;               // channels of one block of the kernel for planes
constexpr int kBlocksPerMultiprocessor = 6;  // fewer, and the channels are cut into smaller slices

// A pixel of an axis, as its offset in the map in bytes, and the mean weight that a bin's samples give to it.
template <typename A>
struct alignas(16) Tap {
  int64_t offset;
  A weight;
};

// The taps of a bin: [begin, end), in a part of the table that has room for `room` of them, a multiple of kTogether.
// Those that are no taps weigh 0, so that loops can take kTogether at a time.
struct BinTaps {
  int begin, end, room;
};

// The tables of one roi in shared memory: taps of rows, taps of columns, and both axes' bins.
template <typename A>
struct TapTables {
  Tap<A>*y, *x;
  BinTaps *rows, *columns;
};

// What a launch decides for all its blocks.
struct ForwardPlan {
  int taps_y, taps_x;  // room of the tables
  int lanes;           // threads that share a bin (packed), or channels of a block (planes)
  int64_t slices;      // of the channels
  int row_elements;    // planes: room for reduced rows
  bool packed_output;
  size_t shared_bytes;
};

// Where a block reads: the level that its roi lies on, and the offset of its image and frame there. (A pointer would do,
// but what comes out of shared memory the compiler doesn't know to be global memory.)
struct Source {
  int64_t level, offset;
};

template <typename A>
__device__ TapTables<A> tables_in(unsigned char* shared, const RoiAlignArguments& a, const ForwardPlan& plan) {
  TapTables<A> tables;
  tables.y = reinterpret_cast<Tap<A>*>(shared);
  tables.x = tables.y + plan.taps_y;
  tables.rows = reinterpret_cast<BinTaps*>(tables.x + plan.taps_x);
  tables.columns = tables.rows + a.pooled_height;
  return tables;
}

// Samples lie in order along the axis, so at most two pixels can still get weight: `low` and the one after it. The sums
// run in the order of axis_weight, and have its bits.
template <typename A>
class TapWriter {
 public:
  __device__ TapWriter(Tap<A>* taps, int room, int64_t stride, A grid) : taps_(taps), room_(room), stride_(stride), grid_(grid) {}

  __device__ void add(const AxisSample<A>& sample) {
    if (sample.low == low_ + 1) {
      emit(low_, of_low_);
      of_low_ = of_high_;
      of_high_ = A(0);
    } else if (sample.low == low_ - 1) {
      emit(low_ + 1, of_high_);
      of_high_ = of_low_;
      of_low_ = A(0);
    } else if (sample.low != low_) {
      finish();
    }
    low_ = sample.low;
    of_low_ += A(1) - sample.fraction;
    of_high_ += sample.fraction;
  }

  __device__ int finish() {
    emit(low_, of_low_);
    emit(low_ + 1, of_high_);
    of_low_ = of_high_ = A(0);
    return count_;
  }

 private:
  __device__ void emit(int64_t pixel, A sum) {
    const A weight = sum == A(0) ? A(0) : sum / grid_;  // the grid is 0 where there are no samples
    if (weight == A(0) || count_ == room_) return;
    taps_[count_].offset = pixel * stride_;
    taps_[count_++].weight = weight;
  }

  Tap<A>* taps_;
  int room_, count_ = 0;
  int64_t stride_, low_ = -3;
  A grid_, of_low_ = A(0), of_high_ = A(0);
};

template <typename A>
__device__ int write_taps(const RoiAxis<A>& axis, int64_t bin, int64_t size, int64_t stride, Tap<A>* taps, int room) {
  TapWriter<A> writer(taps, room, stride, axis.grid);
  A first, last;
  sample_range(axis, bin, A(-1), A(size), &first, &last);
  for (A i = first; i < last; i += A(1)) {
    const AxisSample<A> sample = sample_axis(sample_position(axis, bin, i), size);
    if (sample.inside) writer.add(sample);
  }
  const int count = writer.finish();
  for (int i = count; i < room; ++i) taps[i] = {0, A(0)};
  return count;
}

__host__ __device__ constexpr int round_up(int taps) { return (taps + kTogether - 1) / kTogether * kTogether; }

// The box of a roi and frame, and the level it lies on.
template <typename A>
struct RoiView {
  int64_t image, level;
  const A* box;
};

template <typename A>
__device__ RoiView<A> view_of(const RoiAlignArguments& a, int64_t k, int64_t t) {
  return {roi_image<A>(a, k), roi_level<A>(a, k), roi_box<A>(a, k, t)};
}

// An axis of the roi. Without an image it has no samples.
template <typename A>
__device__ RoiAxis<A> axis_of(const RoiAlignArguments& a, const RoiView<A>& roi, bool vertical) {
  if (roi.image < 0) return {A(0), A(0), A(0)};
  const A from = roi.box[vertical ? 1 : 0], to = roi.box[vertical ? 3 : 2], scale = A(a.level[roi.level].scale);
  return roi_axis(from, to, scale, vertical ? a.pooled_height : a.pooled_width, a.sampling_ratio, a.aligned);
}

// Fills the tables with a thread for each bin of an axis, and ends with a barrier. Given a sampling ratio every bin has
// room for two taps a sample; the taps of an adaptive grid are packed as the bins' ranges of pixels ask for.
template <typename T>
__device__ void build_tables(const RoiAlignArguments& a, const ForwardPlan& plan, int64_t k, int64_t t, const TapTables<Accumulate<T>>& tables,
                             Source* source) {
  using A = Accumulate<T>;
  const int thread = threadIdx.x, rows = int(a.pooled_height), bins = rows + int(a.pooled_width);
  const bool adaptive = a.sampling_ratio <= 0;
  RoiView<A> roi{-1, 0, nullptr};
  if (thread < bins) roi = view_of<A>(a, k, t);
  const RoiLevel& level = a.level[roi.level];
  if (thread == 0) *source = {roi.level, roi.image < 0 ? 0 : roi.image * level.stride[0] + t * level.stride[2]};
  if (adaptive) {
    for (int i = thread; i < bins; i += kThreads) {
      int64_t first, last;
      const bool vertical = i < rows;
      pixel_range(axis_of(a, roi, vertical), vertical ? i : i - rows, 1, vertical ? level.height : level.width, &first, &last);
      tables.rows[i].room = round_up(int(last - first));
    }
    __syncthreads();
  }
  for (int i = thread; i < bins; i += kThreads) {
    const bool vertical = i < rows;
    const int bin = vertical ? i : i - rows, capacity = vertical ? plan.taps_y : plan.taps_x;
    BinTaps& taps = tables.rows[i];
    int begin = 0;
    if (adaptive) {
      for (int j = i - bin; j < i; ++j) begin += tables.rows[j].room;
    } else {
      taps.room = round_up(2 * int(a.sampling_ratio));
      begin = bin * taps.room;
    }
    // Never past the table, whatever rounding does to boxes far larger than the map.
    begin = min(begin, capacity);
    const int room = min(taps.room, capacity - begin);
    const int64_t size = vertical ? level.height : level.width, stride = level.stride[vertical ? 3 : 4] * int64_t(sizeof(T));
    taps.begin = begin;
    Tap<A>* of_axis = vertical ? tables.y : tables.x;
    taps.end = begin + write_taps(axis_of(a, roi, vertical), bin, size, stride, of_axis + begin, room);
  }
  __syncthreads();
}

template <typename T>
__device__ __forceinline__ const T* advance(const T* from, int64_t bytes) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(from) + bytes);
}

// One bin of Width channels. Two rows of kTogether pixels are in flight at a time; what has no weight is not read.
template <int Width, typename T, typename A>
__device__ __forceinline__ void sum_bin(const T* source, const TapTables<A>& tables, const BinTaps& rows, const BinTaps& columns, A* sum) {
  for (int i = rows.begin; i < rows.end; i += 2) {
    const A upper_weight = tables.y[i].weight, lower_weight = tables.y[i + 1].weight;
    const T *upper = advance(source, tables.y[i].offset), *lower = advance(source, tables.y[i + 1].offset);
    for (int j = columns.begin; j < columns.end; j += kTogether) {
      Word<T, Width> above[kTogether] = {}, below[kTogether] = {};
      A weight[kTogether];
#pragma unroll
      for (int u = 0; u < kTogether; ++u) {
        weight[u] = tables.x[j + u].weight;
        const int64_t offset = tables.x[j + u].offset;
        if (weight[u] != A(0)) above[u] = load_word<Width>(advance(upper, offset));
        if (weight[u] != A(0) && lower_weight != A(0)) below[u] = load_word<Width>(advance(lower, offset));
      }
#pragma unroll
      for (int u = 0; u < kTogether; ++u) {
        add_scaled<T, Width>(upper_weight * weight[u], above[u], sum);
        add_scaled<T, Width>(lower_weight * weight[u], below[u], sum);
      }
    }
  }
}

// Channels lie next to each other: `lanes` threads share a bin, each with Width of its channels.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : Width * sizeof(T) == 16 ? 3 : 4)
    packed_kernel(const __grid_constant__ RoiAlignArguments a, const ForwardPlan plan) {
  using A = Accumulate<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ Source source;
  const TapTables<A> tables = tables_in<A>(shared, a, plan);
  const int group = threadIdx.x / plan.lanes, lane = threadIdx.x - group * plan.lanes, groups = kThreads / plan.lanes;
  const int columns = int(a.pooled_width), bins = int(a.pooled_height) * columns;
  for (int64_t task = blockIdx.x; task < a.rois * a.frames; task += gridDim.x) {
    const int64_t k = a.frames == 1 ? task : task / a.frames, t = task - k * a.frames;
    build_tables<T>(a, plan, k, t, tables, &source);
    for (int64_t slice = blockIdx.y; slice < plan.slices; slice += gridDim.y) {
      const int64_t c = (slice * plan.lanes + lane) * Width;
      if (c >= a.channels) continue;
      const T* from = static_cast<const T*>(a.level[source.level].data) + source.offset + c;
      T* out = static_cast<T*>(a.pooled) + k * a.pooled_stride[0] + t * a.pooled_stride[2] + c * a.pooled_stride[1];
      for (int bin = group < groups ? group : bins; bin < bins; bin += groups) {
        const int p = bin / columns, q = bin - p * columns;
        A sum[Width] = {};
        sum_bin<Width>(from, tables, tables.rows[p], tables.columns[q], sum);
        T* at = out + p * a.pooled_stride[3] + q * a.pooled_stride[4];
        if (plan.packed_output) {
          store_word<Width>(sum, at);
        } else {
#pragma unroll
          for (int i = 0; i < Width; ++i) store(sum[i], at + i * a.pooled_stride[1]);
        }
      }
    }
    __syncthreads();  // before the next roi overwrites the tables
  }
}

// Reduces rows [first, first + count) of (channel, bin row) pairs along y, at every tap of the columns: neighbouring
// threads read neighbouring pixels of one row.
template <typename T, typename A>
__device__ void reduce_rows(const T* source, int64_t channel_stride, const TapTables<A>& tables, int bin_rows, int first, int count, int taps, A* reduced) {
  const int width = taps <= 8 ? 8 : taps <= 16 ? 16 : kWarp, lane = threadIdx.x & (width - 1);
  for (int r = threadIdx.x / width; r < count; r += kThreads / width) {
    const int channel = (first + r) / bin_rows, p = first + r - channel * bin_rows;
    const BinTaps rows = tables.rows[p];
    const T* plane = source + channel * channel_stride;
    for (int slot = lane; slot < taps; slot += width) {
      const Tap<A> column = tables.x[slot];
      if (column.weight == A(0)) continue;  // no tap: nobody reads this sum
      A sum = A(0);
      const T* top = advance(plane, column.offset);
      for (int i = rows.begin; i < rows.end; i += kTogether) {
        A value[kTogether] = {}, weight[kTogether];
#pragma unroll
        for (int u = 0; u < kTogether; ++u) {
          weight[u] = tables.y[i + u].weight;
          if (weight[u] != A(0)) value[u] = load(*advance(top, tables.y[i + u].offset));
        }
#pragma unroll
        for (int u = 0; u < kTogether; ++u) sum = multiply_add(weight[u], value[u], sum);
      }
      reduced[r * (taps | 1) + slot] = sum;
    }
  }
}

// Channels are planes, or have any strides: rows are reduced along y into shared memory, and from there along x, so that
// the threads of a warp read along a row of the map and write along the bins.
template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : sizeof(T) == 2 ? 3 : 4)
    planes_kernel(const __grid_constant__ RoiAlignArguments a, const ForwardPlan plan) {
  using A = Accumulate<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ Source source;
  const TapTables<A> tables = tables_in<A>(shared, a, plan);
  const int bin_rows = int(a.pooled_height), bin_columns = int(a.pooled_width);
  A* reduced = reinterpret_cast<A*>(shared + (plan.shared_bytes - plan.row_elements * sizeof(A)));
  for (int64_t task = blockIdx.x; task < a.rois * a.frames; task += gridDim.x) {
    const int64_t k = a.frames == 1 ? task : task / a.frames, t = task - k * a.frames;
    build_tables<T>(a, plan, k, t, tables, &source);
    const BinTaps last = tables.columns[bin_columns - 1];
    const int taps = min(last.begin + last.room, plan.taps_x), at_once = plan.row_elements / (taps | 1);
    for (int64_t slice = blockIdx.y; slice < plan.slices; slice += gridDim.y) {
      const int64_t c = slice * plan.lanes;
      const int rows = int(min(int64_t(plan.lanes), a.channels - c)) * bin_rows;
      const RoiLevel& level = a.level[source.level];
      const T* from = static_cast<const T*>(level.data) + source.offset + c * level.stride[1];
      T* out = static_cast<T*>(a.pooled) + k * a.pooled_stride[0] + c * a.pooled_stride[1] + t * a.pooled_stride[2];
      for (int first = 0; first < rows; first += at_once) {
        const int count = min(at_once, rows - first);
        reduce_rows<T>(from, level.stride[1], tables, bin_rows, first, count, taps, reduced);
        __syncthreads();
        for (int item = threadIdx.x; item < count * bin_columns; item += kThreads) {
          const int r = item / bin_columns, q = item - r * bin_columns;
          const int channel = (first + r) / bin_rows, p = first + r - channel * bin_rows;
          const BinTaps columns = tables.columns[q];
          A sum = A(0);
          for (int j = columns.begin; j < columns.end; ++j) sum = multiply_add(tables.x[j].weight, reduced[r * (taps | 1) + j], sum);
          store(sum, out + channel * a.pooled_stride[1] + p * a.pooled_stride[3] + q * a.pooled_stride[4]);
        }
        __syncthreads();  // before the rows are overwritten
      }
    }
  }
}

// For tables that shared memory cannot hold: every thread computes an element from its samples.
template <typename T>
__global__ void direct_kernel(const __grid_constant__ RoiAlignArguments a, int64_t total) {
  using A = Accumulate<T>;
  PYPOSEEXT_GRID_STRIDE(element, total) {
    const int64_t q = element % a.pooled_width, p = element / a.pooled_width % a.pooled_height;
    int64_t rest = element / (a.pooled_width * a.pooled_height);
    const int64_t t = rest % a.frames, c = rest / a.frames % a.channels, k = rest / (a.frames * a.channels);
    const RoiView<A> roi = view_of<A>(a, k, t);
    A sum = A(0);
    if (roi.image >= 0) {
      const RoiLevel& level = a.level[roi.level];
      const RoiAxis<A> y = axis_of(a, roi, true), x = axis_of(a, roi, false);
      const T* source = static_cast<const T*>(level.data) + roi.image * level.stride[0] + c * level.stride[1] + t * level.stride[2];
      int64_t first_y, last_y, first_x, last_x;
      pixel_range(y, p, 1, level.height, &first_y, &last_y);
      pixel_range(x, q, 1, level.width, &first_x, &last_x);
      for (int64_t i = first_y; i < last_y; ++i) {
        const A row_weight = axis_weight(y, p, i, level.height);
        if (row_weight == A(0)) continue;
        for (int64_t j = first_x; j < last_x; ++j) {
          const A weight = row_weight * axis_weight(x, q, j, level.width);
          if (weight != A(0)) sum = multiply_add(weight, A(load(source[i * level.stride[3] + j * level.stride[4]])), sum);
        }
      }
    }
    store(sum, static_cast<T*>(a.pooled) + k * a.pooled_stride[0] + c * a.pooled_stride[1] + t * a.pooled_stride[2] + p * a.pooled_stride[3] +
                   q * a.pooled_stride[4]);
  }
}

// Room for one axis's taps in the worst case: two a sample, or, of an adaptive grid, every pixel once and the overlap of
// neighbouring bins' ranges; and what rounding up adds.
int64_t table_room(const RoiAlignArguments& a, int64_t bins, bool vertical) {
  if (a.sampling_ratio > 0) return a.sampling_ratio > kSharedBytes ? kSharedBytes : round_up(2 * int(a.sampling_ratio)) * bins;
  int64_t size = 0;
  for (int64_t l = 0; l < a.levels; ++l) {
    const int64_t of_level = vertical ? a.level[l].height : a.level[l].width;
    if (of_level > size) size = of_level;
  }
  const int64_t room = (size < (1 << 30) ? size : (1 << 30)) + (3 + kTogether) * bins + 2 * kTogether;
  return room / kTogether * kTogether;
}

// Cuts the channels so finely that the blocks of few rois still fill the device, but not below `smallest` units.
int64_t slice_size(const RoiAlignArguments& a, int64_t units, int64_t largest, int64_t smallest) {
  const int64_t wanted = int64_t(multiprocessors()) * kBlocksPerMultiprocessor, tasks = a.rois * a.frames;
  int64_t size = largest;
  while (size > smallest && tasks * divide_up(units, size) < wanted) size /= 2;
  return divide_up(units, divide_up(units, size));  // of equal slices, none nearly empty
}

dim3 grid_of(const RoiAlignArguments& a, const ForwardPlan& plan) {
  return dim3(blocks_for(a.rois * a.frames, 1), unsigned(plan.slices < 65535 ? plan.slices : 65535));
}

template <typename T, int Width>
void launch_packed(const RoiAlignArguments& a, ForwardPlan plan, cudaStream_t stream) {
  const int64_t units = a.channels / Width;
  // Adaptive grids make the tasks of large boxes long: fewer lanes a bin let a block work on more bins at once.
  plan.lanes = int(slice_size(a, units, a.sampling_ratio > 0 ? kWarp : kWarp / 2, 8));
  plan.slices = divide_up(units, plan.lanes);
  plan.packed_output = is_packed(a.pooled, a.pooled_stride, a.channels, Width, sizeof(T));
  packed_kernel<T, Width><<<grid_of(a, plan), kThreads, plan.shared_bytes, stream>>>(a, plan);
}

template <typename T>
void launch_planes(const RoiAlignArguments& a, ForwardPlan plan, cudaStream_t stream) {
  using A = Accumulate<T>;
  const int64_t longest = plan.taps_x | 1, rows = kRowBytes / int64_t(sizeof(A));
  plan.row_elements = int(longest > rows ? longest : rows);
  plan.shared_bytes += plan.row_elements * sizeof(A);
  plan.lanes = int(slice_size(a, a.channels, kPlanes, 4));
  plan.slices = divide_up(a.channels, plan.lanes);
  planes_kernel<T><<<grid_of(a, plan), kThreads, plan.shared_bytes, stream>>>(a, plan);
}

template <typename T>
void launch(const RoiAlignArguments& a, int64_t total, cudaStream_t stream) {
  using A = Accumulate<T>;
  constexpr int kFull = 16 / sizeof(T), kHalf = kFull / 2;
  const int64_t taps_y = table_room(a, a.pooled_height, true), taps_x = table_room(a, a.pooled_width, false);
  const int64_t bins = a.pooled_height + a.pooled_width, bin_bytes = divide_up(bins * int64_t(sizeof(BinTaps)), 16) * 16;
  const int64_t bytes = (taps_y + taps_x) * int64_t(sizeof(Tap<A>)) + bin_bytes, row_bytes = (taps_x + 1) * int64_t(sizeof(A));
  if (bytes + (row_bytes > kRowBytes ? row_bytes : kRowBytes) > kSharedBytes || a.pooled_height * a.pooled_width > (1 << 24)) {
    direct_kernel<T><<<blocks_for(total), kThreads, 0, stream>>>(a, total);
    return;
  }
  ForwardPlan plan{int(taps_y), int(taps_x), 0, 0, 0, false, size_t(bytes)};
  if (a.channels == 1 || !levels_are_packed(a, 1, sizeof(T)))
    launch_planes<T>(a, plan, stream);
  else if (levels_are_packed(a, kFull, sizeof(T)))
    launch_packed<T, kFull>(a, plan, stream);
  else if (levels_are_packed(a, kHalf, sizeof(T)))
    launch_packed<T, kHalf>(a, plan, stream);
  else
    launch_packed<T, 1>(a, plan, stream);
}

}  // namespace

void roi_pooling_forward(const RoiAlignArguments& a, void* stream) {
  const int64_t total = a.rois * a.channels * a.frames * a.pooled_height * a.pooled_width;
  if (total == 0) return;
  dispatch_floating(a.dtype, [&](auto zero) { launch<decltype(zero)>(a, total, static_cast<cudaStream_t>(stream)); });
  check_launch("roi_pooling_forward");
}

}  // namespace pyposeext::cuda
