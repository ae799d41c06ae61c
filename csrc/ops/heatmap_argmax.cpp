// heatmap_argmax: the first maximum of each heatmap, refined below the pixel as published (a quarter of a pixel, DARK, the
// UDP variant of DARK), or the mean under the softmax of the map. The average with the mirrored image's maps (the flip test)
// and the map back to the image are fused into it.
#include "ops/heatmap_argmax.h"

#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "common/op.h"
#include "common/tensor.h"

namespace pyposeext {
namespace {

constexpr const char* kOp = "heatmap_argmax";

// How maps are averaged with those of the mirrored image, as the ops take it.
struct Flip {
  const std::optional<Tensor>& maps;         // [B, K, H, W]
  const std::optional<Tensor>& permutation;  // [K], int64
  int64_t shift;
};

// Each joint's counterpart must be another's only once. On a GPU that is not looked at: it would stop the stream.
void check_permutation(const Tensor& permutation) {
  if (!permutation.is_cpu()) return;
  const int64_t joints = permutation.size(0), *counterparts = static_cast<const int64_t*>(permutation.const_data_ptr());
  std::vector<bool> seen(size_t(joints), false);
  for (int64_t k = 0; k < joints; ++k) {
    const int64_t other = counterparts[k * permutation.stride(0)];
    PYPOSEEXT_CHECK(other >= 0 && other < joints && !seen[size_t(other)], kOp, ": flip_permutation must hold each of 0..", joints - 1,
                    " once, got ", other, " at ", k);
    seen[size_t(other)] = true;
  }
}

void set_flip(const Tensor& heatmaps, const Flip& flip, Tensor* permutation, HeatmapMaps* maps) {
  PYPOSEEXT_CHECK(flip.shift == 0 || flip.shift == 1, kOp, ": flip_shift must be 0 or 1, got ", flip.shift);
  PYPOSEEXT_CHECK(flip.maps.has_value() == flip.permutation.has_value(), kOp, ": flipped and flip_permutation must be given together");
  if (!flip.maps.has_value()) return;
  PYPOSEEXT_CHECK(flip.maps->dim() == 4 && shape_of(*flip.maps) == shape_of(heatmaps), kOp, ": flipped must have the shape of heatmaps, ",
                  shape_of(heatmaps), ", got shape ", shape_of(*flip.maps));
  PYPOSEEXT_CHECK(flip.maps->scalar_type() == heatmaps.scalar_type(), kOp, ": flipped must have the dtype of heatmaps");
  PYPOSEEXT_CHECK(flip.permutation->dim() == 1 && flip.permutation->size(0) == heatmaps.size(1), kOp, ": flip_permutation must be [",
                  heatmaps.size(1), "], got shape ", shape_of(*flip.permutation));
  PYPOSEEXT_CHECK(flip.permutation->scalar_type() == ScalarType::Long, kOp, ": flip_permutation must be int64");
  check_same_device(kOp, "flipped", *flip.maps, "heatmaps", heatmaps);
  check_same_device(kOp, "flip_permutation", *flip.permutation, "heatmaps", heatmaps);
  check_permutation(*flip.permutation);
  *permutation = torch::stable::contiguous(*flip.permutation);
  maps->flipped = flip.maps->const_data_ptr();
  for (int d = 0; d < 4; ++d) maps->flipped_stride[d] = flip.maps->stride(d);
  maps->flip_permutation = static_cast<const int64_t*>(permutation->const_data_ptr());
  maps->flip_shift = flip.shift;
}

// A kernel's arguments with what all of them read, and the tensors that must live as long as it runs.
template <typename Arguments>
struct Checked : Arguments {
  Tensor permutation, matrices;

