// PYPOSEEXT_OP: one C++ function becomes torch.ops.pyposeext.<name> and pyposeext._C.<name>.
#pragma once
#include <torch/csrc/stable/library.h>

#include <string>
#include <utility>
#include <vector>

#include "common/tensor_caster.h"

namespace pyposeext {

using Binding = void (*)(pybind11::module_&);
std::vector<Binding>& bindings();  // filled before main by PYPOSEEXT_OP, read once by module.cpp

// The argument names of a schema such as "(Tensor input, float scale) -> Tensor".
inline std::vector<std::string> argument_names(const std::string& schema) {
  std::vector<std::string> names;
  std::string word;
  for (char c : schema) {
    if (c == ',' || c == ')') {
      if (!word.empty()) names.push_back(word);
      if (c == ')') break;
      word.clear();
    } else if (c == ' ' || c == '(') {
      word.clear();
    } else {
      word += c;
    }
  }
  return names;
}

template <typename Result, typename... Arguments, size_t... I>
void bind_function(pybind11::module_& module, const char* name, const char* schema, Result (*function)(Arguments...), std::index_sequence<I...>) {
  const std::vector<std::string> names = argument_names(schema);
  if (names.size() != sizeof...(Arguments)) throw std::logic_error(std::string(name) + ": the schema and the function differ in their arguments");
  module.def(name, function, pybind11::arg(names[I].c_str())..., pybind11::call_guard<pybind11::gil_scoped_release>(),
             "The raw kernel: no autograd, no autocast. pyposeext.ops has the public function.");
}

template <typename Result, typename... Arguments>
void bind_function(pybind11::module_& module, const char* name, const char* schema, Result (*function)(Arguments...)) {
  bind_function(module, name, schema, function, std::index_sequence_for<Arguments...>());
}

}  // namespace pyposeext

// `name` is the function in namespace pyposeext; it chooses the backend itself, so both dispatch keys get it. It must
// return a tuple, a vector or a Tensor that shares no memory with an argument.
#define PYPOSEEXT_OP(name, schema)                                                                      \
  STABLE_TORCH_LIBRARY_FRAGMENT(pyposeext, library) { library.def(#name schema); }                      \
  STABLE_TORCH_LIBRARY_IMPL(pyposeext, CPU, library) { library.impl(#name, TORCH_BOX(&::pyposeext::name)); }  \
  STABLE_TORCH_LIBRARY_IMPL(pyposeext, CUDA, library) { library.impl(#name, TORCH_BOX(&::pyposeext::name)); } \
  static const bool name##_is_bound = [] {                                                              \
    ::pyposeext::bindings().push_back([](pybind11::module_& module) {                                   \
      ::pyposeext::bind_function(module, #name, schema, &::pyposeext::name);                            \
    });                                                                                                 \
    return true;                                                                                        \
  }()
