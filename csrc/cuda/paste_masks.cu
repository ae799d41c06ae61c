#include "ops/paste_masks.h"

#include "common/cuda_launch.cuh"
#include "cuda/paste_masks_reader.cuh"

namespace pyposeext::cuda {
namespace {

constexpr int64_t kBandPixels = 24 << 10;  // of a block: whole rows, so that what it writes is one piece of memory
constexpr int64_t kTableColumns = 2048;    // of a box: the samples of wider ones are computed pixel by pixel

template <typename A> struct ColumnSample {
  A fraction;
  int32_t low;
};

// Walks along the pixels of a row. What it has read of the mask it keeps until the next column of the mask begins.
template <typename T, typename C>
struct PixelWalk {
  using A = Accumulate<T>;
  const PasteBox<C>& box;
  const ColumnSample<A>* table;  // or null
  MaskReader<T> reader;
  bool covered = false;
  int64_t row_low = 0, column_low = -2;
  A fraction = A(0), above = A(0), above_right = A(0), below = A(0), below_right = A(0);

  __device__ PixelWalk(const PasteMasksArguments& a, int64_t n, const PasteBox<C>& box, const ColumnSample<A>* table)
      : box(box), table(table), reader(a, n) {}

  __device__ void enter_row(int64_t row) {
    covered = row >= box.y.first && row < box.y.last;
    if (!covered) return;
    const PasteSample<A> sample = paste_sample<A>(box.y, row);
    row_low = sample.low;
    fraction = sample.fraction;
    column_low = -2;
  }

  __device__ A value(int64_t column) {
    if (!covered || column < box.x.first || column >= box.x.last) return A(0);
    PasteSample<A> sample;
    if (table != nullptr) {
      const ColumnSample<A> entry = table[column - box.x.first];
      sample = {entry.low, entry.fraction};
    } else {
      sample = paste_sample<A>(box.x, column);
    }
    if (sample.low != column_low) move_to(sample.low);
    return paste_blend(paste_blend(above, above_right, sample.fraction), paste_blend(below, below_right, sample.fraction), fraction);
  }

  __device__ void move_to(int64_t low) {
    const bool is_next = low == column_low + 1 && column_low > -2;
    above = is_next ? above_right : reader.at(row_low, low);
    below = is_next ? below_right : reader.at(row_low + 1, low);
    above_right = reader.at(row_low, low + 1);
    below_right = reader.at(row_low + 1, low + 1);
    column_low = low;
  }
};

// What becomes of neighbouring values: one soft one is stored as it is, 16 compared ones as bytes.
template <typename T>
struct SoftChunk {
  using Out = T;
  static constexpr int kPixels = 1;
  Accumulate<T> value;

  __device__ void start(const PasteMasksArguments&) { value = Accumulate<T>(0); }
  __device__ void put(int, Accumulate<T> blended) { value = blended; }
  __device__ void write(T* to) const { store(value, to); }
};

template <typename T>
struct HardChunk {
  using Out = uint8_t;
  static constexpr int kPixels = 16;
  Accumulate<T> threshold;
  uint32_t bits;

