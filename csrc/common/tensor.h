// What every op does with its tensors: names for them in errors, checks, allocation in the input's layout, dispatch.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "common/check.h"
#include "common/huge_pages.h"
#include "common/numeric.h"

namespace pyposeext {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) text += (d ? ", " : "") + std::to_string(tensor.size(d));
  return text + "]";
}

inline DType floating_dtype(const char* op, const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::Double: return DType::float64;
    case ScalarType::Half: return DType::float16;
    case ScalarType::BFloat16: return DType::bfloat16;
    default: fail(op, ": ", name, " must be float32, float64, float16 or bfloat16");
  }
}

// The dtype sums are kept in, and in which coordinates are handed to kernels.
inline ScalarType accumulate_dtype(DType dtype) { return dtype == DType::float64 ? ScalarType::Double : ScalarType::Float; }

inline void check_device(const char* op, const char* name, const Tensor& tensor) {
  PYPOSEEXT_CHECK(tensor.is_cpu() || tensor.is_cuda(), op, ": ", name, " must be on the CPU or a CUDA device");
#ifndef PYPOSEEXT_WITH_CUDA
  PYPOSEEXT_CHECK(tensor.is_cpu(), op, ": ", name, " is on a CUDA device, but this build of pyposeext has no CUDA kernels");
#endif
}

inline void check_same_device(const char* op, const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  PYPOSEEXT_CHECK(tensor.is_cpu() == other.is_cpu() && (tensor.is_cpu() || tensor.get_device_index() == other.get_device_index()), op,
                  ": ", name, " must be on the same device as ", other_name);
}

inline void check_dim(const char* op, const char* name, const Tensor& tensor, int64_t dim, const char* shape) {
  PYPOSEEXT_CHECK(tensor.dim() == dim, op, ": ", name, " must be ", shape, ", got shape ", shape_of(tensor));
}

// Same values in the dtype that coordinates are computed in, row-major. A copy only where dtype or layout ask for it.
inline Tensor coordinates(const char* op, const char* name, const Tensor& tensor, DType dtype) {
  floating_dtype(op, name, tensor);
  return torch::stable::contiguous(torch::stable::to(tensor, accumulate_dtype(dtype)));
}

inline bool is_channels_last(const Tensor& tensor) {  // [N, C, ..., W]: channels next to each other, the rest packed
  if (tensor.dim() < 4 || tensor.is_contiguous()) return false;
  int64_t expected = 1;
  const int64_t rank = tensor.dim();
  for (int64_t step = 0; step < rank; ++step) {
    const int64_t d = step == 0 ? 1 : step == rank - 1 ? 0 : rank - step;
    if (tensor.size(d) != 1 && tensor.stride(d) != expected) return false;
    expected *= tensor.size(d);
  }
  return true;
}

// Uninitialised, on the device of `like`. On the CPU a large one asks for huge pages.
inline Tensor empty_with_layout(std::vector<int64_t> sizes, ScalarType dtype, const Tensor& like, bool channels_last) {
  const MemoryFormat format = !channels_last      ? MemoryFormat::Contiguous
                              : sizes.size() == 5 ? MemoryFormat::ChannelsLast3d
                                                  : MemoryFormat::ChannelsLast;
  Tensor result = torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt, format);
  if (result.is_cpu()) prefer_huge_pages(result.mutable_data_ptr(), result.numel() * int64_t(result.element_size()));
  return result;
}

// Whether the CUDA kernels compute with this tensor. In the build that emulates them for the tests they take all tensors.
inline bool uses_cuda(const Tensor& tensor) {
#ifdef PYPOSEEXT_EMULATE_CUDA
  return (void)tensor, true;
#else
  return !tensor.is_cpu();
#endif
}

#ifdef PYPOSEEXT_WITH_CUDA
void* current_cuda_stream(const Tensor& tensor);

// Makes the tensor's device current, and holds its current stream.
class CudaScope {
 public:
#ifdef PYPOSEEXT_EMULATE_CUDA
  explicit CudaScope(const Tensor&) : stream_(nullptr) {}
#else
  explicit CudaScope(const Tensor& tensor) : guard_(tensor.get_device_index()), stream_(current_cuda_stream(tensor)) {}
#endif
  void* stream() const { return stream_; }

 private:
#ifndef PYPOSEEXT_EMULATE_CUDA
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  void* stream_;
};
#endif

}  // namespace pyposeext

// Runs pyposeext::<backend>::name(arguments) where `tensor` lies, on its device and its current stream.
#if defined(PYPOSEEXT_EMULATE_CUDA)
#define PYPOSEEXT_LAUNCH(name, tensor, arguments) ::pyposeext::cuda::name(arguments, nullptr)
#elif defined(PYPOSEEXT_WITH_CUDA)
#define PYPOSEEXT_LAUNCH(name, tensor, arguments)           \
  do {                                                      \
    if (::pyposeext::uses_cuda(tensor)) {                   \
      const ::pyposeext::CudaScope scope(tensor);           \
      ::pyposeext::cuda::name(arguments, scope.stream());   \
    } else {                                                \
      ::pyposeext::cpu::name(arguments);                    \
    }                                                       \
  } while (false)
#else
#define PYPOSEEXT_LAUNCH(name, tensor, arguments) ::pyposeext::cpu::name(arguments)
#endif
