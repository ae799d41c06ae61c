// The kernel behind gaussian_heatmaps.
#pragma once
#include "common/cpu_level.h"
#include "common/gaussian_math.h"

namespace pyposeext {

struct GaussianHeatmapsArguments {
  GaussianArguments gaussians;
  bool packed;  // channels next to each other
  void* out;    // [B, K, H, W], or with a channel more for the background
};

}  // namespace pyposeext

PYPOSEEXT_KERNEL(gaussian_heatmaps, GaussianHeatmapsArguments)
