// scale_add: x + alpha * y. The smallest op that keeps the whole contract; docs/adding.md takes it as the pattern.
#include "ops/scale_add.h"

#include "common/op.h"
#include "common/tensor.h"

namespace pyposeext {

Tensor scale_add(const Tensor& x,  // [B, C, H, W]
                 const Tensor& y,  // [B, C, H, W]
                 double alpha) {   // -> [B, C, H, W]
  const char* op = "scale_add";
  check_dim(op, "x", x, 4, "[B, C, H, W]");
  const DType dtype = floating_dtype(op, "x", x);
  check_device(op, "x", x);
  PYPOSEEXT_CHECK(shape_of(y) == shape_of(x), op, ": y must have the shape of x, ", shape_of(x), ", got shape ", shape_of(y));
  PYPOSEEXT_CHECK(y.scalar_type() == x.scalar_type(), op, ": y must have the dtype of x");
  check_same_device(op, "y", y, "x", x);
  // One layout for all three makes them plain rows of numbers. Copies only a tensor that is packed in neither layout, or
  // a y that is not packed in x's.
  const MemoryFormat layout = is_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const Tensor left = torch::stable::contiguous(x, layout), right = torch::stable::contiguous(y, layout);
  Tensor out = empty_with_layout({x.size(0), x.size(1), x.size(2), x.size(3)}, x.scalar_type(), x, layout == MemoryFormat::ChannelsLast);
  if (out.numel() == 0) return out;
  const ScaleAddArguments arguments{dtype, out.numel(), left.const_data_ptr(), right.const_data_ptr(), alpha, out.mutable_data_ptr()};
  PYPOSEEXT_LAUNCH(scale_add, x, arguments);
  return out;
}

}  // namespace pyposeext

PYPOSEEXT_OP(scale_add, "(Tensor x, Tensor y, float alpha) -> Tensor");
