#include "common/cpu_level.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "common/check.h"

namespace pyposeext {
namespace {

CpuLevel best_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd"))
    return CpuLevel::avx512;
  if (avx2) return CpuLevel::avx2;
#endif
  return CpuLevel::baseline;
}

CpuLevel chosen_level() {
  const CpuLevel best = best_level();
  const char* wanted = std::getenv("PYPOSEEXT_CPU_LEVEL");
  if (wanted == nullptr) return best;
  for (CpuLevel level : {CpuLevel::baseline, CpuLevel::avx2, CpuLevel::avx512})
    if (std::strcmp(wanted, cpu_level_name(level)) == 0 && level <= best) return level;
  fail("PYPOSEEXT_CPU_LEVEL must be baseline, avx2 or avx512 and at most ", cpu_level_name(best), " on this processor, got ", wanted);
}

}  // namespace

CpuLevel cpu_level() {
  static const CpuLevel level = chosen_level();
  return level;
}

const char* cpu_level_name(CpuLevel level) {
  switch (level) {
    case CpuLevel::avx512: return "avx512";
    case CpuLevel::avx2: return "avx2";
    case CpuLevel::baseline: return "baseline";
  }
  return "baseline";
}

}  // namespace pyposeext
