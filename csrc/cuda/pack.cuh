// Elements that a CUDA thread reads or writes in one instruction.
#pragma once

namespace pyposeext::cuda {

// kCount neighbours; an address of one must be a multiple of its size, up to 16 bytes.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
  T value[kCount];
};

}  // namespace pyposeext::cuda
