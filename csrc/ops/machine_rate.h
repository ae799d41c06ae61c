// The kernels behind _C.machine_rate.
#pragma once
#include "common/cpu_level.h"
#include "common/numeric.h"

namespace pyposeext {

enum class Rate { copy, read, multiply_add };

struct MachineRateArguments {
  Rate rate;
  const float* source;  // [count], aligned to 64 bytes, as is target
  float* target;        // [count]; for read and multiply_add, one sum per thread is written, so that no work is dropped
  int64_t count;        // a multiple of 1024
  int64_t rounds;       // of multiply_add
};

}  // namespace pyposeext

namespace pyposeext::baseline { void machine_rate(const MachineRateArguments&); }
namespace pyposeext::avx2 { void machine_rate(const MachineRateArguments&); }
namespace pyposeext::avx512 { void machine_rate(const MachineRateArguments&); }
