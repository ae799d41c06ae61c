#include "ops/nms.h"

#include "common/box_math.h"
#include "common/cuda_launch.cuh"

namespace pyposeext::cuda {
namespace {

constexpr int kWord = 64;  // boxes in one word of the mask, and threads of a block that fills it

// mask[i, w] bit b: box i, in the order of scores, suppresses box 64 w + b. Blocks below the diagonal have no work.
template <typename A>
__global__ void mask_kernel(const NmsArguments a, int64_t words) {
  __shared__ A columns[kWord][5];
  __shared__ int64_t groups[kWord];
  const int64_t total = words * words;
  for (int64_t block = blockIdx.x; block < total; block += gridDim.x) {
    const int64_t row_word = block / words, word = block % words;
    if (word < row_word) continue;  // the whole block leaves together, so the barriers below stay matched
    const int64_t j = word * kWord + threadIdx.x;
    if (j < a.boxes_count) {
      const int64_t index = a.order[j];
      const A* box = static_cast<const A*>(a.boxes) + 4 * index;
      for (int d = 0; d < 4; ++d) columns[threadIdx.x][d] = box[d];
      columns[threadIdx.x][4] = box_area(box[0], box[1], box[2], box[3]);
      groups[threadIdx.x] = a.group == nullptr ? 0 : a.group[index];
    }
    __syncthreads();
    const int64_t i = row_word * kWord + threadIdx.x;
    if (i < a.boxes_count) {
      const int64_t index = a.order[i], group = a.group == nullptr ? 0 : a.group[index];
      const A* box = static_cast<const A*>(a.boxes) + 4 * index;
      const A area = box_area(box[0], box[1], box[2], box[3]);
      uint64_t bits = 0;
      for (int b = 0; b < kWord; ++b) {
        const int64_t other = word * kWord + b;
        if (other <= i || other >= a.boxes_count || groups[b] != group) continue;
        const A* c = columns[b];
        if (double(box_iou(box[0], box[1], box[2], box[3], area, c[0], c[1], c[2], c[3], c[4])) > a.iou_threshold) bits |= uint64_t(1) << b;
      }
      a.mask[i * words + word] = bits;
    }
    __syncthreads();  // before the next block of the loop overwrites the columns
  }
}

// One block walks the boxes a word at a time: one thread decides the word's boxes among themselves, then all threads
// mark what the kept ones suppress further on.
__global__ void sweep_kernel(const NmsArguments a, int64_t words) {
  __shared__ uint64_t diagonal[kWord];
  __shared__ uint64_t kept_bits;
  __shared__ int64_t count;
  for (int64_t w = threadIdx.x; w < words; w += blockDim.x) a.removed[w] = 0;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  for (int64_t word = 0; word < words; ++word) {
    const int64_t begin = word * kWord;
    const int here = int(a.boxes_count - begin < kWord ? a.boxes_count - begin : kWord);
    if (threadIdx.x < here) diagonal[threadIdx.x] = a.mask[(begin + threadIdx.x) * words + word];
    __syncthreads();
    if (threadIdx.x == 0) {
      uint64_t removed = a.removed[word], bits = 0;
      for (int b = 0; b < here; ++b) {
        if (removed >> b & 1) continue;
        bits |= uint64_t(1) << b;
        removed |= diagonal[b];
        a.kept[count++] = a.order[begin + b];
      }
      kept_bits = bits;
    }
    __syncthreads();
    for (int64_t w = word + 1 + threadIdx.x; w < words; w += blockDim.x) {
      uint64_t removed = a.removed[w];
      for (uint64_t bits = kept_bits; bits != 0; bits &= bits - 1) removed |= a.mask[(begin + __ffsll((long long)bits) - 1) * words + w];
      a.removed[w] = removed;
    }
    __syncthreads();
  }
  for (int64_t i = count + threadIdx.x; i < a.boxes_count; i += blockDim.x) a.kept[i] = -1;
  if (threadIdx.x == 0) *a.count = count;
}

}  // namespace

void nms(const NmsArguments& a, void* stream) {
  const int64_t words = (a.boxes_count + kWord - 1) / kWord;
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (a.dtype == DType::float64)
    mask_kernel<double><<<blocks_for(words * words, 1), kWord, 0, queue>>>(a, words);
  else
    mask_kernel<float><<<blocks_for(words * words, 1), kWord, 0, queue>>>(a, words);
  check_launch("nms");
  sweep_kernel<<<1, 1024, 0, queue>>>(a, words);
  check_launch("nms");
}

}  // namespace pyposeext::cuda
