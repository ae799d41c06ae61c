// deform_conv2d: a convolution whose taps sample the input at learned offsets, bilinear, each times a learned mask.
// Dai et al. 2017, Deformable Convolutional Networks, section 2.1; Zhu et al. 2019, Deformable ConvNets v2, section 3.2.
#include "ops/deform_conv2d.h"

#include <array>

#include "common/op.h"
#include "common/sort.h"
#include "common/tensor.h"

namespace pyposeext {
namespace {

constexpr int64_t kLargestStep = int64_t(1) << 24;  // of stride, padding and dilation: sizes then stay far from overflow

DeformMaps maps_of(const Tensor& tensor) {
  DeformMaps maps{const_cast<void*>(tensor.const_data_ptr()), {}};
  for (int64_t d = 0; d < tensor.dim(); ++d) maps.stride[d] = tensor.stride(d);
  return maps;
}

void check_pair(const char* op, const char* name, const std::vector<int64_t>& pair, int64_t least) {
  const bool fits = pair.size() == 2 && pair[0] >= least && pair[1] >= least;
  PYPOSEEXT_CHECK(fits, op, ": ", name, " must be two numbers of at least ", least);
  PYPOSEEXT_CHECK(pair[0] < kLargestStep && pair[1] < kLargestStep, op, ": ", name, " must be below 2^24, got ", pair[0], " and ", pair[1]);
}

void check_like_input(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  PYPOSEEXT_CHECK(tensor.scalar_type() == input.scalar_type(), op, ": ", name, " must have the dtype of input");
  check_same_device(op, name, tensor, "input", input);
}

void check_shape(const char* op, const char* name, const Tensor& tensor, const std::array<int64_t, 4>& shape) {
  bool fits = tensor.dim() == 4;
  for (int64_t d = 0; fits && d < 4; ++d) fits = tensor.size(d) == shape[size_t(d)];
  PYPOSEEXT_CHECK(fits, op, ": ", name, " must be [", shape[0], ", ", shape[1], ", ", shape[2], ", ", shape[3], "], got shape ", shape_of(tensor));
}

int64_t sampled_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

void set_sizes(const char* op, const Tensor& input, const Tensor& weight, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
               const std::vector<int64_t>& dilation, DeformConv2dArguments* a) {
  a->batch = input.size(0);
  a->channels = input.size(1);
  a->height = input.size(2);
  a->width = input.size(3);
  a->outputs = weight.size(0);
  a->kernel_height = weight.size(2);
  a->kernel_width = weight.size(3);
  PYPOSEEXT_CHECK(weight.size(0) > 0 && weight.size(1) > 0 && weight.size(2) > 0 && weight.size(3) > 0, op,
                  ": weight must have no size of 0, got shape ", shape_of(weight));
  a->groups = a->channels / weight.size(1);
  PYPOSEEXT_CHECK(a->groups > 0 && a->channels % weight.size(1) == 0, op, ": the channels of input, ", a->channels,
                  ", must be a multiple of those of weight, ", weight.size(1));
  PYPOSEEXT_CHECK(a->outputs % a->groups == 0, op, ": the outputs of weight, ", a->outputs, ", must be a multiple of the ", a->groups,
                  " weight groups");
  PYPOSEEXT_CHECK(a->height > 0 && a->width > 0, op, ": input must have at least one pixel, got shape ", shape_of(input));
  PYPOSEEXT_CHECK(a->height < (int64_t(1) << 24) && a->width < (int64_t(1) << 24) && (a->height + 1) * (a->width + 1) < (int64_t(1) << 31), op,
                  ": input must have less than 2^31 pixels, and 2^24 in a row or column, got shape ", shape_of(input));
  a->stride_y = stride[0];
  a->stride_x = stride[1];
  a->padding_y = padding[0];
  a->padding_x = padding[1];
  a->dilation_y = dilation[0];
  a->dilation_x = dilation[1];
  a->out_height = sampled_size(a->height, a->kernel_height, a->stride_y, a->padding_y, a->dilation_y);
  a->out_width = sampled_size(a->width, a->kernel_width, a->stride_x, a->padding_x, a->dilation_x);
  PYPOSEEXT_CHECK(a->out_height > 0 && a->out_width > 0, op, ": the kernel must fit into the padded input, got input of shape ", shape_of(input),
                  " and weight of shape ", shape_of(weight));
  PYPOSEEXT_CHECK(a->out_height * a->out_width < (int64_t(1) << 31), op, ": the result must have less than 2^31 pixels, got ", a->out_height, " x ",
                  a->out_width);
}

void set_samples(const char* op, const Tensor& input, const Tensor& offset, const std::optional<Tensor>& mask, Tensor* positions,
                 DeformConv2dArguments* a) {
  floating_dtype(op, "offset", offset);
  check_same_device(op, "offset", offset, "input", input);
  check_dim(op, "offset", offset, 4, "[N, 2 * offset groups * taps, OH, OW]");
  const int64_t taps = deform_taps(*a);
  a->offset_groups = offset.size(1) / (2 * taps);
  PYPOSEEXT_CHECK(a->offset_groups > 0 && offset.size(1) % (2 * taps) == 0, op, ": offset must have a multiple of 2 * ", taps,
                  " channels, got shape ", shape_of(offset));
  PYPOSEEXT_CHECK(a->channels % a->offset_groups == 0, op, ": the channels of input, ", a->channels, ", must be a multiple of the ", a->offset_groups,
                  " offset groups");
  check_shape(op, "offset", offset, {a->batch, offset.size(1), a->out_height, a->out_width});
  *positions = torch::stable::to(offset, accumulate_dtype(a->dtype));
  a->offset = maps_of(*positions);
  if (!mask.has_value()) return;
  check_like_input(op, "mask", *mask, input);
  check_shape(op, "mask", *mask, {a->batch, a->offset_groups * taps, a->out_height, a->out_width});
  a->mask = maps_of(*mask);
}

// Offsets of another dtype than positions have are converted, which copies them to `positions`.
DeformConv2dArguments checked(const char* op, const Tensor& input, const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
                              const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                              Tensor* positions) {
  DeformConv2dArguments a{};
  check_dim(op, "input", input, 4, "[N, C, H, W]");
  a.dtype = floating_dtype(op, "input", input);
  check_device(op, "input", input);
  check_dim(op, "weight", weight, 4, "[O, C / groups, kernel height, kernel width]");
  check_like_input(op, "weight", weight, input);
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", padding, 0);
  check_pair(op, "dilation", dilation, 1);
  set_sizes(op, input, weight, stride, padding, dilation, &a);
  set_samples(op, input, offset, mask, positions, &a);
  a.input = maps_of(input);
  a.weight = maps_of(weight);
  return a;
}

// An uninitialised gradient for `like` and its place in the arguments; empty where it is not wanted.
Tensor gradient_of(const Tensor& like, bool wanted, ScalarType dtype, DeformMaps* maps) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; wanted && d < like.dim(); ++d) sizes.push_back(like.size(d));
  if (!wanted) sizes.push_back(0);
  Tensor gradient = empty_with_layout(sizes, dtype, like, wanted && is_channels_last(like));
  if (wanted) *maps = maps_of(gradient);
  return gradient;
}

