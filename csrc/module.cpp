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
  info["torch_running"] = py::module_::import("torch").attr("__version__").attr("__str__")();
  info["compiler"] = PYPOSEEXT_COMPILER;
#ifdef PYPOSEEXT_WITH_CUDA
  info["cuda_toolkit"] = PYPOSEEXT_CUDA_TOOLKIT;
  info["cuda_architectures"] = PYPOSEEXT_CUDA_ARCHITECTURES;
#else
  info["cuda_toolkit"] = "built without CUDA";
  info["cuda_architectures"] = "built without CUDA";
#endif
  info["cpu_level"] = cpu_level_name(cpu_level());
  info["threads"] = thread_count();
  info["ffmpeg"] = py::module_::import("av").attr("ffmpeg_version_info");
  info["weights"] = py::module_::import("pyposeext.io.weights").attr("list_weights")();
  return info;
}

}  // namespace pyposeext

PYBIND11_MODULE(_C, module) {
  module.doc() = "The kernels of pyposeext, bound one by one; pyposeext.ops has the public functions.";
  module.def("build_info", &pyposeext::build_info, "What was built, and what is used and present on this machine.");
  for (pyposeext::Binding bind : pyposeext::bindings()) bind(module);
}
