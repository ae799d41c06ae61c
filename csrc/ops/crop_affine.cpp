// crop_affine: crops of people for a network: cv2.warpAffine (bilinear, border 0), scaling, normalisation and the planes
// of a batch in one pass.
#include "ops/crop_affine.h"

#include "common/op.h"
#include "common/tensor.h"

namespace pyposeext {
namespace {

constexpr int64_t kLongestSide = int64_t(1) << 30;  // of an image: pixels are counted in 32 bits along each axis

DType output_dtype(const char* op, const std::string& dtype) {
  if (dtype == "float32") return DType::float32;
  if (dtype == "float16") return DType::float16;
  PYPOSEEXT_CHECK(dtype == "bfloat16", op, ": dtype must be float32, float16 or bfloat16, got ", dtype);
  return DType::bfloat16;
}

ScalarType scalar_type(DType dtype) {
  return dtype == DType::float32 ? ScalarType::Float : dtype == DType::float16 ? ScalarType::Half : ScalarType::BFloat16;
}

// int64 indices on the frames' device, row-major. On the CPU a wrong one is an error; on a GPU finding it would need a
// synchronisation, and such a crop is border everywhere.
Tensor checked_index(const char* op, const Tensor& index, const Tensor& frames, int64_t count) {
  PYPOSEEXT_CHECK(index.dim() == 1 && index.size(0) == count && index.scalar_type() == ScalarType::Long, op,
                  ": frame_index must be [", count, "], int64, got shape ", shape_of(index));
  check_same_device(op, "frame_index", index, "frames", frames);
  const Tensor packed = torch::stable::contiguous(index);
  if (!packed.is_cpu()) return packed;
  const int64_t* data = packed.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < count; ++n)
    PYPOSEEXT_CHECK(data[n] >= 0 && data[n] < frames.size(0), op, ": frame_index[", n, "] must be in 0..", frames.size(0) - 1, ", got ",
                    data[n]);
  return packed;
}

void set_normalisation(const char* op, const std::vector<double>& mean, const std::vector<double>& std, CropAffineArguments* arguments) {
  PYPOSEEXT_CHECK(mean.size() == 3, op, ": mean must be 3 numbers, got ", mean.size());
  PYPOSEEXT_CHECK(std.size() == 3, op, ": std must be 3 numbers, got ", std.size());
  for (int c = 0; c < 3; ++c) {
    PYPOSEEXT_CHECK(is_finite(mean[c]), op, ": mean must be finite, got ", mean[c]);
    PYPOSEEXT_CHECK(std[c] > 0 && is_finite(std[c]), op, ": std must be positive, got ", std[c]);
    arguments->scale[c] = float(1 / (255 * std[c]));
    arguments->bias[c] = float(-mean[c] / std[c]);
  }
}

void set_frames(const char* op, const Tensor& frames, CropAffineArguments* arguments) {
  PYPOSEEXT_CHECK(frames.dim() == 4 && frames.size(3) == 3, op, ": frames must be [F, H, W, 3], got shape ", shape_of(frames));
  PYPOSEEXT_CHECK(frames.scalar_type() == ScalarType::Byte, op, ": frames must be uint8");
  PYPOSEEXT_CHECK(frames.size(1) < kLongestSide && frames.size(2) < kLongestSide, op,
                  ": frames must have fewer than 2^30 rows and columns, got shape ", shape_of(frames));
  check_device(op, "frames", frames);
  arguments->frames = frames.size(0);
  arguments->height = frames.size(1);
  arguments->width = frames.size(2);
  arguments->image = frames.const_data_ptr<uint8_t>();
  for (int d = 0; d < 4; ++d) arguments->stride[d] = frames.stride(d);
}

}  // namespace

Tensor crop_affine(const Tensor& frames,                      // [F, H, W, 3], uint8
                   const Tensor& matrices,                    // [N, 2, 3]
                   const std::optional<Tensor>& frame_index,  // [N], int64
                   int64_t height, int64_t width, std::vector<double> mean, std::vector<double> std, const std::string& dtype,
                   bool channels_last, bool swap_channels, bool inverse_map) {  // -> [N, 3, height, width]
  const char* op = "crop_affine";
  CropAffineArguments arguments{};
  set_frames(op, frames, &arguments);
  PYPOSEEXT_CHECK(matrices.dim() == 3 && matrices.size(1) == 2 && matrices.size(2) == 3, op, ": matrices must be [N, 2, 3], got shape ",
                  shape_of(matrices));
  check_same_device(op, "matrices", matrices, "frames", frames);
  const Tensor transforms = coordinates(op, "matrices", matrices, DType::float64);
  const int64_t count = matrices.size(0);
  PYPOSEEXT_CHECK(frame_index.has_value() || frames.size(0) == 1 || count == 0, op, ": frame_index must be given for ", frames.size(0),
                  " frames");
  Tensor index;
  if (frame_index.has_value()) index = checked_index(op, *frame_index, frames, count);
  PYPOSEEXT_CHECK(height >= 0 && width >= 0 && height < kLongestSide && width < kLongestSide, op, ": size must be in 0..2^30, got ", height,
                  " x ", width);
  set_normalisation(op, mean, std, &arguments);
  arguments.dtype = output_dtype(op, dtype);
  Tensor out = empty_with_layout({count, 3, height, width}, scalar_type(arguments.dtype), frames, channels_last);
  if (out.numel() == 0) return out;
  arguments.matrices = transforms.const_data_ptr<double>();
  arguments.inverse_map = inverse_map;
  arguments.frame_index = frame_index.has_value() ? index.const_data_ptr<int64_t>() : nullptr;
  arguments.count = count;
  arguments.crop_height = height;
  arguments.crop_width = width;
  arguments.swap_channels = swap_channels;
  arguments.channels_last = channels_last;
  arguments.out = out.mutable_data_ptr();
  PYPOSEEXT_LAUNCH(crop_affine, frames, arguments);
  return out;
}

}  // namespace pyposeext

PYPOSEEXT_OP(crop_affine,
             "(Tensor frames, Tensor matrices, Tensor? frame_index, SymInt height, SymInt width, float[] mean, float[] std, str dtype, "
             "bool channels_last, bool swap_channels, bool inverse_map) -> Tensor");