#ifdef PYPOSEEXT_WITH_CUDA

// Copies and scratch of the CUDA kernels, alive until they are queued.
struct CudaScratch {
  Tensor input, gradient, weight, cell, begin, sums;
  std::tuple<Tensor, Tensor> sorted;
};

Tensor empty_numbers(std::vector<int64_t> sizes, ScalarType dtype, const Tensor& like) {
  return torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt, std::nullopt);
}

// Channels next to each other: a copy only where they are not.
const void* pack(const Tensor& tensor, Tensor* packed) {
  *packed = torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast);
  return packed->const_data_ptr();
}

void sort_cells(const Tensor& input, CudaScratch* scratch, DeformConv2dArguments* a) {
  const int64_t rows = a->batch * a->offset_groups * deform_taps(*a);
  scratch->cell = empty_numbers({rows, a->out_height * a->out_width}, ScalarType::Int, input);
  scratch->begin = empty_numbers({rows, deform_cell_count(*a) + 1}, ScalarType::Int, input);
  a->cell = scratch->cell.mutable_data_ptr<int32_t>();
  a->begin = scratch->begin.mutable_data_ptr<int32_t>();
  const CudaScope scope(input);
  cuda::deform_conv2d_cells(*a, scope.stream());
  scratch->sorted = stable_sort(scratch->cell, 1, false);
  a->sorted_cell = std::get<0>(scratch->sorted).const_data_ptr<int32_t>();
  a->order = std::get<1>(scratch->sorted).const_data_ptr<int64_t>();
}

void prepare_backward(const Tensor& gradient, const Tensor& input, const Tensor& weight, CudaScratch* scratch, DeformConv2dArguments* a) {
  a->packed_input = pack(input, &scratch->input);
  a->packed_gradient = pack(gradient, &scratch->gradient);
  a->packed_weight = pack(weight, &scratch->weight);
  if (a->input_gradient.data != nullptr) sort_cells(input, scratch, a);
  if (a->weight_gradient.data == nullptr) return;
  a->splits = cuda::deform_conv2d_splits(*a);
  scratch->sums = empty_numbers({a->splits, weight.numel()}, accumulate_dtype(a->dtype), input);
  a->weight_sums = scratch->sums.mutable_data_ptr();
}

