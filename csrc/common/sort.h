// torch's stable sort and its selection of rows, on any device and without a synchronisation.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <tuple>

namespace pyposeext {

// Sorted values and the int64 positions they came from; equal values keep their order.
inline std::tuple<torch::stable::Tensor, torch::stable::Tensor> stable_sort(const torch::stable::Tensor& values, int64_t dim, bool descending) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(values), torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(dim), torch::stable::detail::from(descending)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<torch::stable::Tensor>(stack[0]), torch::stable::detail::to<torch::stable::Tensor>(stack[1])};
}

// values[rows]
inline torch::stable::Tensor select_rows(const torch::stable::Tensor& values, const torch::stable::Tensor& rows) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(values), torch::stable::detail::from(int64_t(0)), torch::stable::detail::from(rows)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::index_select", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

}  // namespace pyposeext
