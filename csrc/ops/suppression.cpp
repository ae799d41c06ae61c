#include "ops/suppression.h"

#include "common/sort.h"

namespace pyposeext {
namespace {

template <typename T> T* hold(Suppression* s, const Tensor& tensor) {
  s->held.push_back(tensor);
  return static_cast<T*>(s->held.back().mutable_data_ptr());
}

// What the CUDA kernels need besides: entries in order, by torch's sort, and scratch memory, linear in N.
void prepare_cuda(Suppression* s, const Tensor& entries, const Tensor& scores, const std::optional<Tensor>& indices, int64_t fields) {
  SuppressionArguments& a = s->arguments;
  const int64_t n = a.count;
  const Tensor order = std::get<1>(stable_sort(scores, 0, true));
  a.order = hold<int64_t>(s, order);
  if (indices.has_value()) {
    const auto [sorted_groups, ranks] = stable_sort(select_rows(*indices, order), 0, false);
    a.sorted_groups = hold<int64_t>(s, sorted_groups);
    a.ranks = hold<int64_t>(s, ranks);
  }
  const auto scratch = [&](std::vector<int64_t> sizes, ScalarType dtype) { return empty_with_layout(sizes, dtype, entries, false); };
  a.fields = hold<void>(s, scratch({fields, n}, accumulate_dtype(a.dtype)));
  a.begins = hold<int64_t>(s, scratch({n}, ScalarType::Long));
  a.ends = hold<int64_t>(s, scratch({n}, ScalarType::Long));
  a.mask = hold<uint32_t>(s, scratch({kChunkWords, n}, ScalarType::Int));
  a.removed = hold<uint8_t>(s, scratch({n}, ScalarType::Byte));
  a.kept_at_rank = hold<uint8_t>(s, scratch({n}, ScalarType::Byte));
}

}  // namespace

Suppression prepare_suppression(const char* op, const char* name, const Tensor& entries, const Tensor& scores, const std::optional<Tensor>& indices,
                                const char* threshold_name, double threshold, int64_t fields) {
  const int64_t n = entries.size(0);
  PYPOSEEXT_CHECK(scores.dim() == 1 && scores.size(0) == n, op, ": scores must be [", n, "], got shape ", shape_of(scores));
  PYPOSEEXT_CHECK(threshold == threshold, op, ": ", threshold_name, " must be a number, got NaN");
  Suppression s;
  SuppressionArguments& a = s.arguments;
  a.dtype = floating_dtype(op, name, entries);
  a.count = n;
  a.threshold = threshold;
  a.score_dtype = floating_dtype(op, "scores", scores);
  check_device(op, name, entries);
  check_same_device(op, "scores", scores, name, entries);
  if (indices.has_value()) {
    PYPOSEEXT_CHECK(indices->dim() == 1 && indices->size(0) == n && indices->scalar_type() == ScalarType::Long, op, ": indices must be int64 [", n,
                    "], got shape ", shape_of(*indices));
    check_same_device(op, "indices", *indices, name, entries);
  }
  s.kept = empty_with_layout({n}, ScalarType::Long, entries, false);
  s.kept_count = n == 0 ? torch::stable::full({}, 0.0, ScalarType::Long, std::nullopt, entries.device())
                        : empty_with_layout({}, ScalarType::Long, entries, false);
  a.kept = s.kept.mutable_data_ptr<int64_t>();
  a.kept_count = s.kept_count.mutable_data_ptr<int64_t>();
  if (n == 0) return s;
  if (uses_cuda(entries)) {
    prepare_cuda(&s, entries, scores, indices, fields);
    return s;
  }
  a.scores = scores.const_data_ptr();
  a.score_stride = scores.stride(0);
  if (indices.has_value()) {
    a.groups = indices->const_data_ptr<int64_t>();
    a.group_stride = indices->stride(0);
  }
  return s;
}

Tensor without_padding(const std::tuple<Tensor, Tensor>& padded) {
  Tensor kept = std::get<0>(padded), count = std::get<1>(padded);
  if (!count.is_cpu()) count = torch::stable::to(count, torch::stable::Device("cpu"));
  return torch::stable::clone(torch::stable::narrow(kept, 0, 0, *count.const_data_ptr<int64_t>()));
}

}  // namespace pyposeext
