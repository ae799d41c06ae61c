// The instruction sets a CPU kernel is compiled for, and the choice among them when the package runs.
#pragma once

namespace pyposeext {

enum class CpuLevel { baseline, avx2, avx512 };

// The best level this processor has, or the one that the environment variable PYPOSEEXT_CPU_LEVEL names, which must not be
// higher. Read once.
CpuLevel cpu_level();
const char* cpu_level_name(CpuLevel level);

}  // namespace pyposeext

// Declares a kernel's three compilations and pyposeext::cpu::name, which calls the one for this processor, and the CUDA
// launcher of the same name.
#define PYPOSEEXT_KERNEL(name, Arguments)                              \
  namespace pyposeext::baseline { void name(const Arguments&); }       \
  namespace pyposeext::avx2 { void name(const Arguments&); }           \
  namespace pyposeext::avx512 { void name(const Arguments&); }         \
  namespace pyposeext::cuda { void name(const Arguments&, void* stream); } \
  namespace pyposeext::cpu {                                           \
  inline void name(const Arguments& arguments) {                       \
    switch (cpu_level()) {                                             \
      case CpuLevel::avx512: return avx512::name(arguments);           \
      case CpuLevel::avx2: return avx2::name(arguments);               \
      case CpuLevel::baseline: return baseline::name(arguments);       \
    }                                                                  \
  }                                                                    \
  }
