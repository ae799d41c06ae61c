#include "common/tensor.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

// Weak: null under a torch without CUDA, so that one library loads under both. (A stable Stream's id() is no cudaStream_t.)
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

#ifdef PYPOSEEXT_WITH_CUDA
namespace pyposeext {

void* current_cuda_stream(const Tensor& tensor) {
  PYPOSEEXT_CHECK(&aoti_torch_get_current_cuda_stream != nullptr, "a CUDA tensor was given, but the installed torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

}  // namespace pyposeext
#endif
