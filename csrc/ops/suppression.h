// What the ops of the suppression family do around the kernel: checks, results, order, scratch memory.
#pragma once
#include <tuple>

#include "common/suppression.h"
#include "common/tensor.h"

namespace pyposeext {

// The arguments of the engine, and the tensors that they point into.
struct Suppression {
  SuppressionArguments arguments{};
  Tensor kept, kept_count;
  std::vector<Tensor> held;
};

// `entries` has N rows in a floating dtype, on a device that is checked here; `fields` is what the similarity keeps of each.
Suppression prepare_suppression(const char* op, const char* name, const Tensor& entries, const Tensor& scores, const std::optional<Tensor>& indices,
                                const char* threshold_name, double threshold, int64_t fields);

// The first `count` of the kept entries, in memory of their own. On a GPU this reads one number back.
Tensor without_padding(const std::tuple<Tensor, Tensor>& padded);

}  // namespace pyposeext
