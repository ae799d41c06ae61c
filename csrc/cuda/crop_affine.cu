#include "ops/crop_affine.h"

#include "common/cuda_launch.cuh"

namespace pyposeext::cuda {
namespace {

constexpr int kPixels = 4;  // of a thread, next to each other in a row: 16 bytes of each plane in float32

// Four neighbours in memory, written at once.
template <typename T> struct alignas(4 * sizeof(T)) Quad {
  T value[4];
};

struct Image {
  const uint8_t* data;  // null: every pixel is 0
  int64_t height, width, row_stride, column_stride, channel_stride;

  __device__ void pixel(int64_t x, int64_t y, float* value) const {
    const bool exists = data != nullptr && x >= 0 && x < width && y >= 0 && y < height;
    const uint8_t* from = data + y * row_stride + x * column_stride;
#pragma unroll
    for (int c = 0; c < 3; ++c) value[c] = exists ? float(__ldg(from + c * channel_stride)) : 0.0f;
  }

  __device__ void row(int64_t x, int64_t y, float fraction, float* value) const {
    float left[3], right[3];
    pixel(x, y, left);
    pixel(x + 1, y, right);
#pragma unroll
    for (int c = 0; c < 3; ++c) value[c] = multiply_add(fraction, right[c] - left[c], left[c]);
  }
};

__device__ Image image_of(const CropAffineArguments& a, int64_t n) {
  const int64_t index = a.frame_index == nullptr ? 0 : a.frame_index[n];
  const bool exists = index >= 0 && index < a.frames;
  return {exists ? a.image + index * a.stride[0] : nullptr, a.height, a.width, a.stride[1], a.stride[2], a.stride[3]};
}

// The normalised channels of one pixel of the crop, in the output's order.
__device__ void crop_pixel(const CropAffineArguments& a, const CropTransform& transform, const Image& image, int64_t x, int64_t y,
                           float* out) {
  const CropSample column = crop_sample(multiply_add(transform.x[0], double(x), crop_row_start(transform.x, y)), a.width);
  const CropSample row = crop_sample(multiply_add(transform.y[0], double(x), crop_row_start(transform.y, y)), a.height);
  float above[3], below[3], value[3];
  image.row(column.low, row.low, column.fraction, above);
  image.row(column.low, row.low + 1, column.fraction, below);
#pragma unroll
  for (int c = 0; c < 3; ++c) value[c] = multiply_add(row.fraction, below[c] - above[c], above[c]);
#pragma unroll
  for (int c = 0; c < 3; ++c) out[c] = multiply_add(a.swap_channels ? value[2 - c] : value[c], a.scale[c], a.bias[c]);
}

// One address for each of the three quads: planes lie a plane apart, interleaved channels next to each other.
template <typename T, bool kInterleaved>
__device__ void store_pixels(const float (*pixel)[3], int64_t plane, int count, bool is_whole, T* to) {
  if (is_whole) {
    Quad<T> quad[3];
#pragma unroll
    for (int i = 0; i < 3 * kPixels; ++i) store(kInterleaved ? pixel[i / 3][i % 3] : pixel[i % 4][i / 4], &quad[i / 4].value[i % 4]);
#pragma unroll
    for (int i = 0; i < 3; ++i) *reinterpret_cast<Quad<T>*>(to + i * (kInterleaved ? 4 : plane)) = quad[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < kPixels; ++i)
#pragma unroll
    for (int c = 0; c < 3; ++c)
      if (i < count) store(pixel[i][c], to + (kInterleaved ? 3 * i + c : c * plane + i));
}

template <typename T, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) crop_kernel(const CropAffineArguments a, int64_t groups) {
  __shared__ CropTransform transform;
  const int64_t plane = a.crop_height * a.crop_width;
  for (int64_t n = blockIdx.y; n < a.count; n += gridDim.y) {
    __syncthreads();
    if (threadIdx.x == 0) transform = crop_transform(a, n);
    __syncthreads();
    const Image image = image_of(a, n);
    T* out = static_cast<T*>(a.out) + n * 3 * plane;
    PYPOSEEXT_GRID_STRIDE(index, a.crop_height * groups) {
      const int64_t y = index / groups, x = index % groups * kPixels, offset = y * a.crop_width + x;
      const int count = a.crop_width - x < kPixels ? int(a.crop_width - x) : kPixels;
      float pixel[kPixels][3];
#pragma unroll
      for (int i = 0; i < kPixels; ++i) crop_pixel(a, transform, image, x + i, y, pixel[i]);
      store_pixels<T, kInterleaved>(pixel, plane, count, a.crop_width % kPixels == 0, out + offset * (kInterleaved ? 3 : 1));
    }
  }
}

template <typename T>
void launch(const CropAffineArguments& a, cudaStream_t stream) {
  const int64_t groups = (a.crop_width + kPixels - 1) / kPixels;
  const dim3 grid(blocks_for(a.crop_height * groups), unsigned(a.count < 65535 ? a.count : 65535));
  if (a.channels_last)
    crop_kernel<T, true><<<grid, kThreads, 0, stream>>>(a, groups);
  else
    crop_kernel<T, false><<<grid, kThreads, 0, stream>>>(a, groups);
}

}  // namespace

void crop_affine(const CropAffineArguments& a, void* stream) {
  switch (a.dtype) {
    case DType::float16: launch<Half>(a, static_cast<cudaStream_t>(stream)); break;
    case DType::bfloat16: launch<BFloat16>(a, static_cast<cudaStream_t>(stream)); break;
    default: launch<float>(a, static_cast<cudaStream_t>(stream));
  }
  check_launch("crop_affine");
}

}  // namespace pyposeext::cuda
