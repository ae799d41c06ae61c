// What the CUDA kernels of deform_conv2d share: where a tap samples, and the column of a pixel in runs of 8 channels.
#pragma once
#include "cuda/matrix_tile.cuh"
#include "ops/deform_conv2d.h"

namespace pyposeext::cuda {

template <typename A> struct DeformSample {
  int32_t corner[4];  // pixels of the input, or -1
  A weight[4];        // of the corners, without the mask
  A mask, fraction_y, fraction_x;
};

template <typename A> struct DeformAxes {
  DeformAxis<A> y, x;
};

template <typename A>
__device__ DeformAxes<A> deform_axes(const DeformConv2dArguments& a, int64_t image, int pixel, int tap, int offset_group) {
  const int row = pixel / int(a.out_width), column = pixel % int(a.out_width);
  const int tap_y = tap / int(a.kernel_width), tap_x = tap % int(a.kernel_width);
  const A* offset = static_cast<const A*>(a.offset.data) + image * a.offset.stride[0] +
                    2 * (offset_group * deform_taps(a) + tap) * a.offset.stride[1] + row * a.offset.stride[2] + column * a.offset.stride[3];
  const A y = A(row * a.stride_y - a.padding_y) + A(tap_y * a.dilation_y), x = A(column * a.stride_x - a.padding_x) + A(tap_x * a.dilation_x);
  return {deform_axis(y + offset[0], A(a.height)), deform_axis(x + offset[a.offset.stride[1]], A(a.width))};
}

template <typename T>
__device__ Accumulate<T> deform_mask(const DeformConv2dArguments& a, int64_t image, int pixel, int tap, int offset_group) {
  if (a.mask.data == nullptr) return Accumulate<T>(1);
  const int row = pixel / int(a.out_width), column = pixel % int(a.out_width);
  return load(static_cast<const T*>(a.mask.data)[image * a.mask.stride[0] + (offset_group * deform_taps(a) + tap) * a.mask.stride[1] +
                                                 row * a.mask.stride[2] + column * a.mask.stride[3]]);
}

template <typename T>
__device__ DeformSample<Accumulate<T>> deform_sample(const DeformConv2dArguments& a, int64_t image, int pixel, int tap, int offset_group) {
  using A = Accumulate<T>;
  const DeformAxes<A> at = deform_axes<A>(a, image, pixel, tap, offset_group);
  DeformSample<A> sample;
  sample.mask = deform_mask<T>(a, image, pixel, tap, offset_group);
  sample.fraction_y = at.y.fraction;
  sample.fraction_x = at.x.fraction;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    sample.corner[k] = deform_corner(at.y, at.x, k, int32_t(a.height), int32_t(a.width));
    sample.weight[k] = deform_weight(at.y.fraction, at.x.fraction, k);
  }
  return sample;
}

// Whether runs of 8 channels of these rows may be loaded whole.
template <typename T>
__device__ bool runs_fit(const void* rows, int64_t channels) {
  return channels % kRun == 0 && reinterpret_cast<uintptr_t>(rows) % 16 == 0;
}

// Columns [k, k + 8) of a weight group for one output pixel; column tap * channels + c is channel c of the group at the tap.
template <typename T> struct DeformColumns {
  using A = Accumulate<T>;

  const DeformConv2dArguments& a;
  int64_t group;
  int channels, shared, count;  // of the group, of an offset group, and columns
  bool vectors;

  __device__ DeformColumns(const DeformConv2dArguments& arguments, int64_t weight_group)
      : a(arguments),
        group(weight_group),
        channels(int(a.channels / a.groups)),
        shared(int(a.channels / a.offset_groups)),
        count(channels * int(deform_taps(a))),
        vectors(runs_fit<T>(a.packed_input, channels) && shared % kRun == 0) {}

  __device__ void operator()(int64_t image, int pixel, int k, A* values) const {
#pragma unroll
    for (int i = 0; i < kRun; ++i) values[i] = A(0);
    const T* source = static_cast<const T*>(a.packed_input) + image * a.height * a.width * a.channels;
    if (k >= count) return;
    if (vectors)
      run(source, image, pixel, k, values);
    else
      one_by_one(source, image, pixel, k, values);
  }

 private:
  __device__ void run(const T* source, int64_t image, int pixel, int k, A* values) const {
    const int tap = k / channels, channel = int(group) * channels + k % channels;
    const DeformSample<A> sample = deform_sample<T>(a, image, pixel, tap, channel / shared);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      A corner[kRun] = {};
      if (sample.corner[n] >= 0) load_run(source + sample.corner[n] * a.channels + channel, corner);
      const A weight = sample.weight[n] * sample.mask;
#pragma unroll
      for (int i = 0; i < kRun; ++i) values[i] = multiply_add(weight, corner[i], values[i]);
    }
  }

  __device__ void one_by_one(const T* source, int64_t image, int pixel, int k, A* values) const {
    DeformSample<A> sample;
    int sampled = -1;  // the (tap, offset group) that `sample` is of
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (k + i >= count) break;
      const int tap = (k + i) / channels, channel = int(group) * channels + (k + i) % channels, offset_group = channel / shared;
      const int wanted = tap * int(a.offset_groups) + offset_group;
      if (wanted != sampled) sample = deform_sample<T>(a, image, pixel, tap, offset_group);
      sampled = wanted;
      for (int n = 0; n < 4; ++n) {
        const A corner = sample.corner[n] < 0 ? A(0) : A(load(source[sample.corner[n] * a.channels + channel]));
        values[i] = multiply_add(sample.weight[n] * sample.mask, corner, values[i]);
      }
    }
  }
};

// Elements [first, first + 8) of a row of `count`, 0 past its end.
template <typename T>
__device__ void load_part(const T* row, int first, int count, bool vectors, Accumulate<T>* values) {
  if (vectors && first + kRun <= count) return load_run(row + first, values);
#pragma unroll
  for (int i = 0; i < kRun; ++i) values[i] = first + i < count ? load(row[first + i]) : Accumulate<T>(0);
}

// Calls body(integral constant) with the fewest columns of a tile that hold `count`.
template <typename Body>
void dispatch_columns(int64_t count, const Body& body) {
  if (count <= 32)
    body(std::integral_constant<int, 32>());
  else if (count <= 48)
    body(std::integral_constant<int, 48>());
  else
    body(std::integral_constant<int, 64>());
}

}  // namespace pyposeext::cuda
