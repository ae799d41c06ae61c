// The backward of RoIAlign on the GPU, without atomics: a block owns a tile of pixels and a slice of channels of one
// map, adds up what the rois that reach the tile give to it, in a fixed order, and writes every pixel once.
#include "cuda/roi_pooling.cuh"

namespace pyposeext::cuda {
namespace {

constexpr int kTile = 8;                    // pixels of a tile's side; a thread has one row of them
constexpr int kRoisTogether = 16;           // whose weights a block tabulates at a time
constexpr int kBinsTogether = 4;            // of a row of bins, whose loads are in flight together
constexpr int kGroupThreads = 1024;
constexpr int64_t kSharedBytes = 40960;     // of the 48 KB that a block gets without asking; the rest is static
constexpr int kBlocksPerMultiprocessor = 8;  // fewer, and a level's tiles are cut into smaller slices of channels

// The tiles [first, last) of both axes that a roi's box reaches on its level.
struct alignas(16) TileBox {
  int32_t first_y, last_y, first_x, last_x;
};

struct Span {
  int64_t begin, end;
};

// What describe_kernel and group_kernel find out for tile_kernel. A map is one level and image, all frames: number
// level * batch + image.
struct WorkList {
  TileBox* box;    // [rois, frames]
  int64_t* map;    // [rois]: the map a roi lies on, or -1
  int64_t* order;  // [rois]: rois map by map, rising within each
  Span* span;      // [maps]: where each map's rois stand in `order`
};

WorkList work_list(const RoiAlignArguments& a) {
  WorkList list;
  list.box = static_cast<TileBox*>(a.scratch);
  list.map = reinterpret_cast<int64_t*>(list.box + a.rois * a.frames);
  list.order = list.map + a.rois;
  list.span = reinterpret_cast<Span*>(list.order + a.rois);
  return list;
}

// How a level is cut into blocks. The coarsest level comes first: its tiles have the most rois and take longest.
struct LevelPlan {
  int64_t first_block, tiles_y, tiles_x, slices;
  int lanes;  // threads with neighbouring channels, a power of two up to a warp
};

struct BackwardPlan {
  LevelPlan level[kMaximumRoiLevels];
  int64_t blocks;
  int rois_together;
  size_t shared_bytes;
};

// A block's share: tile (y, x) of one map and frame, and `lanes` threads' channels from c on.
struct Tile {
  int64_t level, image, frame, y, x, c;
  int lanes;
  Span rois;
};

template <typename A>
__device__ RoiAxis<A> axis_of(const RoiAlignArguments& a, const RoiLevel& level, int64_t k, int64_t t, bool vertical) {
  const A* box = roi_box<A>(a, k, t);
  const A from = box[vertical ? 1 : 0], to = box[vertical ? 3 : 2];
  return roi_axis(from, to, A(level.scale), vertical ? a.pooled_height : a.pooled_width, a.sampling_ratio, a.aligned);
}

template <typename A>
__global__ void describe_kernel(const __grid_constant__ RoiAlignArguments a, const WorkList list) {
  PYPOSEEXT_GRID_STRIDE(index, a.rois * a.frames) {
    const int64_t k = index / a.frames, t = index % a.frames, image = roi_image<A>(a, k), l = roi_level<A>(a, k);
    const RoiLevel& level = a.level[l];
    if (t == 0) list.map[k] = image < 0 ? -1 : l * a.batch + image;
    int64_t first_y, last_y, first_x, last_x;
    pixel_range(axis_of<A>(a, level, k, t, true), 0, a.pooled_height, level.height, &first_y, &last_y);
    pixel_range(axis_of<A>(a, level, k, t, false), 0, a.pooled_width, level.width, &first_x, &last_x);
    list.box[index] = {int32_t(first_y / kTile), int32_t(divide_up(last_y, kTile)), int32_t(first_x / kTile), int32_t(divide_up(last_x, kTile))};
  }
}

// The rank of this thread among the block's threads whose `mine` is set, and their number. `warp_count` holds an int for
// each warp; a barrier must come before it is used again.
template <int Threads>
__device__ int rank_in_block(bool mine, int* warp_count, int* count) {
  const int thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp;
  const unsigned ballot = __ballot_sync(0xffffffffu, mine);
  if (lane == 0) warp_count[warp] = __popc(ballot);
  __syncthreads();
  int rank = __popc(ballot & ((1u << lane) - 1));
  *count = 0;
  for (int w = 0; w < Threads / kWarp; ++w) {
    if (w < warp) rank += warp_count[w];
    *count += warp_count[w];
  }
  return rank;
}

// A block for each map: it counts the rois of the maps before it, and writes its own from there on in their order.
__global__ void group_kernel(const WorkList list, int64_t rois, int64_t maps) {
  __shared__ int64_t earlier[kGroupThreads / kWarp];
  __shared__ int warp_count[kGroupThreads / kWarp];
  const int thread = threadIdx.x;
  for (int64_t map = blockIdx.x; map < maps; map += gridDim.x) {
    int64_t before = 0;
    for (int64_t k = thread; k < rois; k += kGroupThreads) before += list.map[k] >= 0 && list.map[k] < map;
    for (int step = kWarp / 2; step > 0; step /= 2) before += __shfl_xor_sync(0xffffffffu, before, step);
    if (thread % kWarp == 0) earlier[thread / kWarp] = before;
    __syncthreads();
    int64_t end = 0;
    for (int w = 0; w < kGroupThreads / kWarp; ++w) end += earlier[w];
    const int64_t begin = end;
    for (int64_t first = 0; first < rois; first += kGroupThreads) {
      const int64_t k = first + thread;
      const bool mine = k < rois && list.map[k] == map;
      int count;
      const int rank = rank_in_block<kGroupThreads>(mine, warp_count, &count);
      if (mine) list.order[end + rank] = k;
      end += count;
      __syncthreads();  // before the next count
    }
    if (thread == 0) list.span[map] = {begin, end};
    __syncthreads();  // before the next map's sums
  }
}

__device__ Tile tile_of(const RoiAlignArguments& a, const BackwardPlan& plan, const WorkList& list, int64_t block, int width) {
  Tile tile;
  tile.level = a.levels - 1;
  while (tile.level > 0 && block >= plan.level[tile.level - 1].first_block) --tile.level;
  const LevelPlan& level = plan.level[tile.level];
  int64_t rest = block - level.first_block;
  tile.x = rest % level.tiles_x;
  rest /= level.tiles_x;
  tile.y = rest % level.tiles_y;
  rest /= level.tiles_y;
  tile.c = rest % level.slices * level.lanes * width;
  rest /= level.slices;
  tile.frame = rest % a.frames;
  tile.image = rest / a.frames;
  tile.lanes = level.lanes;
  tile.rois = list.span[tile.level * a.batch + tile.image];
  return tile;
}

// The rois of list.order[begin ...] that reach the tile, at most one for each thread, in their order.
__device__ int list_rois(const RoiAlignArguments& a, const WorkList& list, const Tile& tile, int64_t begin, int64_t* listed, int* warp_count) {
  const int64_t at = begin + threadIdx.x;
  bool mine = false;
  int64_t k = 0;
  if (at < tile.rois.end) {
    k = list.order[at];
    const TileBox box = list.box[k * a.frames + tile.frame];
    mine = tile.y >= box.first_y && tile.y < box.last_y && tile.x >= box.first_x && tile.x < box.last_x;
  }
  int count;
  const int rank = rank_in_block<kThreads>(mine, warp_count, &count);
  if (mine) listed[rank] = k;
  __syncthreads();
  return count;
}

// The bins of a roi that have weight in the tile: rows [first_p, last_p), columns [first_q, last_q).
struct Reach {
  int first_p, last_p, first_q, last_q;
};

__device__ int place_in_tile(int64_t offset) { return offset >= 0 && offset < kTile ? int(offset) : -1; }

// What one bin's samples give to the kTile pixels of an axis from `pixel` on: axis_weight of each, in one pass.
template <typename A>
__device__ bool tile_weights(const RoiAxis<A>& axis, int64_t bin, int64_t pixel, int64_t size, A* weight) {
  A sum[kTile] = {}, first, last;
  sample_range(axis, bin, A(pixel - 1), A(pixel + kTile), &first, &last);
  for (A i = first; i < last; i += A(1)) {
    const AxisSample<A> sample = sample_axis(sample_position(axis, bin, i), size);
    if (!sample.inside) continue;
    const int low = place_in_tile(sample.low - pixel), high = sample.high == sample.low ? -1 : place_in_tile(sample.high - pixel);
#pragma unroll
    for (int d = 0; d < kTile; ++d) {
      if (low == d) sum[d] += A(1) - sample.fraction;
      if (high == d) sum[d] += sample.fraction;
    }
  }
  bool any = false;
#pragma unroll
  for (int d = 0; d < kTile; ++d) {
    weight[d] = axis.grid > A(0) ? sum[d] / axis.grid : A(0);
    any = any || weight[d] != A(0);
  }
  return any;
}

// Tabulates both axes of `count` rois: weights[roi][bin][pixel], rows of bins first. Ends with a barrier.
template <typename A>
__device__ void build_weights(const RoiAlignArguments& a, const Tile& tile, const int64_t* rois, int count, A* weights, Reach* reach) {
  const RoiLevel& level = a.level[tile.level];
  const int rows = int(a.pooled_height), bins = rows + int(a.pooled_width), thread = threadIdx.x;
  if (thread < count) reach[thread] = {rows, 0, bins - rows, 0};
  __syncthreads();
  for (int item = thread; item < count * bins; item += kThreads) {
    const int i = item / bins, bin = item - i * bins;
    const bool vertical = bin < rows;
    const int at = vertical ? bin : bin - rows;
    const RoiAxis<A> axis = axis_of<A>(a, level, rois[i], tile.frame, vertical);
    const int64_t pixel = (vertical ? tile.y : tile.x) * kTile, size = vertical ? level.height : level.width;
    if (!tile_weights(axis, at, pixel, size, weights + item * kTile)) continue;
    atomicMin(vertical ? &reach[i].first_p : &reach[i].first_q, at);
    atomicMax(vertical ? &reach[i].last_p : &reach[i].last_q, at + 1);
  }
  __syncthreads();
}

// Adds what one roi gives to the thread's row of pixels, in Width channels. `gradient` is bin (first_p, 0); bins lie
// row_stride and column_stride apart. A pixel without weight takes nothing, also where the gradient is infinite.
template <int Width, typename G, typename A>
__device__ __forceinline__ void add_roi(const A* weights, int rows, const Reach& reach, int row, const G* gradient, int64_t row_stride,
                                        int64_t column_stride, A (*sum)[Width]) {
  const A* columns = weights + rows * kTile;
  for (int q = reach.first_q; q < reach.last_q; q += kBinsTogether) {
    A reduced[kBinsTogether][Width] = {};
    bool any = false;
    for (int p = reach.first_p; p < reach.last_p; ++p) {
      const A weight = weights[p * kTile + row];
      if (weight == A(0)) continue;
      any = true;
      const G* bin = gradient + (p - reach.first_p) * row_stride + q * column_stride;
      Word<G, Width> word[kBinsTogether] = {};
#pragma unroll
      for (int u = 0; u < kBinsTogether; ++u)
        if (q + u < reach.last_q) word[u] = load_word<Width>(bin + u * column_stride);
#pragma unroll
      for (int u = 0; u < kBinsTogether; ++u) add_scaled<G, Width>(weight, word[u], reduced[u]);
    }
    if (!any) continue;
#pragma unroll
    for (int u = 0; u < kBinsTogether; ++u) {
      if (q + u >= reach.last_q) break;
#pragma unroll
      for (int d = 0; d < kTile; ++d) {
        const A weight = columns[(q + u) * kTile + d];
        if (weight == A(0)) continue;
#pragma unroll
        for (int i = 0; i < Width; ++i) sum[d][i] = multiply_add(weight, reduced[u][i], sum[d][i]);
      }
    }
  }
}

// Copies the bins of a roi that reach the tile to staged[lane][bin], a group of threads for the roi, so that they are
// read along the bins where these lie next to each other.
template <typename T, typename A>
__device__ void stage(const RoiAlignArguments& a, const Tile& tile, int64_t k, const Reach& reach, int thread, int threads, int bin_stride, A* staged) {
  const int columns = int(a.pooled_width), bins = (reach.last_p - reach.first_p) * columns;
  const int channels = int(min(int64_t(tile.lanes), a.channels - tile.c));
  const T* source = static_cast<const T*>(a.pooled) + k * a.pooled_stride[0] + tile.c * a.pooled_stride[1] + tile.frame * a.pooled_stride[2];
  const bool channels_inside = a.pooled_stride[1] == 1 && channels > 1;
  for (int item = thread; item < channels * bins; item += threads) {
    const int c = channels_inside ? item % channels : item / bins, bin = channels_inside ? item / channels : item - c * bins;
    const int p = bin / columns, q = bin - p * columns;
    const int64_t offset = c * a.pooled_stride[1] + (reach.first_p + p) * a.pooled_stride[3] + q * a.pooled_stride[4];
    staged[c * bin_stride + bin] = load(source[offset]);
  }
}

// Adds the sums of the block's groups of threads, which had a share of the rois each, in the order of the groups.
template <int Width, typename A>
__device__ void add_groups(int group, int groups, int member, int members, A* shared, A (*sum)[Width]) {
  for (int g = 1; g < groups; ++g) {
    if (group == g)
      for (int d = 0; d < kTile; ++d)
        for (int i = 0; i < Width; ++i) shared[(d * Width + i) * members + member] = sum[d][i];
    __syncthreads();
    if (group == 0)
      for (int d = 0; d < kTile; ++d)
        for (int i = 0; i < Width; ++i) sum[d][i] += shared[(d * Width + i) * members + member];
    __syncthreads();
  }
}

// Group 0 writes the tile. Staged sums go through shared memory, so that neighbouring threads write neighbouring elements
// in either layout.
template <typename T, int Width, bool Staged, typename A>
__device__ void write_tile(const RoiAlignArguments& a, const Tile& tile, int group, int row, int lane, A* shared, const A (*sum)[Width]) {
  const RoiLevel& level = a.level[tile.level];
  const int64_t y0 = tile.y * kTile, x0 = tile.x * kTile;
  T* out = static_cast<T*>(level.data) + tile.image * level.stride[0] + tile.c * level.stride[1] + tile.frame * level.stride[2];
  if constexpr (!Staged) {
    if (group > 0 || tile.c + lane * Width >= a.channels || y0 + row >= level.height) return;
    out += lane * Width * level.stride[1] + (y0 + row) * level.stride[3];
#pragma unroll
    for (int d = 0; d < kTile; ++d)
      if (x0 + d < level.width) store_word<Width>(sum[d], out + (x0 + d) * level.stride[4]);
  } else {
    constexpr int kPixels = kTile * kTile, kStride = kPixels + 1;
    if (group == 0)
#pragma unroll
      for (int d = 0; d < kTile; ++d) shared[lane * kStride + row * kTile + d] = sum[d][0];
    __syncthreads();
    const bool channels_inside = level.stride[1] == 1 && tile.lanes > 1;
    for (int item = threadIdx.x; item < kPixels * tile.lanes; item += kThreads) {
      const int i = channels_inside ? item % tile.lanes : item / kPixels, pixel = channels_inside ? item / tile.lanes : item % kPixels;
      const int64_t y = y0 + pixel / kTile, x = x0 + pixel % kTile;
      if (tile.c + i < a.channels && y < level.height && x < level.width)
        store(shared[i * kStride + pixel], out + i * level.stride[1] + y * level.stride[3] + x * level.stride[4]);
    }
  }
}

// Staged: channels are planes, or have any strides; then Width is 1, and gradients pass through shared memory on their
// way in and out. Otherwise they are read and written in place, Width channels at a time.
template <typename T, int Width, bool Staged>
__global__ void __launch_bounds__(kThreads, 2) tile_kernel(const __grid_constant__ RoiAlignArguments a, const __grid_constant__ BackwardPlan plan,
                                                           const WorkList list) {
  using A = Accumulate<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ int64_t listed[kThreads];
  __shared__ int warp_count[kThreads / kWarp];
  __shared__ Reach reach[kRoisTogether];
  __shared__ Tile tile;
  const int rows = int(a.pooled_height), bins = rows + int(a.pooled_width), bin_stride = rows * (bins - rows) | 1;
  A *weights = reinterpret_cast<A*>(shared), *staged = weights + plan.rois_together * bins * kTile;
  for (int64_t block = blockIdx.x; block < plan.blocks; block += gridDim.x) {
    if (threadIdx.x == 0) tile = tile_of(a, plan, list, block, Width);
    __syncthreads();
    // A group of threads has all of the tile's rows; the groups take turns with the rois.
    const int lanes = tile.lanes, members = kTile * lanes, groups = kThreads / members;
    const int group = threadIdx.x / members, member = threadIdx.x % members, row = member / lanes, lane = member % lanes;
    const int64_t c = tile.c + lane * Width;
    const T* gradient = static_cast<const T*>(a.pooled) + c * a.pooled_stride[1] + tile.frame * a.pooled_stride[2];
    A sum[kTile][Width] = {};
    for (int64_t begin = tile.rois.begin; begin < tile.rois.end; begin += kThreads) {
      const int count = list_rois(a, list, tile, begin, listed, warp_count);
      for (int first = 0; first < count; first += plan.rois_together) {
        const int together = min(plan.rois_together, count - first);
        build_weights(a, tile, listed + first, together, weights, reach);
        for (int step = 0; step < together; step += groups) {
          const int i = step + group;
          const A* table = weights + i * bins * kTile;
          if constexpr (Staged) {
            A* mine = staged + group * lanes * bin_stride;
            if (i < together) stage<T>(a, tile, listed[first + i], reach[i], member, members, bin_stride, mine);
            __syncthreads();
            if (i < together && c < a.channels)
              add_roi<1>(table, rows, reach[i], row, mine + lane * bin_stride, bins - rows, 1, sum);
            __syncthreads();  // before the next rois are staged
          } else if (i < together && c < a.channels) {
            const T* of_roi = gradient + listed[first + i] * a.pooled_stride[0] + reach[i].first_p * a.pooled_stride[3];
            add_roi<Width>(table, rows, reach[i], row, of_roi, a.pooled_stride[3], a.pooled_stride[4], sum);
          }
        }
        __syncthreads();  // before the next weights, and the next list
      }
    }
    add_groups<Width>(group, groups, member, members, weights, sum);
    write_tile<T, Width, Staged>(a, tile, group, row, lane, weights, sum);
    __syncthreads();  // before the next tile
  }
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

// For more bins than shared memory can tabulate: every thread computes an element from the weights it needs.
template <typename T>
__global__ void direct_kernel(const __grid_constant__ RoiAlignArguments a, const WorkList list, int64_t l, int64_t total) {
  using A = Accumulate<T>;
  const RoiLevel& level = a.level[l];
  PYPOSEEXT_GRID_STRIDE(element, total) {
    const int64_t x = element % level.width, y = element / level.width % level.height;
    int64_t rest = element / (level.width * level.height);
    const int64_t t = rest % a.frames, c = rest / a.frames % a.channels, image = rest / (a.frames * a.channels);
    const Span rois = list.span[l * a.batch + image];
    A sum = A(0);
    for (int64_t i = rois.begin; i < rois.end; ++i) {
      const int64_t k = list.order[i];
      const RoiAxis<A> rows = axis_of<A>(a, level, k, t, true), columns = axis_of<A>(a, level, k, t, false);
      const T* source = static_cast<const T*>(a.pooled) + k * a.pooled_stride[0] + c * a.pooled_stride[1] + t * a.pooled_stride[2];
      int64_t first_p, last_p, first_q, last_q;
      bin_range(rows, a.pooled_height, y, &first_p, &last_p);
      bin_range(columns, a.pooled_width, x, &first_q, &last_q);
      for (int64_t p = first_p; p < last_p; ++p) {
        const A row_weight = axis_weight(rows, p, y, level.height);
        if (row_weight == A(0)) continue;
        for (int64_t q = first_q; q < last_q; ++q) {
          const A weight = row_weight * axis_weight(columns, q, x, level.width);
          if (weight != A(0)) sum = multiply_add(weight, A(load(source[p * a.pooled_stride[3] + q * a.pooled_stride[4]])), sum);
        }
      }
    }
    store(sum, static_cast<T*>(level.data) + image * level.stride[0] + c * level.stride[1] + t * level.stride[2] + y * level.stride[3] +
                   x * level.stride[4]);
  }
}

template <typename A>
void fill_work_list(const RoiAlignArguments& a, const WorkList& list, cudaStream_t stream) {
  const int64_t maps = a.levels * a.batch;
  describe_kernel<A><<<blocks_for(a.rois * a.frames), kThreads, 0, stream>>>(a, list);
  group_kernel<<<blocks_for(maps, 1), kGroupThreads, 0, stream>>>(list, a.rois, maps);
}

// Cuts every level into tiles and slices of channels, so that all of them fill the device several times over: what a
// tile costs depends on where the rois lie.
BackwardPlan plan_of(const RoiAlignArguments& a, int width, size_t element_size, int64_t staged_bytes, int64_t rois_together) {
  BackwardPlan plan{};
  plan.rois_together = int(rois_together < kRoisTogether ? rois_together : kRoisTogether);
  const int64_t weight_bytes = plan.rois_together * (a.pooled_height + a.pooled_width) * kTile * int64_t(element_size);
  plan.shared_bytes = size_t(weight_bytes + staged_bytes);
  const int64_t units = divide_up(a.channels, width), wanted = int64_t(multiprocessors()) * kBlocksPerMultiprocessor;
  for (int64_t l = a.levels - 1; l >= 0; --l) {
    LevelPlan& level = plan.level[l];
    level.first_block = plan.blocks;
    level.tiles_y = divide_up(a.level[l].height, kTile);
    level.tiles_x = divide_up(a.level[l].width, kTile);
    const int64_t tiles = a.batch * a.frames * level.tiles_y * level.tiles_x;
    level.lanes = kWarp;
    while (level.lanes > 1 && level.lanes / 2 >= units) level.lanes /= 2;
    while (level.lanes > 8 && tiles * divide_up(units, level.lanes) < wanted) level.lanes /= 2;
    level.slices = divide_up(units, level.lanes);
    plan.blocks += tiles * level.slices;
    // The same memory then holds the sums of a group of threads, and the tile on its way out.
    const size_t sums = size_t(kTile * kTile * level.lanes * width) * element_size;
    const size_t tile = size_t((kTile * kTile + 1) * level.lanes) * element_size;
    if (plan.shared_bytes < sums) plan.shared_bytes = sums;
    if (staged_bytes > 0 && plan.shared_bytes < tile) plan.shared_bytes = tile;
  }
  return plan;
}

template <typename T, int Width, bool Staged>
void launch_tiles(const RoiAlignArguments& a, const WorkList& list, int64_t staged_bytes, int64_t rois_together, cudaStream_t stream) {
  const BackwardPlan plan = plan_of(a, Width, sizeof(Accumulate<T>), staged_bytes, rois_together);
  if (plan.blocks == 0) return;
  tile_kernel<T, Width, Staged><<<blocks_for(plan.blocks, 1), kThreads, plan.shared_bytes, stream>>>(a, plan, list);
}

template <typename T>
void launch(const RoiAlignArguments& a, cudaStream_t stream) {
  using A = Accumulate<T>;
  constexpr int kWide = sizeof(T) == 8 ? 2 : 4;  // more would not leave registers for a row of pixels
  const WorkList list = work_list(a);
  fill_work_list<A>(a, list, stream);
  const int64_t bins = a.pooled_height + a.pooled_width, size = sizeof(A), bytes_a_roi = bins * kTile * size;
  const int64_t staged_bytes = bins <= kSharedBytes ? kWarp * (a.pooled_height * a.pooled_width | 1) * size : kSharedBytes;
  const int64_t fitting = kSharedBytes / bytes_a_roi, fitting_staged = (kSharedBytes - staged_bytes) / bytes_a_roi;
  const bool packed = is_packed(a.pooled, a.pooled_stride, a.channels, 1, sizeof(T)) && levels_are_packed(a, 1, sizeof(T));
  if (fitting < 1) {
    for (int64_t l = 0; l < a.levels; ++l) {
      const int64_t total = a.batch * a.channels * a.frames * a.level[l].height * a.level[l].width;
      if (total > 0) direct_kernel<T><<<blocks_for(total), kThreads, 0, stream>>>(a, list, l, total);
    }
  } else if (packed && is_packed(a.pooled, a.pooled_stride, a.channels, kWide, sizeof(T)) && levels_are_packed(a, kWide, sizeof(T))) {
    launch_tiles<T, kWide, false>(a, list, 0, fitting, stream);
  } else if (fitting_staged >= 2 && (!packed || a.channels == 1)) {
    launch_tiles<T, 1, true>(a, list, staged_bytes, fitting_staged, stream);
  } else {
    launch_tiles<T, 1, false>(a, list, 0, fitting, stream);
  }
}

}  // namespace

void roi_pooling_backward(const RoiAlignArguments& a, void* stream) {
  dispatch_floating(a.dtype, [&](auto zero) { launch<decltype(zero)>(a, static_cast<cudaStream_t>(stream)); });
  check_launch("roi_pooling_backward");
}

}  // namespace pyposeext::cuda
