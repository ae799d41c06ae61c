// The module pyposeext._C: every op that PYPOSEEXT_OP named, and what was built.
#include "common/cpu_level.h"
#include "common/op.h"
#include "common/parallel.h"

namespace py = pybind11;

namespace pyposeext {

std::vector<Binding>& bindings() {
  static std::vector<Binding> all;
  return all;
}

py::dict build_info() {
  py::dict info;
  info["version"] = PYPOSEEXT_VERSION;
  info["torch_built_against"] = PYPOSEEXT_TORCH_VERSION;
  info["compiler"] = PYPOSEEXT_COMPILER;
#ifdef PYPOSEEXT_WITH_CUDA
  info["cuda_toolkit"] = PYPOSEEXT_CUDA_TOOLKIT;
  info["cuda_architectures"] = PYPOSEEXT_CUDA_ARCHITECTURES;
#else
  info["cuda_toolkit"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
  info["cpu_level"] = cpu_level_name(cpu_level());
  info["threads"] = thread_count();
  return info;
}

}  // namespace pyposeext

PYBIND11_MODULE(_C, module) {
  module.doc() = "The kernels of pyposeext, bound one by one; pyposeext.ops has the public functions.";
  module.def("build_info", &pyposeext::build_info, "What this extension was built with, and what it uses on this machine.");
  for (pyposeext::Binding bind : pyposeext::bindings()) bind(module);
}
