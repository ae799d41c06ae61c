// heatmap_argmax: the first maximum of each heatmap, refined below the pixel as published (a quarter of a pixel, DARK, the
// UDP variant of DARK), or the mean under the softmax of the map.
#include "ops/heatmap_argmax.h"

#include <array>
#include <cmath>

#include "common/op.h"
#include "common/tensor.h"

namespace pyposeext {
namespace {

template <typename Arguments>
Arguments checked(const char* op, const Tensor& heatmaps) {
  check_dim(op, "heatmaps", heatmaps, 4, "[B, K, H, W]");
  Arguments arguments{};
  arguments.dtype = floating_dtype(op, "heatmaps", heatmaps);
  check_device(op, "heatmaps", heatmaps);
  arguments.batch = heatmaps.size(0);
  arguments.joints = heatmaps.size(1);
  arguments.height = heatmaps.size(2);
  arguments.width = heatmaps.size(3);
  arguments.heatmaps = heatmaps.const_data_ptr();
  for (int d = 0; d < 4; ++d) arguments.stride[d] = heatmaps.stride(d);
  return arguments;
}

Tensor empty_of(const Tensor& heatmaps, DType dtype, std::vector<int64_t> sizes) {
  return empty_with_layout(std::move(sizes), accumulate_dtype(dtype), heatmaps, false);
}

// The position of `given` among `names`.
template <size_t N>
int index_of(const char* op, const char* name, const std::string& given, const std::array<const char*, N>& names) {
  std::string list;
  for (size_t i = 0; i < N; ++i) {
    if (given == names[i]) return int(i);
    list += (i ? ", " : "") + std::string(names[i]);
  }
  fail(op, ": ", name, " must be one of ", list, ", got ", given);
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
                                          const std::string& nonpositive) {  // -> [B, K, 2], [B, K]
  const char* op = "heatmap_argmax";
  auto arguments = checked<HeatmapArgmaxArguments>(op, heatmaps);
  arguments.refine = Refinement(index_of<4>(op, "refine", refine, {"none", "quarter", "dark", "dark_udp"}));
  arguments.mmpose_guard = index_of<2>(op, "quarter_guard", quarter_guard, {"hrnet", "mmpose"}) == 1;
  arguments.nonpositive = NonPositive(index_of<3>(op, "nonpositive", nonpositive, {"keep", "zero", "minus_one"}));
  PYPOSEEXT_CHECK(blur_kernel > 0 && blur_kernel <= 2 * kMaximumBlurRadius + 1 && blur_kernel % 2 == 1, op, ": blur_kernel must be odd, from 1 to ",
                  2 * kMaximumBlurRadius + 1, ", got ", blur_kernel);
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
                                                       double temperature) {   // -> [B, K, 2], [B, K], [B, K]
  const char* op = "heatmap_argmax";
  auto arguments = checked<HeatmapSoftArgmaxArguments>(op, heatmaps);
  PYPOSEEXT_CHECK(temperature > 0 && is_finite(temperature), op, ": temperature must be a positive number, got ", temperature);
  arguments.temperature = temperature;
  Tensor coordinates = empty_of(heatmaps, arguments.dtype, {arguments.batch, arguments.joints, 2});
  Tensor scores = empty_of(heatmaps, arguments.dtype, {arguments.batch, arguments.joints});
  Tensor sums = empty_of(heatmaps, arguments.dtype, {arguments.batch, arguments.joints});
  if (scores.numel() == 0) return {coordinates, scores, sums};
  arguments.coordinates = coordinates.mutable_data_ptr();
  arguments.scores = scores.mutable_data_ptr();
  arguments.sums = sums.mutable_data_ptr();
  PYPOSEEXT_LAUNCH(heatmap_soft_argmax, heatmaps, arguments);
  return {coordinates, scores, sums};
}

Tensor heatmap_soft_argmax_backward(const Tensor& gradient,     // [B, K, 2]
                                    const Tensor& heatmaps,     // [B, K, H, W]
                                    const Tensor& coordinates,  // [B, K, 2], with the next two: what the forward returned
                                    const Tensor& scores,       // [B, K]
                                    const Tensor& sums,         // [B, K]
                                    double temperature) {       // -> [B, K, H, W]
  const char* op = "heatmap_soft_argmax_backward";
  auto arguments = checked<HeatmapSoftArgmaxArguments>(op, heatmaps);
  std::array<Tensor, 4> rows;  // kept alive for the kernel
  const std::array<const Tensor*, 4> given{&gradient, &coordinates, &scores, &sums};
  const std::array<const char*, 4> names{"gradient", "coordinates", "scores", "sums"};
  for (size_t i = 0; i < 4; ++i) {
    check_same_device(op, names[i], *given[i], "heatmaps", heatmaps);
    PYPOSEEXT_CHECK(given[i]->numel() == arguments.batch * arguments.joints * (i < 2 ? 2 : 1), op, ": ", names[i], " must have ", i < 2 ? 2 : 1,
                    " numbers for each heatmap, got shape ", shape_of(*given[i]));
    rows[i] = pyposeext::coordinates(op, names[i], *given[i], arguments.dtype);
  }
  Tensor out = empty_with_layout({arguments.batch, arguments.joints, arguments.height, arguments.width}, heatmaps.scalar_type(), heatmaps,
                                 is_channels_last(heatmaps));
  if (out.numel() == 0) return out;
  arguments.temperature = temperature;
  arguments.gradient = rows[0].const_data_ptr();
  arguments.coordinates = const_cast<void*>(rows[1].const_data_ptr());
  arguments.scores = const_cast<void*>(rows[2].const_data_ptr());
  arguments.sums = const_cast<void*>(rows[3].const_data_ptr());
  arguments.out = out.mutable_data_ptr();
  for (int d = 0; d < 4; ++d) arguments.out_stride[d] = out.stride(d);
  PYPOSEEXT_LAUNCH(heatmap_soft_argmax_backward, heatmaps, arguments);
  return out;
}

}  // namespace pyposeext

PYPOSEEXT_OP(heatmap_argmax, "(Tensor heatmaps, str refine, int blur_kernel, str quarter_guard, str nonpositive) -> (Tensor, Tensor)");
PYPOSEEXT_OP(heatmap_soft_argmax, "(Tensor heatmaps, float temperature) -> (Tensor, Tensor, Tensor)");
PYPOSEEXT_OP(heatmap_soft_argmax_backward,
             "(Tensor gradient, Tensor heatmaps, Tensor coordinates, Tensor scores, Tensor sums, float temperature) -> Tensor");
