// tube_nms, tube_nms_padded: greedy suppression of tubes, one box a frame, by the mean over the frames of intersection over
// union (Girdhar et al. 2018, Detect-and-Track, and its released code).
#include "ops/tube_nms.h"

#include "common/op.h"
#include "ops/suppression.h"

namespace pyposeext {
namespace {

std::tuple<Tensor, Tensor> run(const char* op, const Tensor& tubes, const Tensor& scores, double overlap_threshold,
                               const std::optional<Tensor>& indices, bool legacy_plus_one) {
  PYPOSEEXT_CHECK(tubes.dim() == 3 && tubes.size(1) > 0 && tubes.size(2) == 4, op, ": tubes must be [N, T, 4] with T of at least 1, got shape ",
                  shape_of(tubes));
  const Suppression s = prepare_suppression(op, "tubes", tubes, scores, indices, "overlap_threshold", overlap_threshold, 5 * tubes.size(1));
  if (tubes.size(0) == 0) return {s.kept, s.kept_count};
  const TubeNmsArguments arguments{
      s.arguments, tubes.const_data_ptr(), {tubes.stride(0), tubes.stride(1), tubes.stride(2)}, tubes.size(1), legacy_plus_one};
  PYPOSEEXT_LAUNCH(tube_nms, tubes, arguments);
  return {s.kept, s.kept_count};
}

}  // namespace

std::tuple<Tensor, Tensor> tube_nms_padded(const Tensor& tubes, const Tensor& scores, double overlap_threshold, const std::optional<Tensor>& indices,
                                           bool legacy_plus_one) {
  return run("tube_nms_padded", tubes, scores, overlap_threshold, indices, legacy_plus_one);
}

Tensor tube_nms(const Tensor& tubes,   // [N, T, 4]: x1, y1, x2, y2
                const Tensor& scores,  // [N]
                double overlap_threshold, const std::optional<Tensor>& indices, bool legacy_plus_one) {  // -> int64 [kept]
  return without_padding(run("tube_nms", tubes, scores, overlap_threshold, indices, legacy_plus_one));
}

}  // namespace pyposeext

PYPOSEEXT_OP(tube_nms_padded, "(Tensor tubes, Tensor scores, float overlap_threshold, Tensor? indices, bool legacy_plus_one) -> (Tensor, Tensor)");
PYPOSEEXT_OP(tube_nms, "(Tensor tubes, Tensor scores, float overlap_threshold, Tensor? indices, bool legacy_plus_one) -> Tensor");
