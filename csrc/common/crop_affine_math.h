// The geometry and arithmetic of crop_affine, shared by the CPU and CUDA kernels.
//
// Crop pixel (x, y) samples the image at transform * (x, y, 1), bilinear, with 0 outside the image. Positions are double,
// so that a crop from a large image is as exact as one from its corner; the blend of bytes is float.
#pragma once
#include "common/numeric.h"

namespace pyposeext {

struct CropAffineArguments {
  DType dtype;  // of out: float32, float16 or bfloat16
  int64_t frames, height, width;
  const uint8_t* image;  // [F, H, W, 3]
  int64_t stride[4];
  const double* matrices;  // [N, 2, 3], row-major
  bool inverse_map;        // they lead from the crop to the image
  const int64_t* frame_index;  // [N], or null: frame 0
  int64_t count, crop_height, crop_width;
  float scale[3], bias[3];  // of the output's channels: a grey level v becomes v * scale + bias
  bool swap_channels, channels_last;
  void* out;  // [N, 3, h, w], packed, rows or channels innermost
};

inline namespace PYPOSEEXT_LEVEL {

struct CropTransform {
  double x[3], y[3];  // image x = x[0] * crop x + x[1] * crop y + x[2], y alike
};

// From the crop to the image. The inverse of a singular matrix is infinite or NaN, which leads every pixel out of the image.
PYPOSEEXT_HOST_DEVICE CropTransform crop_transform(const CropAffineArguments& a, int64_t n) {
  const double* m = a.matrices + 6 * n;
  if (a.inverse_map) return {{m[0], m[1], m[2]}, {m[3], m[4], m[5]}};
  const double determinant = m[0] * m[4] - m[1] * m[3];
  const double xx = m[4] / determinant, xy = -m[1] / determinant, yx = -m[3] / determinant, yy = m[0] / determinant;
  return {{xx, xy, -xx * m[2] - xy * m[5]}, {yx, yy, -yx * m[2] - yy * m[5]}};
}

struct CropSample {
  int32_t low;  // the pixels low and low + 1 are blended, those outside the image being 0
  float fraction;
};

// `position` counts from two pixels outside the image, so that cutting off the fraction rounds down. What is farther
// outside, or NaN, is as good as there.
PYPOSEEXT_HOST_DEVICE CropSample crop_sample(double position, int64_t size) {
  const double most = double(size + 3);
  position = position > 0.0 ? position : 0.0;
  position = position < most ? position : most;
  const int32_t low = int32_t(position);
  return {low - 2, float(position - double(low))};
}

// The parts of a position that are the same all along a row of the crop.
PYPOSEEXT_HOST_DEVICE double crop_row_start(const double* axis, int64_t y) { return multiply_add(axis[1], double(y), axis[2]) + 2.0; }

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
