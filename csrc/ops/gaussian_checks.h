// What gaussian_heatmaps and gaussian_mse_loss check and set up alike.
#pragma once
#include <cmath>
#include <optional>

#include "common/gaussian_math.h"
#include "common/tensor.h"

namespace pyposeext {

// How the Gaussians look, as the schemas of both ops name it.
struct GaussianOptions {
  double sigma;
  const std::string& mode;
  double amplitude, cutoff;
  const std::string& background;
  bool keep_outside;
};

// The arguments of a call, and the tensors that its pointers point into.
struct GaussianCall {
  GaussianArguments arguments{};
  Tensor keypoints, weights, target_weights, gaussians;
};

inline void set_shape(const char* op, const GaussianOptions& options, GaussianArguments* a) {
  PYPOSEEXT_CHECK(options.sigma > 0 && std::isfinite(options.sigma), op, ": sigma must be a positive number, got ", options.sigma);
  PYPOSEEXT_CHECK(options.amplitude > 0 && std::isfinite(options.amplitude), op, ": amplitude must be a positive number, got ", options.amplitude);
  PYPOSEEXT_CHECK(options.cutoff >= 0 && std::isfinite(options.cutoff), op, ": cutoff must be 0 or a positive number, got ", options.cutoff);
  PYPOSEEXT_CHECK(options.mode == "msra" || options.mode == "udp" || options.mode == "unbiased", op,
                  ": mode must be msra, udp or unbiased, got ", options.mode);
  PYPOSEEXT_CHECK(options.background == "none" || options.background == "first" || options.background == "last", op,
                  ": background must be none, first or last, got ", options.background);
  const double sigma = options.sigma;
  a->mode = options.mode == "msra" ? GaussianMode::msra : options.mode == "udp" ? GaussianMode::udp : GaussianMode::unbiased;
  a->background = options.background == "none" ? Background::none : options.background == "first" ? Background::first : Background::last;
  a->keep_outside = options.keep_outside;
  a->scale = -1 / (2 * sigma * sigma);
  a->amplitude = options.amplitude;
  a->cutoff = options.cutoff;
  a->reach = a->extent = a->mode == GaussianMode::unbiased ? 3 * sigma : std::floor(3 * sigma);
  if (a->mode == GaussianMode::unbiased) {
    // Beyond this an exponential is no normal number any more, or the product lies below the cut-off; the hundredth keeps
    // rounding from deciding.
    double exponent = a->dtype == DType::float64 ? 708 : 87;
    if (a->cutoff > 0) exponent = std::fmin(exponent, std::fmax(std::log(a->amplitude / a->cutoff), 0.0) + 0.01);
    a->extent = sigma * std::sqrt(2 * exponent);
  }
}

// `maps_dtype` decides the dtype that everything is computed in. Keypoints and weights of another one are converted.
inline GaussianCall gaussian_call(const char* op, const Tensor& keypoints, const std::optional<Tensor>& weights, int64_t height, int64_t width,
                                  DType maps_dtype, const GaussianOptions& options) {
  GaussianCall call;
  GaussianArguments& a = call.arguments;
  const int64_t rank = keypoints.dim();
  PYPOSEEXT_CHECK((rank == 3 || rank == 4) && keypoints.size(rank - 1) == 2, op, ": keypoints must be [B, K, 2] or [B, N, K, 2], got shape ",
                  shape_of(keypoints));
  check_device(op, "keypoints", keypoints);
  PYPOSEEXT_CHECK(height >= 0 && width >= 0 && (width == 0 || height <= (int64_t(1) << 30) / width) && height <= (1 << 30) && width <= (1 << 30), op,
                  ": size must be two numbers from 0 with a product of at most 2^30, got ", height, " and ", width);
  a.dtype = maps_dtype;
  a.batch = keypoints.size(0);
  a.people = rank == 4 ? keypoints.size(1) : 1;
  a.joints = keypoints.size(rank - 2);
  a.height = height;
  a.width = width;
  set_shape(op, options, &a);
  call.keypoints = coordinates(op, "keypoints", keypoints, maps_dtype);
  a.keypoints = call.keypoints.const_data_ptr();
  if (weights.has_value()) {
    bool fits = weights->dim() == rank - 1;
    for (int64_t d = 0; fits && d < rank - 1; ++d) fits = weights->size(d) == keypoints.size(d);
    PYPOSEEXT_CHECK(fits, op, ": weights must have the shape of keypoints without its last dimension, ", shape_of(keypoints), ", got shape ",
                    shape_of(*weights));
    check_same_device(op, "weights", *weights, "keypoints", keypoints);
    call.weights = coordinates(op, "weights", *weights, maps_dtype);
    a.weights = call.weights.const_data_ptr();
  }
  const int64_t bytes = a.batch * a.joints * a.people * int64_t(sizeof(Gaussian<double>));
  call.target_weights = empty_with_layout({a.batch, a.joints}, accumulate_dtype(maps_dtype), keypoints, false);
  call.gaussians = empty_with_layout({bytes}, ScalarType::Byte, keypoints, false);
  a.target_weights = call.target_weights.mutable_data_ptr();
  a.gaussians = call.gaussians.mutable_data_ptr();
  return call;
}

}  // namespace pyposeext
