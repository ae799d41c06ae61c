// Scratch memory of the CPU kernels: starts at a cache line, grows when asked, holds whatever was written last.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "common/host_device.h"

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

template <typename A>
class AlignedArray {
 public:
  // At least `count` elements; what was there is lost where the array has to grow.
  A* reserve(int64_t count) {
    if (count > capacity_) {
      data_.reset();
      data_.reset(static_cast<A*>(::operator new(size_t(count) * sizeof(A), kAlignment)));
      capacity_ = count;
    }
    return data_.get();
  }
  A* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Release {
    void operator()(A* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<A, Release> data_;
  int64_t capacity_ = 0;
};

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
