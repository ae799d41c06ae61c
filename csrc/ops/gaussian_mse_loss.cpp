// gaussian_mse_loss: the loss of each heatmap against a Gaussian target that is never stored (Sun et al. 2019, HRNet):
// 0.5 * the mean over the pixels of (weight * prediction - weight * target)^2.
#include "ops/gaussian_mse_loss.h"

#include "common/op.h"
#include "ops/gaussian_checks.h"

namespace pyposeext {
namespace {

struct LossCall {
  GaussianCall gaussians;
  GaussianLossArguments arguments;
};

LossCall checked(const char* op, const Tensor& prediction, const Tensor& keypoints, const std::optional<Tensor>& weights,
                 const GaussianOptions& options, const std::string& reduction) {
  check_dim(op, "prediction", prediction, 4, "[B, K, H, W]");
  const DType dtype = floating_dtype(op, "prediction", prediction);
  check_device(op, "prediction", prediction);
  check_same_device(op, "keypoints", keypoints, "prediction", prediction);
  PYPOSEEXT_CHECK(reduction == "none" || reduction == "mean" || reduction == "sum", op, ": reduction must be none, mean or sum, got ", reduction);
  LossCall call{gaussian_call(op, keypoints, weights, prediction.size(2), prediction.size(3), dtype, options), {}};
  GaussianLossArguments& a = call.arguments;
  a.gaussians = call.gaussians.arguments;
  PYPOSEEXT_CHECK(prediction.size(0) == a.gaussians.batch && prediction.size(1) == channels_of(a.gaussians), op, ": prediction must be [",
                  a.gaussians.batch, ", ", channels_of(a.gaussians), ", H, W] for these keypoints, got shape ", shape_of(prediction));
  a.reduction = reduction == "none" ? Reduction::none : reduction == "mean" ? Reduction::mean : Reduction::sum;
  a.prediction = prediction.const_data_ptr();
  for (int d = 0; d < 4; ++d) a.stride[d] = prediction.stride(d);
  a.packed = is_channels_last(prediction);
  return call;
}

}  // namespace

Tensor gaussian_mse_loss(const Tensor& prediction,              // [B, C, H, W]
                         const Tensor& keypoints,               // [B, K, 2] or [B, N, K, 2]
                         const std::optional<Tensor>& weights,  // [B, K] or [B, N, K]
                         double sigma, const std::string& mode, double amplitude, double cutoff, const std::string& background,
                         bool keep_outside, const std::string& reduction) {  // -> [B, C] or []
  const GaussianOptions options{sigma, mode, amplitude, cutoff, background, keep_outside};
  LossCall call = checked("gaussian_mse_loss", prediction, keypoints, weights, options, reduction);
  GaussianLossArguments& a = call.arguments;
  const std::vector<int64_t> sizes = a.reduction == Reduction::none ? std::vector<int64_t>{prediction.size(0), prediction.size(1)} : std::vector<int64_t>{};
  Tensor loss = empty_with_layout(sizes, accumulate_dtype(a.gaussians.dtype), prediction, false);
  if (prediction.numel() == 0) return torch::stable::fill_(loss, 0.0);
  a.loss = loss.mutable_data_ptr();
  Tensor partial;
  if (uses_cuda(prediction)) {
    partial = empty_with_layout({prediction.size(0), prediction.size(1), segments_of(a)}, loss.scalar_type(), prediction, false);
    a.partial = partial.mutable_data_ptr();
  }
  PYPOSEEXT_LAUNCH(gaussian_mse_loss, prediction, a);
  return loss;
}

Tensor gaussian_mse_loss_backward(const Tensor& gradient,                // [B, C] or []
                                  const Tensor& prediction,              // [B, C, H, W]
                                  const Tensor& keypoints,               // [B, K, 2] or [B, N, K, 2]
                                  const std::optional<Tensor>& weights,  // [B, K] or [B, N, K]
                                  double sigma, const std::string& mode, double amplitude, double cutoff, const std::string& background,
                                  bool keep_outside, const std::string& reduction) {  // -> [B, C, H, W]
  const char* op = "gaussian_mse_loss_backward";
  const GaussianOptions options{sigma, mode, amplitude, cutoff, background, keep_outside};
  LossCall call = checked(op, prediction, keypoints, weights, options, reduction);
  GaussianLossArguments& a = call.arguments;
  const int64_t numbers = a.reduction == Reduction::none ? prediction.size(0) * prediction.size(1) : 1;
  PYPOSEEXT_CHECK(gradient.numel() == numbers, op, ": gradient must have ", numbers, " numbers, got shape ", shape_of(gradient));
  check_same_device(op, "gradient", gradient, "prediction", prediction);
  Tensor out = empty_with_layout({prediction.size(0), prediction.size(1), prediction.size(2), prediction.size(3)}, prediction.scalar_type(),
                                 prediction, a.packed);
  if (out.numel() == 0) return out;
  const Tensor numbers_given = coordinates(op, "gradient", gradient, a.gaussians.dtype);
  a.gradient = numbers_given.const_data_ptr();
  a.out = out.mutable_data_ptr();
  PYPOSEEXT_LAUNCH(gaussian_mse_loss_backward, prediction, a);
  return out;
}

}  // namespace pyposeext

PYPOSEEXT_OP(gaussian_mse_loss,
             "(Tensor prediction, Tensor keypoints, Tensor? weights, float sigma, str mode, float amplitude, float cutoff, "
             "str background, bool keep_outside, str reduction) -> Tensor");
PYPOSEEXT_OP(gaussian_mse_loss_backward,
             "(Tensor gradient, Tensor prediction, Tensor keypoints, Tensor? weights, float sigma, str mode, float amplitude, float cutoff, "
             "str background, bool keep_outside, str reduction) -> Tensor");
