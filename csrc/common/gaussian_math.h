// The Gaussians that heatmap networks are trained to draw, shared by gaussian_heatmaps and gaussian_mse_loss and by their
// CPU and CUDA kernels, so that the loss compares with exactly the values that the heatmaps hold.
//
// A Gaussian is the product of one exponential for each axis, so a map costs W + H of them.
#pragma once
#include "common/numeric.h"

namespace pyposeext {

enum class GaussianMode : int32_t { msra, udp, unbiased };
enum class Background : int32_t { none, first, last };

struct GaussianArguments {
  DType dtype;  // of the maps; keypoints and weights are float, or double where this is float64
  int64_t batch, people, joints, height, width;
  GaussianMode mode;
  Background background;
  bool keep_outside;
  double scale;      // -1 / (2 sigma^2)
  double amplitude, cutoff;
  double reach;      // half the side of the square that decides whether a joint is on the map
  double extent;     // along each axis, a pixel farther from the centre than this is 0
  const void* keypoints;  // [B, N, K, 2]: x, y
  const void* weights;    // [B, N, K], or null for 1
  void* target_weights;   // [B, K]
  void* gaussians;        // [B, K, N] of Gaussian: filled first, then read by the drawing
};

inline namespace PYPOSEEXT_LEVEL {

// One person's joint on the map.
template <typename A> struct Gaussian {
  A x, y;                             // the centre
  int32_t left, right, top, bottom;  // the pixels it is drawn on: [left, right) x [top, bottom), perhaps none
};

PYPOSEEXT_HOST_DEVICE int64_t channels_of(const GaussianArguments& a) { return a.joints + (a.background != Background::none); }

// The channel that holds the background, or -1.
PYPOSEEXT_HOST_DEVICE int64_t background_channel(const GaussianArguments& a) {
  return a.background == Background::first ? 0 : a.background == Background::last ? a.joints : -1;
}

// The joint that a channel other than the background draws.
PYPOSEEXT_HOST_DEVICE int64_t joint_of(const GaussianArguments& a, int64_t channel) { return channel - (a.background == Background::first); }

// The weight of a channel in the loss; the background's is 1.
template <typename A>
PYPOSEEXT_HOST_DEVICE A channel_weight(const GaussianArguments& a, int64_t b, int64_t channel) {
  return channel == background_channel(a) ? A(1) : static_cast<const A*>(a.target_weights)[b * a.joints + joint_of(a, channel)];
}

// What a channel draws: a joint's Gaussians, or for the background those of every joint.
template <typename A> struct GaussianSet {
  const Gaussian<A>* first;
  int64_t count;
  bool background;
};

template <typename A>
PYPOSEEXT_HOST_DEVICE GaussianSet<A> gaussian_set(const GaussianArguments& a, int64_t b, int64_t channel) {
  const Gaussian<A>* image = static_cast<const Gaussian<A>*>(a.gaussians) + b * a.joints * a.people;
  if (channel == background_channel(a)) return {image, a.joints * a.people, true};
  return {image + joint_of(a, channel) * a.people, a.people, false};
}

// The published test, one pixel wider than the square at the upper and left edge. False for a position that is not finite.
template <typename A>
PYPOSEEXT_HOST_DEVICE bool touches(A centre, A reach, int64_t size) {
  return centre - reach < A(size) && centre + reach + A(1) >= A(0);
}

template <typename A> PYPOSEEXT_HOST_DEVICE int32_t clamp_to_size(A position, int64_t size) {
  return position <= A(0) ? 0 : position >= A(size) ? int32_t(size) : int32_t(position);
}

// Person n's joint k; `weight` becomes that of the joint. Nothing is drawn for a weight or a position without meaning.
template <typename A>
PYPOSEEXT_HOST_DEVICE Gaussian<A> gaussian_of(const GaussianArguments& a, int64_t b, int64_t n, int64_t k, A* weight) {
  const int64_t index = (b * a.people + n) * a.joints + k;
  const A *keypoint = static_cast<const A*>(a.keypoints) + 2 * index, *weights = static_cast<const A*>(a.weights);
  *weight = weights == nullptr ? A(1) : weights[index];
  Gaussian<A> gaussian{keypoint[0], keypoint[1], 0, 0, 0, 0};
  if (!(*weight > A(0) && is_finite(*weight))) *weight = A(0);
  const bool finite = is_finite(gaussian.x) && is_finite(gaussian.y), whole = a.mode != GaussianMode::unbiased;
  const A x = whole ? floor(gaussian.x + A(0.5)) : gaussian.x, y = whole ? floor(gaussian.y + A(0.5)) : gaussian.y;
  const bool inside = finite && touches(x, A(a.reach), a.width) && touches(y, A(a.reach), a.height);
  if (!inside && !a.keep_outside) *weight = A(0);
  if (*weight == A(0) || !finite) return gaussian;
  if (a.mode == GaussianMode::msra) gaussian.x = x, gaussian.y = y;
  gaussian.left = clamp_to_size(ceil(x - A(a.extent)), a.width);
  gaussian.right = clamp_to_size(floor(x + A(a.extent)) + A(1), a.width);
  gaussian.top = clamp_to_size(ceil(y - A(a.extent)), a.height);
  gaussian.bottom = clamp_to_size(floor(y + A(a.extent)) + A(1), a.height);
  return gaussian;
}

// All people's Gaussians of one joint and the joint's weight, the largest among them.
template <typename A>
PYPOSEEXT_HOST_DEVICE void prepare_joint(const GaussianArguments& a, int64_t b, int64_t k) {
  Gaussian<A>* gaussians = static_cast<Gaussian<A>*>(a.gaussians) + (b * a.joints + k) * a.people;
  A largest = A(0);
  for (int64_t n = 0; n < a.people; ++n) {
    A weight;
    gaussians[n] = gaussian_of(a, b, n, k, &weight);
    if (weight > largest) largest = weight;
  }
  static_cast<A*>(a.target_weights)[b * a.joints + k] = largest;
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
