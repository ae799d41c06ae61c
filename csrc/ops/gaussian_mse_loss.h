// The kernels behind gaussian_mse_loss.
#pragma once
#include "common/cpu_level.h"
#include "common/gaussian_math.h"

namespace pyposeext {

enum class Reduction : int32_t { none, mean, sum };

struct GaussianLossArguments {
  GaussianArguments gaussians;
  Reduction reduction;
  const void* prediction;  // [B, C, H, W], C being the channels of the Gaussians
  int64_t stride[4];       // of the prediction, in elements
  bool packed;             // whether it is packed in channels_last; then so is `out`, which otherwise is contiguous
  void* partial;           // CUDA, [B, C, segments]: the sum of squares of each part of each map
  void* loss;              // [B, C], or one number
  const void* gradient;    // of the loss
  void* out;               // [B, C, H, W], the gradient of the prediction
};

// The pixels of a map that a CUDA block sums up, or of each of several maps where the channels of a pixel lie together.
inline int64_t segment_pixels(bool packed) { return packed ? 512 : 2048; }
inline int64_t segments_of(const GaussianLossArguments& a) {
  const int64_t pixels = a.gaussians.height * a.gaussians.width, segment = segment_pixels(a.packed);
  return (pixels + segment - 1) / segment;
}

inline namespace PYPOSEEXT_LEVEL {

// What a sum of squares is multiplied by: half of the mean over the pixels of the map.
PYPOSEEXT_HOST_DEVICE double loss_scale(const GaussianArguments& a) { return 0.5 / (double(a.height) * double(a.width)); }

// What the losses of all maps are multiplied by.
PYPOSEEXT_HOST_DEVICE double reduction_scale(const GaussianLossArguments& a) {
  return a.reduction == Reduction::mean ? 1 / (double(a.gaussians.batch) * double(channels_of(a.gaussians))) : 1.0;
}

// d loss / d prediction = this times (prediction - target); 0 for a map of weight 0, which is then not read.
template <typename A>
PYPOSEEXT_HOST_DEVICE A gradient_factor(const GaussianLossArguments& a, int64_t b, int64_t channel) {
  const A weight = channel_weight<A>(a.gaussians, b, channel);
  const A gradient = static_cast<const A*>(a.gradient)[a.reduction == Reduction::none ? b * channels_of(a.gaussians) + channel : 0];
  return weight == A(0) ? A(0) : gradient * (weight * weight) * A(2 * loss_scale(a.gaussians) * reduction_scale(a));
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext

PYPOSEEXT_KERNEL(gaussian_mse_loss, GaussianLossArguments)
PYPOSEEXT_KERNEL(gaussian_mse_loss_backward, GaussianLossArguments)
