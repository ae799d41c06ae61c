#include "ops/paste_masks.h"

#include "common/cuda_launch.cuh"
#include "cuda/paste_masks_reader.cuh"

namespace pyposeext::cuda {
namespace {

// One mask of a block. A pixel that differs from the one before it, down the columns, is an edge; the runs lie between.
// Every thread finds the edges of one column, first to count them and then to write them where the counts of the columns
// before it say. No thread waits for another's edges: the pixel before a column is computed anew.
template <typename T, typename C>
struct EdgeFinder {
  using A = Accumulate<T>;
  const PasteBox<C>& box;
  const int32_t* first_row;  // [M + 3]: of each cell, the image rows between the mask's rows j - 1 and j; then the end
  MaskReader<T> reader;
  int64_t height;
  A threshold;

  __device__ bool background() const { return A(0) >= threshold; }

  __device__ bool is_set(A above, A below, int64_t row) const {
    return paste_blend(above, below, paste_sample<A>(box.y, row).fraction) >= threshold;
  }

  __device__ bool last_of_column(int64_t column) const {
    if (column < box.x.first || column >= box.x.last || box.y.last < height) return background();
    const PasteSample<A> x = paste_sample<A>(box.x, column), y = paste_sample<A>(box.y, height - 1);
    return paste_blend(reader.blended(y.low, x), reader.blended(y.low + 1, x), y.fraction) >= threshold;
  }

  __device__ int64_t edge_in_cell(A above, A below, int64_t low, int64_t high, bool after) const {
    while (low + 1 < high) {
      const int64_t middle = (low + high) / 2;
      if (is_set(above, below, middle) == after)
        high = middle;
      else
        low = middle;
    }
    return high;
  }

  // edge(position) for every edge of one column of the image, from top to bottom.
  template <typename Edge>
  __device__ void edges(int64_t column, const Edge& edge) const {
    const int64_t top = column * height;
    bool state = column > 0 && last_of_column(column - 1);
    const auto turn = [&](int64_t position, bool value) {
      if (value != state) edge(position);
      state = value;
    };
    const bool is_inside = column >= box.x.first && column < box.x.last;
    if (!is_inside || box.y.first > 0) turn(top, background());
    if (!is_inside) return;
    const PasteSample<A> x = paste_sample<A>(box.x, column);
    A above = A(0), below = reader.blended(-1, x);
    for (int64_t j = 0; j < reader.side + 2; ++j) {
      above = below;
      below = reader.blended(j, x);
      const int64_t first = first_row[j], last = int64_t(first_row[j + 1]) - 1;
      if (first > last) continue;
      turn(top + first, is_set(above, below, first));
      const bool at_last = is_set(above, below, last);
      if (at_last != state) turn(top + edge_in_cell(above, below, first, last, at_last), at_last);
    }
    if (box.y.last < height) turn(top + box.y.last, background());
  }
};

// first_row[j]: the first row of the box that samples the mask at row j - 1 or below it, from j = 0 to M + 2.
template <typename C>
__device__ void find_first_rows(const PasteAxis<C>& y, int32_t* first_row) {
  for (int64_t row = y.first + threadIdx.x; row < y.last; row += blockDim.x) {
    const int64_t cell = paste_sample<C>(y, row).low + 1, before = row == y.first ? -1 : paste_sample<C>(y, row - 1).low + 1;
    for (int64_t j = before + 1; j <= cell; ++j) first_row[j] = int32_t(row);
    if (row + 1 < y.last) continue;
    for (int64_t j = cell + 1; j < y.side + 3; ++j) first_row[j] = int32_t(y.last);
  }
}

// The sum of the values of the threads before this one; *total of all. Called by the whole block.
__device__ int64_t sum_before(int64_t value, int64_t* total) {
  __shared__ int64_t sums[kThreads];
  __syncthreads();
  sums[threadIdx.x] = value;
  for (unsigned step = 1; step < kThreads; step *= 2) {
    __syncthreads();
    const int64_t other = threadIdx.x >= step ? sums[threadIdx.x - step] : 0;
    __syncthreads();
    sums[threadIdx.x] += other;
  }
  __syncthreads();
  *total = sums[kThreads - 1];
  return sums[threadIdx.x] - value;
}

// Writes the positions of all edges, as far as there is room, and returns how many there are.
template <typename T, typename C>
__device__ int64_t write_edges(const EdgeFinder<T, C>& finder, int64_t width, int64_t capacity, int32_t* out) {
  // Beyond the box no column has an edge, but for the image's first one and the one right of the box.
  const bool is_nothing = is_empty(finder.box);
  const int64_t end = finder.box.x.last < width ? finder.box.x.last + 1 : width;
  const int64_t first = is_nothing ? 0 : finder.box.x.first, last = is_nothing ? 0 : end;
  const bool starts_set = finder.background() && (is_nothing || first > 0) && finder.height * width > 0;
  int64_t found = starts_set ? 1 : 0;
  if (starts_set && threadIdx.x == 0 && capacity > 0) out[0] = 0;
  for (int64_t begin = first; begin < last; begin += kThreads) {
    const int64_t column = begin + threadIdx.x;
    int64_t count = 0, total = 0;
    if (column < last) finder.edges(column, [&](int64_t) { ++count; });
    int64_t index = found + sum_before(count, &total);
    if (column < last) {
      finder.edges(column, [&](int64_t position) {
        if (index < capacity) out[index] = int32_t(position);
        ++index;
      });
    }
    found += total;
  }
  return found;
}

// Positions of edges become lengths of runs in place, from the end to the start.
__device__ void subtract_neighbours(int64_t edges, int64_t pixels, int64_t capacity, int32_t* out) {
  const int64_t runs = edges + 1 < capacity ? edges + 1 : capacity;
  for (int64_t begin = (capacity - 1) / kThreads * kThreads; begin >= 0 && capacity > 0; begin -= kThreads) {
    const int64_t i = begin + threadIdx.x;
    int32_t length = 0;
    if (i < runs) length = (i < edges ? out[i] : int32_t(pixels)) - (i > 0 ? out[i - 1] : 0);
    __syncthreads();
    if (i < capacity) out[i] = length;
    __syncthreads();
  }
}

template <typename T, typename C>
__global__ void __launch_bounds__(kThreads, 1) runs_kernel(const PasteMasksRunsArguments a) {
  __shared__ PasteBox<C> box;
  for (int64_t n = blockIdx.x; n < a.paste.count; n += gridDim.x) {
    int32_t *out = a.counts + n * a.capacity, *first_row = a.first_row + n * (a.paste.side + 3);
    __syncthreads();
    find_box(a.paste, n, &box);
    __syncthreads();
    if (!is_empty(box)) find_first_rows(box.y, first_row);
    __syncthreads();
    const EdgeFinder<T, C> finder{box, first_row, MaskReader<T>(a.paste, n), a.paste.height, Accumulate<T>(a.paste.threshold)};
    const int64_t edges = write_edges(finder, a.paste.width, a.capacity, out);
    __syncthreads();
    subtract_neighbours(edges, a.paste.height * a.paste.width, a.capacity, out);
    if (threadIdx.x == 0) a.lengths[n] = edges + 1;
  }
}

}  // namespace

void paste_masks_runs(const PasteMasksRunsArguments& a, void* stream) {
  const unsigned blocks = blocks_for(a.paste.count, 1);
  dispatch_floating(a.paste.dtype, [&](auto zero) {
    if (a.paste.double_boxes)
      runs_kernel<decltype(zero), double><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
    else
      runs_kernel<decltype(zero), float><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
  check_launch("paste_masks_runs");
}

}  // namespace pyposeext::cuda
