// rle_strings: COCO's compressed form of run lengths (maskApi's rleToString): from the fourth on each is written as its
// difference to the one two before, in groups of five bits, lowest first, bit 5 saying that another group follows, as
// characters from '0' on.
#include "common/op.h"
#include "common/tensor.h"

namespace pyposeext {
namespace {

std::string rle_string(const int32_t* counts, int64_t length) {
  std::string text;
  text.reserve(size_t(2 * length));
  for (int64_t i = 0; i < length; ++i) {
    int64_t rest = int64_t(counts[i]) - (i > 2 ? counts[i - 2] : 0);
    for (bool more = true; more;) {
      const int64_t group = rest & 31;
      rest >>= 5;  // keeps the sign: the last group's bit 4 tells a reader which it is
      more = rest != (group & 16 ? -1 : 0);
      text += char('0' + (group | (more ? 32 : 0)));
    }
  }
  return text;
}

pybind11::list rle_strings(const Tensor& counts,     // [N, capacity] int32
                           const Tensor& lengths) {  // [N] int64, at most the capacity -> N of bytes
  const char* op = "rle_strings";
  PYPOSEEXT_CHECK(counts.is_cpu() && lengths.is_cpu(), op, ": counts and lengths must be on the CPU");
  PYPOSEEXT_CHECK(counts.dim() == 2 && counts.scalar_type() == ScalarType::Int && counts.is_contiguous(), op,
                  ": counts must be [N, capacity], int32, row-major, got shape ", shape_of(counts));
  const bool fits = lengths.dim() == 1 && lengths.size(0) == counts.size(0) && lengths.scalar_type() == ScalarType::Long && lengths.is_contiguous();
  PYPOSEEXT_CHECK(fits, op, ": lengths must be [", counts.size(0), "], int64, row-major, got shape ", shape_of(lengths));
  const int32_t* runs = counts.const_data_ptr<int32_t>();
  const int64_t* length = lengths.const_data_ptr<int64_t>();
  const int64_t n = counts.size(0), capacity = counts.size(1);
  pybind11::list strings;
  for (int64_t i = 0; i < n; ++i) {
    PYPOSEEXT_CHECK(length[i] >= 0 && length[i] <= capacity, op, ": lengths[", i, "] must be in 0..", capacity, ", got ", length[i]);
    strings.append(pybind11::bytes(rle_string(runs + i * capacity, length[i])));
  }
  return strings;
}

// Bytes are no tensor, so that only Python has this function, not the dispatcher.
const bool is_bound = [] {
  bindings().push_back([](pybind11::module_& module) {
    module.def("rle_strings", &rle_strings, pybind11::arg("counts"), pybind11::arg("lengths"), "COCO's compressed form of run lengths.");
  });
  return true;
}();

}  // namespace
}  // namespace pyposeext
