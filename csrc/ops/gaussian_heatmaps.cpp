// gaussian_heatmaps: training targets, a Gaussian at each keypoint: exp(-((x - u)^2 + (y - v)^2) / (2 sigma^2)) with the
// centre (u, v) rounded and cut to a square (Sun et al. 2019, HRNet), real within the same square (Huang et al. 2020, UDP)
// or real on the whole map (Zhang et al. 2020, DARK).
#include "ops/gaussian_heatmaps.h"

#include "common/op.h"
#include "ops/gaussian_checks.h"

namespace pyposeext {
namespace {

ScalarType dtype_named(const char* op, const std::string& name) {
  if (name == "float32") return ScalarType::Float;
  if (name == "float64") return ScalarType::Double;
  if (name == "float16") return ScalarType::Half;
  if (name == "bfloat16") return ScalarType::BFloat16;
  fail(op, ": dtype must be float32, float64, float16 or bfloat16, got ", name);
}

DType kernel_dtype(ScalarType dtype) {
  return dtype == ScalarType::Float    ? DType::float32
         : dtype == ScalarType::Double ? DType::float64
         : dtype == ScalarType::Half   ? DType::float16
                                       : DType::bfloat16;
}

}  // namespace

std::tuple<Tensor, Tensor> gaussian_heatmaps(const Tensor& keypoints,               // [B, K, 2] or [B, N, K, 2]
                                             const std::optional<Tensor>& weights,  // [B, K] or [B, N, K]
                                             int64_t height, int64_t width, double sigma, const std::string& mode, double amplitude,
                                             double cutoff, const std::string& background, bool keep_outside, const std::string& dtype,
                                             bool channels_last) {  // -> [B, K (+ 1), H, W], [B, K]
  const char* op = "gaussian_heatmaps";
  const ScalarType element = dtype_named(op, dtype);
  const GaussianOptions options{sigma, mode, amplitude, cutoff, background, keep_outside};
  const GaussianCall call = gaussian_call(op, keypoints, weights, height, width, kernel_dtype(element), options);
  const GaussianArguments& a = call.arguments;
  Tensor out = empty_with_layout({a.batch, channels_of(a), height, width}, element, keypoints, channels_last);
  if (out.numel() > 0 || call.target_weights.numel() > 0) {
    const GaussianHeatmapsArguments arguments{a, channels_last, out.mutable_data_ptr()};
    PYPOSEEXT_LAUNCH(gaussian_heatmaps, keypoints, arguments);
  }
  return {out, call.target_weights};
}

}  // namespace pyposeext

PYPOSEEXT_OP(gaussian_heatmaps,
             "(Tensor keypoints, Tensor? weights, SymInt height, SymInt width, float sigma, str mode, float amplitude, float cutoff, "
             "str background, bool keep_outside, str dtype, bool channels_last) -> (Tensor, Tensor)");