  Checked(const Tensor& heatmaps, const Flip& flip, const std::optional<Tensor>& affine) : Arguments{} {
    check_dim(kOp, "heatmaps", heatmaps, 4, "[B, K, H, W]");
    this->dtype = floating_dtype(kOp, "heatmaps", heatmaps);
    check_device(kOp, "heatmaps", heatmaps);
    this->batch = heatmaps.size(0);
    this->joints = heatmaps.size(1);
    this->height = heatmaps.size(2);
    this->width = heatmaps.size(3);
    this->heatmaps = heatmaps.const_data_ptr();
    for (int d = 0; d < 4; ++d) this->stride[d] = heatmaps.stride(d);
    set_flip(heatmaps, flip, &permutation, this);
    if (!affine.has_value()) return;
    PYPOSEEXT_CHECK(affine->dim() == 3 && affine->size(0) == this->batch && affine->size(1) == 2 && affine->size(2) == 3, kOp, ": affine must be [",
                    this->batch, ", 2, 3], got shape ", shape_of(*affine));
    check_same_device(kOp, "affine", *affine, "heatmaps", heatmaps);
    matrices = coordinates(kOp, "affine", *affine, this->dtype);
    this->affine = matrices.const_data_ptr();
  }
};

Tensor empty_of(const Tensor& heatmaps, DType dtype, std::vector<int64_t> sizes) {
  return empty_with_layout(std::move(sizes), accumulate_dtype(dtype), heatmaps, false);
}

// The position of `given` among `names`.
template <size_t N>
int index_of(const char* name, const std::string& given, const std::array<const char*, N>& names) {
  std::string list;
  for (size_t i = 0; i < N; ++i) {
    if (given == names[i]) return int(i);
    list += (i ? ", " : "") + std::string(names[i]);
  }
  fail(kOp, ": ", name, " must be one of ", list, ", got ", given);
}

// OpenCV's Gaussian for a kernel size without a sigma: a table up to 9, sigma = 0.3 ((size - 1) / 2 - 1) + 0.8 above.
void set_blur(int64_t size, HeatmapArgmaxArguments* arguments) {
  static const double kSmall[5][5] = {{1},
                                      {0.5, 0.25},
                                      {0.375, 0.25, 0.0625},
                                      {0.28125, 0.21875, 0.109375, 0.03125},
                                      {0.234375, 0.19921875, 0.1171875, 0.05078125, 0.015625}};
  const int64_t radius = size / 2;
  const double sigma = 0.3 * (double(radius) - 1) + 0.8;
  double sum = 0;
  arguments->blur_radius = radius;
  for (int64_t i = 0; i <= radius; ++i) {
    arguments->blur_weight[i] = radius < 5 ? kSmall[radius][i] : std::exp(-double(i * i) / (2 * sigma * sigma));
    sum += (i ? 2 : 1) * arguments->blur_weight[i];
  }
  for (int64_t i = 0; i <= radius; ++i) arguments->blur_weight[i] /= sum;
}

}  // namespace

std::tuple<Tensor, Tensor> heatmap_argmax(const Tensor& heatmaps,  // [B, K, H, W]
                                          const std::string& refine, int64_t blur_kernel, const std::string& quarter_guard,
                                          const std::string& nonpositive,
                                          const std::optional<Tensor>& flipped,           // [B, K, H, W]
                                          const std::optional<Tensor>& flip_permutation,  // [K]
                                          int64_t flip_shift,
                                          const std::optional<Tensor>& affine) {  // [B, 2, 3] -> [B, K, 2], [B, K]
  Checked<HeatmapArgmaxArguments> arguments(heatmaps, Flip{flipped, flip_permutation, flip_shift}, affine);
  arguments.refine = Refinement(index_of<4>("refine", refine, {"none", "quarter", "dark", "dark_udp"}));
  arguments.quarter_guard = QuarterGuard(index_of<4>("quarter_guard", quarter_guard, {"hrnet", "mmpose", "inside", "separate"}));
  arguments.nonpositive = NonPositive(index_of<3>("nonpositive", nonpositive, {"keep", "zero", "minus_one"}));
  PYPOSEEXT_CHECK(blur_kernel > 0 && blur_kernel <= 2 * kMaximumBlurRadius + 1 && blur_kernel % 2 == 1, kOp,
                  ": blur_kernel must be odd, from 1 to ", 2 * kMaximumBlurRadius + 1, ", got ", blur_kernel);
  set_blur(blur_kernel, &arguments);
  Tensor coordinates = empty_of(heatmaps, arguments.dtype, {arguments.batch, arguments.joints, 2});
  Tensor scores = empty_of(heatmaps, arguments.dtype, {arguments.batch, arguments.joints});
  if (scores.numel() == 0) return {coordinates, scores};
  arguments.coordinates = coordinates.mutable_data_ptr();
  arguments.scores = scores.mutable_data_ptr();
  PYPOSEEXT_LAUNCH(heatmap_argmax, heatmaps, arguments);
  return {coordinates, scores};
}

std::tuple<Tensor, Tensor, Tensor> heatmap_soft_argmax(const Tensor& heatmaps,  // [B, K, H, W]
                                                       double temperature,
                                                       const std::optional<Tensor>& flipped,           // [B, K, H, W]
                                                       const std::optional<Tensor>& flip_permutation,  // [K]
                                                       int64_t flip_shift,
                                                       const std::optional<Tensor>& affine) {  // [B, 2, 3]
  // -> [B, K, 2], [B, K], and for the backward [B, K, 4]
  Checked<HeatmapSoftArgmaxArguments> arguments(heatmaps, Flip{flipped, flip_permutation, flip_shift}, affine);
  PYPOSEEXT_CHECK(temperature > 0 && is_finite(temperature), kOp, ": temperature must be a positive number, got ", temperature);
  arguments.temperature = temperature;
  Tensor coordinates = empty_of(heatmaps, arguments.dtype, {arguments.batch, arguments.joints, 2});
  Tensor scores = empty_of(heatmaps, arguments.dtype, {arguments.batch, arguments.joints});
  Tensor statistics = empty_of(heatmaps, arguments.dtype, {arguments.batch, arguments.joints, 4});
  if (scores.numel() == 0) return {coordinates, scores, statistics};
  arguments.coordinates = coordinates.mutable_data_ptr();
  arguments.scores = scores.mutable_data_ptr();
  arguments.statistics = statistics.mutable_data_ptr();
  PYPOSEEXT_LAUNCH(heatmap_soft_argmax, heatmaps, arguments);
  return {coordinates, scores, statistics};
}

std::tuple<Tensor, Tensor> heatmap_soft_argmax_backward(const Tensor& gradient,    // [B, K, 2]
                                                        const Tensor& heatmaps,    // [B, K, H, W]
                                                        const Tensor& statistics,  // [B, K, 4], from the forward
                                                        double temperature,
                                                        const std::optional<Tensor>& flipped,           // [B, K, H, W]
                                                        const std::optional<Tensor>& flip_permutation,  // [K]
                                                        int64_t flip_shift,
                                                        const std::optional<Tensor>& affine) {  // [B, 2, 3]
  // -> [B, K, H, W], and the same of `flipped`, or [0] without it
  Checked<HeatmapSoftArgmaxArguments> arguments(heatmaps, Flip{flipped, flip_permutation, flip_shift}, affine);
  const std::vector<int64_t> sizes{arguments.batch, arguments.joints, arguments.height, arguments.width};
  check_same_device(kOp, "gradient", gradient, "heatmaps", heatmaps);
  check_same_device(kOp, "statistics", statistics, "heatmaps", heatmaps);
  PYPOSEEXT_CHECK(gradient.numel() == sizes[0] * sizes[1] * 2, kOp, ": gradient must have 2 numbers for each heatmap, got shape ", shape_of(gradient));
  PYPOSEEXT_CHECK(statistics.numel() == sizes[0] * sizes[1] * 4, kOp, ": statistics must have 4 numbers for each heatmap, got shape ",
                  shape_of(statistics));
  Tensor out = empty_with_layout(sizes, heatmaps.scalar_type(), heatmaps, is_channels_last(heatmaps));
  Tensor flipped_out = flipped.has_value() ? empty_with_layout(sizes, heatmaps.scalar_type(), heatmaps, is_channels_last(*flipped))
                                           : empty_with_layout({0}, heatmaps.scalar_type(), heatmaps, false);
  if (out.numel() == 0) return {out, flipped_out};
  const Tensor gradients = coordinates(kOp, "gradient", gradient, arguments.dtype), saved = coordinates(kOp, "statistics", statistics, arguments.dtype);
  arguments.temperature = temperature;
  arguments.gradient = gradients.const_data_ptr();
  arguments.statistics = const_cast<void*>(saved.const_data_ptr());
  arguments.out = out.mutable_data_ptr();
  for (int d = 0; d < 4; ++d) arguments.out_stride[d] = out.stride(d);
  if (flipped.has_value()) {
    arguments.flipped_out = flipped_out.mutable_data_ptr();
    for (int d = 0; d < 4; ++d) arguments.flipped_out_stride[d] = flipped_out.stride(d);
  }
  PYPOSEEXT_LAUNCH(heatmap_soft_argmax_backward, heatmaps, arguments);
  return {out, flipped_out};
}

}  // namespace pyposeext

PYPOSEEXT_OP(heatmap_argmax,
             "(Tensor heatmaps, str refine, int blur_kernel, str quarter_guard, str nonpositive, Tensor? flipped, Tensor? flip_permutation, "
             "int flip_shift, Tensor? affine) -> (Tensor, Tensor)");
PYPOSEEXT_OP(heatmap_soft_argmax,
             "(Tensor heatmaps, float temperature, Tensor? flipped, Tensor? flip_permutation, int flip_shift, Tensor? affine) -> "
             "(Tensor, Tensor, Tensor)");
PYPOSEEXT_OP(heatmap_soft_argmax_backward,
             "(Tensor gradient, Tensor heatmaps, Tensor statistics, float temperature, Tensor? flipped, Tensor? flip_permutation, int flip_shift, "
             "Tensor? affine) -> (Tensor, Tensor)");
