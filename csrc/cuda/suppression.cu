// Greedy suppression on a GPU, all groups at once, with memory linear in N. Each group is cut into chunks of 1024 entries.
// One launch compares all entries of every chunk with each other. Then, a chunk at a time: a block for each group decides
// which entries stay, and a launch over all later entries removes what these suppress.
#include "common/cuda_launch.cuh"
#include "common/similarity.h"

namespace pyposeext::cuda {
namespace {

constexpr int kSlice = 128;       // positions in which one block looks for the beginnings of groups
constexpr int kWarpThreads = 32;  // also the bits of a word
static_assert(kWarpThreads == kWordBits);

__device__ int64_t rank_of(const SuppressionArguments& a, int64_t position) {
  return a.ranks == nullptr ? position : a.ranks[position];
}

// The first position whose group is not below (or, with `behind`, is above) the given one.
__device__ int64_t bound_of_group(const SuppressionArguments& a, int64_t group, bool behind) {
  int64_t low = 0, high = a.count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (a.sorted_groups[middle] < group || (behind && a.sorted_groups[middle] == group))
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

template <typename Similarity>
__global__ void gather_kernel(const SuppressionArguments a, const Similarity similarity) {
  PYPOSEEXT_GRID_STRIDE(position, a.count) {
    similarity.gather(a.order[rank_of(a, position)], static_cast<typename Similarity::Value*>(a.fields) + position, a.count);
    const bool grouped = a.sorted_groups != nullptr;
    a.begins[position] = grouped ? bound_of_group(a, a.sorted_groups[position], false) : 0;
    a.ends[position] = grouped ? bound_of_group(a, a.sorted_groups[position], true) : a.count;
    a.removed[position] = 0;
  }
}

// Whether the entry at position `row` suppresses the one at `column`.
template <typename Similarity>
__device__ bool suppresses(const SuppressionArguments& a, const Similarity& similarity, int64_t row, int64_t column) {
  using Value = typename Similarity::Value;
  const Value* fields = static_cast<const Value*>(a.fields);
  return similarity.template suppressed<Value>(fields + row, a.count, fields + column, a.count, 1) != 0;
}

// A thread has a column and one word of its chunk's rows (blockIdx.y). Words that hold no earlier row are not written.
template <typename Similarity>
__global__ void mask_kernel(const SuppressionArguments a, const Similarity similarity) {
  PYPOSEEXT_GRID_STRIDE(column, a.count) {
    const int64_t chunk = column - (column - a.begins[column]) % kChunk, begin = chunk + blockIdx.y * kWordBits;
    if (begin >= column) continue;
    const int64_t end = begin + kWordBits < column ? begin + kWordBits : column;
    uint32_t bits = 0;
    for (int64_t row = begin; row < end; ++row)
      if (suppresses(a, similarity, row, column)) bits |= uint32_t(1) << (row - begin);
    a.mask[blockIdx.y * a.count + column] = bits;
  }
}

// Decides the chunk that begins at `chunk`, a thread for each entry: one that a kept entry suppresses goes, one that only
// removed entries suppress is kept, the others wait for the next round. The first that waits is always decided, so it ends.
__device__ void decide_chunk(const SuppressionArguments& a, int64_t chunk) {
  __shared__ uint32_t kept[kChunkWords], waiting[kChunkWords];
  const int warp = threadIdx.x / kWarpThreads, lane = threadIdx.x % kWarpThreads;
  const int64_t position = chunk + threadIdx.x;
  const bool exists = position < a.ends[chunk];
  bool waits = exists && a.removed[position] == 0, keeps = false;
  for (bool first = true;; first = false) {
    bool gone = false, blocked = false;
    if (waits && !first) {
      for (int word = 0; word <= warp && chunk + word * kWordBits < position; ++word) {
        const uint32_t suppressors = a.mask[word * a.count + position];
        gone |= (suppressors & kept[word]) != 0;
        blocked |= (suppressors & waiting[word]) != 0;
      }
      keeps = !gone && !blocked;
      waits = !gone && blocked;
    }
    __syncthreads();  // all have read the words of the round before
    const uint32_t kept_lanes = __ballot_sync(0xffffffffu, keeps), waiting_lanes = __ballot_sync(0xffffffffu, waits);
    if (lane == 0) {
      kept[warp] = kept_lanes;
      waiting[warp] = waiting_lanes;
    }
    if (__syncthreads_or(waits) == 0) break;
  }
  if (exists) {
    a.removed[position] = keeps ? 0 : 1;
    a.kept_at_rank[rank_of(a, position)] = keeps ? 1 : 0;
  }
}

// Blocks of kChunk threads: the chunk of this number of every group that has so many.
__global__ void decide_kernel(const SuppressionArguments a, int64_t number) {
  __shared__ uint32_t begins[kSlice / kWarpThreads];
  for (int64_t slice = int64_t(blockIdx.x) * kSlice; slice < a.count; slice += int64_t(gridDim.x) * kSlice) {
    const int64_t position = slice + threadIdx.x;
    const bool begins_group = threadIdx.x < kSlice && position < a.count && a.begins[position] == position && a.ends[position] - position > number * kChunk;
    const uint32_t lanes = __ballot_sync(0xffffffffu, begins_group);
    if (threadIdx.x < kSlice && threadIdx.x % kWarpThreads == 0) begins[threadIdx.x / kWarpThreads] = lanes;
    __syncthreads();
    for (int word = 0; word < kSlice / kWarpThreads; ++word)
      for (uint32_t left = begins[word]; left != 0; left &= left - 1)
        decide_chunk(a, slice + word * kWordBits + __ffs(int(left)) - 1 + number * kChunk);
    __syncthreads();  // before the next slice overwrites the words
  }
}

// A thread has a column behind the chunk of this number in its group, and one word of the chunk's rows (blockIdx.y).
template <typename Similarity>
__global__ void remove_kernel(const SuppressionArguments a, const Similarity similarity, int64_t number) {
  PYPOSEEXT_GRID_STRIDE(column, a.count) {
    const int64_t chunk = a.begins[column] + number * kChunk, begin = chunk + blockIdx.y * kWordBits;
    if (column < chunk + kChunk || a.removed[column] != 0) continue;
    for (int64_t row = begin; row < begin + kWordBits; ++row) {
      if (a.removed[row] != 0 || !suppresses(a, similarity, row, column)) continue;
      a.removed[column] = 1;  // threads that meet here write the same
      break;
    }
  }
}

// One block writes the kept entries by falling score, kChunk ranks at a time, and then -1.
__global__ void write_kernel(const SuppressionArguments a) {
  __shared__ int64_t sums[kChunkWords];
  const int warp = threadIdx.x / kWarpThreads, lane = threadIdx.x % kWarpThreads;
  int64_t written = 0;
  for (int64_t begin = 0; begin < a.count; begin += kChunk) {
    const int64_t rank = begin + threadIdx.x;
    const bool kept = rank < a.count && a.kept_at_rank[rank] != 0;
    const uint32_t lanes = __ballot_sync(0xffffffffu, kept);
    if (lane == 0) sums[warp] = __popc(lanes);
    __syncthreads();
    int64_t before = written;
    for (int i = 0; i < kChunkWords; ++i) {
      if (i < warp) before += sums[i];
      written += sums[i];
    }
    if (kept) a.kept[before + __popc(lanes & ((uint32_t(1) << lane) - 1))] = a.order[rank];
    __syncthreads();  // before the next ranks overwrite the sums
  }
  for (int64_t i = written + threadIdx.x; i < a.count; i += kChunk) a.kept[i] = -1;
  if (threadIdx.x == 0) *a.kept_count = written;
}

template <typename Similarity>
void suppress(const char* name, const SuppressionArguments& a, const Similarity& similarity, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const int64_t chunks = (a.count + kChunk - 1) / kChunk;  // of the largest group, as far as the host knows
  const dim3 words(blocks_for(a.count), unsigned(kChunkWords < (a.count + kWordBits - 1) / kWordBits ? kChunkWords : (a.count + kWordBits - 1) / kWordBits));
  gather_kernel<<<blocks_for(a.count), kThreads, 0, queue>>>(a, similarity);
  check_launch(name);
  mask_kernel<<<words, kThreads, 0, queue>>>(a, similarity);
  check_launch(name);
  for (int64_t number = 0; number < chunks; ++number) {
    decide_kernel<<<blocks_for(a.count, kSlice), kChunk, 0, queue>>>(a, number);
    check_launch(name);
    if (number + 1 == chunks) break;
    remove_kernel<<<words, kThreads, 0, queue>>>(a, similarity, number);
    check_launch(name);
  }
  write_kernel<<<1, kChunk, 0, queue>>>(a);
  check_launch(name);
}

}  // namespace

void nms(const NmsArguments& a, void* stream) {
  dispatch_floating(a.suppression.dtype, [&](auto zero) { suppress("nms", a.suppression, BoxSimilarity<decltype(zero)>(a), stream); });
}

void oks_nms(const OksNmsArguments& a, void* stream) {
  dispatch_floating(a.suppression.dtype, [&](auto zero) { suppress("oks_nms", a.suppression, OksSimilarity<decltype(zero)>(a), stream); });
}

void tube_nms(const TubeNmsArguments& a, void* stream) {
  dispatch_floating(a.suppression.dtype, [&](auto zero) { suppress("tube_nms", a.suppression, TubeSimilarity<decltype(zero)>(a), stream); });
}

}  // namespace pyposeext::cuda