  __device__ void start(const PasteMasksArguments& a) {
    threshold = Accumulate<T>(a.threshold);
    bits = Accumulate<T>(0) >= threshold ? 0xffff : 0;
  }
  __device__ void put(int i, Accumulate<T> blended) { bits = (bits & ~(1u << i)) | uint32_t(blended >= threshold) << i; }
  __device__ static uint32_t bytes_of(uint32_t four_bits) { return four_bits * 0x00204081u & 0x01010101u; }
  __device__ void write(uint8_t* to) const {
    const uint32_t second = bits >> 4 & 15, third = bits >> 8 & 15, fourth = bits >> 12;
    *reinterpret_cast<uint4*>(to) = make_uint4(bytes_of(bits & 15), bytes_of(second), bytes_of(third), bytes_of(fourth));
  }
  __device__ void write_first(uint8_t* to) const { *to = bits & 1; }
};

template <typename T>
__device__ void write_first(const SoftChunk<T>& chunk, T* to) { chunk.write(to); }
template <typename T>
__device__ void write_first(const HardChunk<T>& chunk, uint8_t* to) { chunk.write_first(to); }

// The `count` pixels from `offset` on, which counts from the start of row `first`.
template <typename T, typename C, typename Chunk>
__device__ void fill_chunk(const PasteMasksArguments& a, int64_t first, uint32_t offset, int count, PixelWalk<T, C>* walk, Chunk* chunk) {
  chunk->start(a);
  int64_t row = first + offset / uint32_t(a.width), column = offset % uint32_t(a.width);
  const bool one_row = column + count <= a.width;
  if (one_row && (column >= walk->box.x.last || column + count <= walk->box.x.first)) return;
  walk->enter_row(row);
  if (one_row && !walk->covered) return;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    chunk->put(i, walk->value(column));
    if (++column == a.width) {
      column = 0;
      walk->enter_row(++row);
    }
  }
}

// Rows [first, last) of image n. Only the pixels before and after the whole 16 bytes are written one by one.
template <typename T, typename C, typename Chunk>
__device__ void write_band(const PasteMasksArguments& a, int64_t n, int64_t first, int64_t last, PixelWalk<T, C> walk) {
  using Out = typename Chunk::Out;
  Out* out = static_cast<Out*>(a.out) + (n * a.height + first) * a.width;
  const uint32_t pixels = uint32_t((last - first) * a.width);
  const uint32_t unaligned = uint32_t(reinterpret_cast<uintptr_t>(out) / sizeof(Out) % Chunk::kPixels);
  const uint32_t to_whole = unaligned ? Chunk::kPixels - unaligned : 0, head = to_whole < pixels ? to_whole : pixels;
  const uint32_t chunks = (pixels - head) / Chunk::kPixels, tail = head + chunks * Chunk::kPixels;
  Chunk chunk;
  for (uint32_t i = threadIdx.x; i < chunks; i += blockDim.x) {
    const uint32_t offset = head + i * Chunk::kPixels;
    fill_chunk(a, first, offset, Chunk::kPixels, &walk, &chunk);
    chunk.write(out + offset);
  }
  for (uint32_t i = threadIdx.x; i < head + (pixels - tail); i += blockDim.x) {
    const uint32_t offset = i < head ? i : tail + (i - head);
    fill_chunk(a, first, offset, 1, &walk, &chunk);
    write_first(chunk, out + offset);
  }
}

template <typename T, typename C, typename Chunk>
__global__ void __launch_bounds__(kThreads) paste_kernel(const PasteMasksArguments a, int64_t band, int64_t bands) {
  using A = Accumulate<T>;
  __shared__ PasteBox<C> box;
  extern __shared__ uint64_t table_memory[];
  auto* table = reinterpret_cast<ColumnSample<A>*>(table_memory);
  for (int64_t task = blockIdx.x; task < a.count * bands; task += gridDim.x) {
    const int64_t n = task / bands, first = task % bands * band, last = first + band < a.height ? first + band : a.height;
    __syncthreads();  // the table and the box of the task before are no longer read
    find_box(a, n, &box);
    __syncthreads();
    const bool is_covered = !is_empty(box) && first < box.y.last && last > box.y.first;
    const bool has_table = is_covered && box.x.last - box.x.first <= kTableColumns;
    if (has_table) {
      for (int64_t x = box.x.first + threadIdx.x; x < box.x.last; x += blockDim.x) {
        const PasteSample<A> sample = paste_sample<A>(box.x, x);
        table[x - box.x.first] = {sample.fraction, int32_t(sample.low)};
      }
    }
    __syncthreads();
    write_band<T, C, Chunk>(a, n, first, last, PixelWalk<T, C>(a, n, box, has_table ? table : nullptr));
  }
}

template <typename T, typename C, typename Chunk>
void launch(const PasteMasksArguments& a, cudaStream_t stream) {
  const int64_t band = a.width < kBandPixels ? kBandPixels / a.width : 1, bands = (a.height + band - 1) / band;
  const int64_t columns = a.width < kTableColumns ? a.width : kTableColumns;
  const size_t shared = size_t(columns) * sizeof(ColumnSample<Accumulate<T>>);
  paste_kernel<T, C, Chunk><<<blocks_for(a.count * bands, 1), kThreads, shared, stream>>>(a, band, bands);
}

template <typename T, typename C>
void launch(const PasteMasksArguments& a, cudaStream_t stream) {
  if (a.soft)
    launch<T, C, SoftChunk<T>>(a, stream);
  else
    launch<T, C, HardChunk<T>>(a, stream);
}

}  // namespace

void paste_masks(const PasteMasksArguments& a, void* stream) {
  dispatch_floating(a.dtype, [&](auto zero) {
    if (a.double_boxes)
      launch<decltype(zero), double>(a, static_cast<cudaStream_t>(stream));
    else
      launch<decltype(zero), float>(a, static_cast<cudaStream_t>(stream));
  });
  check_launch("paste_masks");
}

}  // namespace pyposeext::cuda