#endif

}  // namespace

Tensor deform_conv2d(const Tensor& input,                   // [N, C, H, W]
                     const Tensor& offset,                  // [N, 2 * offset groups * taps, OH, OW]: dy, dx of each tap
                     const Tensor& weight,                  // [O, C / groups, kernel height, kernel width]
                     const std::optional<Tensor>& bias,     // [O]
                     const std::optional<Tensor>& mask,     // [N, offset groups * taps, OH, OW]
                     std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation) {  // -> [N, O, OH, OW]
  const char* op = "deform_conv2d";
  Tensor positions;
  DeformConv2dArguments a = checked(op, input, offset, weight, mask, stride, padding, dilation, &positions);
  if (bias.has_value()) {
    check_like_input(op, "bias", *bias, input);
    PYPOSEEXT_CHECK(bias->dim() == 1 && bias->size(0) == a.outputs, op, ": bias must be [", a.outputs, "], got shape ", shape_of(*bias));
    a.bias = maps_of(*bias);
  }
  Tensor out = empty_with_layout({a.batch, a.outputs, a.out_height, a.out_width}, input.scalar_type(), input, is_channels_last(input));
  if (out.numel() == 0) return out;
  a.out = maps_of(out);
#ifdef PYPOSEEXT_WITH_CUDA
  CudaScratch scratch;
  if (uses_cuda(input)) {
    a.packed_input = pack(input, &scratch.input);
    a.packed_weight = pack(torch::stable::transpose(weight, 0, 1), &scratch.weight);
  }
#endif
  PYPOSEEXT_LAUNCH(deform_conv2d_forward, input, a);
  return out;
}

// The gradients of input, offset, weight, bias and mask; [0] for each that `wanted` leaves out.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> deform_conv2d_backward(const Tensor& gradient,  // [N, O, OH, OW]
                                                                          const Tensor& input, const Tensor& offset, const Tensor& weight,
                                                                          const std::optional<Tensor>& mask, std::vector<int64_t> stride,
                                                                          std::vector<int64_t> padding, std::vector<int64_t> dilation,
                                                                          std::vector<int64_t> wanted) {
  const char* op = "deform_conv2d_backward";
  Tensor positions;
  DeformConv2dArguments a = checked(op, input, offset, weight, mask, stride, padding, dilation, &positions);
  check_like_input(op, "gradient", gradient, input);
  check_shape(op, "gradient", gradient, {a.batch, a.outputs, a.out_height, a.out_width});
  PYPOSEEXT_CHECK(wanted.size() == 5, op, ": wanted must be five flags");
  const ScalarType dtype = input.scalar_type();
  Tensor of_input = gradient_of(input, wanted[0] != 0, dtype, &a.input_gradient);
  Tensor of_offset = gradient_of(positions, wanted[1] != 0, positions.scalar_type(), &a.offset_gradient);
  Tensor of_weight = gradient_of(weight, wanted[2] != 0, dtype, &a.weight_gradient);
  Tensor of_bias = torch::stable::empty({wanted[3] != 0 ? a.outputs : 0}, dtype, std::nullopt, input.device(), std::nullopt, std::nullopt);
  if (wanted[3] != 0 && !uses_cuda(input)) a.bias_gradient = maps_of(of_bias);  // on a GPU a sum of torch's gives it
  Tensor of_mask = gradient_of(mask.value_or(input), mask.has_value() && wanted[4] != 0, dtype, &a.mask_gradient);
  if (a.batch > 0) {
    a.out = maps_of(gradient);
#ifdef PYPOSEEXT_WITH_CUDA
    CudaScratch scratch;
    if (uses_cuda(input)) {
      prepare_backward(gradient, input, weight, &scratch, &a);
      if (wanted[3] != 0) of_bias = torch::stable::sum(gradient, std::vector<int64_t>{0, 2, 3});
    }
#endif
    PYPOSEEXT_LAUNCH(deform_conv2d_backward, input, a);
  } else {
    torch::stable::zero_(of_weight);
    torch::stable::zero_(of_bias);
  }
  return {of_input, torch::stable::to(of_offset, offset.scalar_type()), of_weight, of_bias, of_mask};
}

}  // namespace pyposeext

PYPOSEEXT_OP(deform_conv2d,
             "(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, int[] stride, int[] padding, int[] dilation) -> Tensor");
PYPOSEEXT_OP(deform_conv2d_backward,
             "(Tensor gradient, Tensor input, Tensor offset, Tensor weight, Tensor? mask, int[] stride, int[] padding, int[] dilation, int[] wanted) "
             "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
