// pybind11 <-> torch::stable::Tensor through type(x).__dlpack_c_exchange_api__: one C call each way, no unstable torch
// symbol, no synchronisation. Any array type with that capsule is accepted; results are torch tensors.
#pragma once
#pragma push_macro("TORCH_TARGET_VERSION")
#undef TORCH_TARGET_VERSION  // the pybind11 headers inside torch refuse the macro; keep both them and pip's working
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#pragma pop_macro("TORCH_TARGET_VERSION")
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "common/dlpack.h"

namespace pyposeext {

struct DLPackType {
  DLDataType dlpack;
  int32_t (*torch)();
};

inline constexpr DLPackType kDLPackTypes[] = {
    {{2, 32, 1}, aoti_torch_dtype_float32},  {{2, 64, 1}, aoti_torch_dtype_float64}, {{2, 16, 1}, aoti_torch_dtype_float16},
    {{4, 16, 1}, aoti_torch_dtype_bfloat16}, {{0, 64, 1}, aoti_torch_dtype_int64},   {{0, 32, 1}, aoti_torch_dtype_int32},
    {{1, 8, 1}, aoti_torch_dtype_uint8},     {{6, 8, 1}, aoti_torch_dtype_bool},
};
inline constexpr int32_t kDLPackCpu = 1, kDLPackCuda = 2;

}  // namespace pyposeext

namespace pybind11::detail {

template <>
struct type_caster<torch::stable::Tensor> {
  torch::stable::Tensor value;
  static constexpr auto name = const_name("torch.Tensor");
  template <typename T> using cast_op_type = detail::cast_op_type<T>;
  operator torch::stable::Tensor&() { return value; }
  operator torch::stable::Tensor*() { return &value; }

  static const DLPackExchangeAPI* exchange_api(handle type) {
    object capsule = getattr(type, "__dlpack_c_exchange_api__", none());
    if (capsule.is_none()) return nullptr;
    return static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  }

  // The tensor borrows the argument's memory: pybind11 keeps the argument alive for the call.
  bool load(handle source, bool) {
    const DLPackExchangeAPI* exchange = exchange_api(type::handle_of(source));
    if (exchange == nullptr) return false;
    DLTensor array;
    if (exchange->dltensor_from_py_object_no_sync(source.ptr(), &array) != 0) throw error_already_set();
    const int32_t device = array.device.device_type;
    if (device != pyposeext::kDLPackCpu && device != pyposeext::kDLPackCuda) throw type_error("a tensor must be on the CPU or a CUDA device");
    for (const auto& known : pyposeext::kDLPackTypes) {
      if (known.dlpack.code != array.dtype.code || known.dlpack.bits != array.dtype.bits || array.dtype.lanes != 1) continue;
      AtenTensorHandle tensor = nullptr;
      TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
          static_cast<char*>(array.data) + array.byte_offset, array.ndim, array.shape, array.strides, 0, known.torch(),
          device == pyposeext::kDLPackCpu ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda(), array.device.device_id, &tensor));
      value = torch::stable::Tensor(tensor);
      return true;
    }
    throw type_error("a tensor has a dtype that the kernels do not take");
  }

  // Out: a managed DLPack tensor that owns the stable::Tensor, handed to torch.Tensor's own converter.
  static handle cast(const torch::stable::Tensor& tensor, return_value_policy, handle) {
    struct Owner {
      torch::stable::Tensor tensor;
      std::vector<int64_t> shape, strides;
      DLManagedTensorVersioned managed;
    };
    int32_t dtype;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
    const pyposeext::DLPackType* found = nullptr;
    for (const auto& known : pyposeext::kDLPackTypes)
      if (known.torch() == dtype) found = &known;
    if (found == nullptr) throw type_error("a kernel returned a dtype that has no DLPack name here");
    auto* owner = new Owner{tensor, {}, {}, {}};
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      owner->shape.push_back(tensor.size(d));
      owner->strides.push_back(tensor.stride(d));
    }
    const bool cpu = tensor.is_cpu();
    owner->managed.version = {1, 1};
    owner->managed.manager_ctx = owner;
    owner->managed.deleter = [](DLManagedTensorVersioned* managed) { delete static_cast<Owner*>(managed->manager_ctx); };
    owner->managed.dl_tensor = {tensor.data_ptr(),
                                {cpu ? pyposeext::kDLPackCpu : pyposeext::kDLPackCuda, cpu ? 0 : tensor.get_device_index()},
                                int32_t(tensor.dim()),
                                found->dlpack,
                                owner->shape.data(),
                                owner->strides.data(),
                                0};
    static const DLPackExchangeAPI* exchange = exchange_api(module_::import("torch").attr("Tensor"));
    void* result = nullptr;
    if (exchange->managed_tensor_to_py_object_no_sync(&owner->managed, &result) != 0) throw error_already_set();
    return handle(static_cast<PyObject*>(result));
  }
};

}  // namespace pybind11::detail
