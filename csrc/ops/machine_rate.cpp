// _C.machine_rate(): the rates that the benchmarks' floors are computed from, measured now with torch's threads.
#include "ops/machine_rate.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>

#include "common/check.h"
#include "common/op.h"
#include "common/parallel.h"

namespace pyposeext {
namespace {

constexpr int64_t kCount = int64_t(1) << 25;  // 128 MiB of float: larger than the last cache
constexpr int64_t kRounds = 2000000;
constexpr int kRepeats = 7;
constexpr int64_t kChainsTimesTwo = 24;  // operations of a round for each lane: 12 multiplications and 12 sums

void run(const MachineRateArguments& arguments) {
  switch (cpu_level()) {
    case CpuLevel::avx512: return avx512::machine_rate(arguments);
    case CpuLevel::avx2: return avx2::machine_rate(arguments);
    case CpuLevel::baseline: return baseline::machine_rate(arguments);
  }
}

int64_t lanes() { return cpu_level() == CpuLevel::avx512 ? 16 : cpu_level() == CpuLevel::avx2 ? 8 : 4; }

// The shortest of several runs: other work on the machine can only lengthen one.
double seconds(const MachineRateArguments& arguments) {
  double shortest = 1e9;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run(arguments);
    shortest = std::min(shortest, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return shortest;
}

}  // namespace

// {"copy": bytes a second, read plus written, "read": bytes a second, "multiply_add": operations a second in float32}
pybind11::dict machine_rate() {
  const size_t bytes = size_t(kCount) * sizeof(float);
  const std::unique_ptr<float, decltype(&std::free)> source(static_cast<float*>(std::aligned_alloc(64, bytes)), &std::free);
  const std::unique_ptr<float, decltype(&std::free)> target(static_cast<float*>(std::aligned_alloc(64, bytes)), &std::free);
  PYPOSEEXT_CHECK(source && target, "machine_rate: needs 256 MiB of memory");
  std::fill_n(source.get(), kCount, 0.5f);
  std::fill_n(target.get(), kCount, 0.0f);
  MachineRateArguments arguments{Rate::copy, source.get(), target.get(), kCount, kRounds};
  pybind11::dict rates;
  rates["copy"] = 2.0 * double(bytes) / seconds(arguments);
  arguments.rate = Rate::read;
  rates["read"] = double(bytes) / seconds(arguments);
  arguments.rate = Rate::multiply_add;
  rates["multiply_add"] = double(thread_count() * kRounds * kChainsTimesTwo * lanes()) / seconds(arguments);
  return rates;
}

static const bool machine_rate_is_bound = [] {
  bindings().push_back([](pybind11::module_& module) {
    module.def("machine_rate", &machine_rate, "Bytes copied, bytes read and float32 operations a second, at best, with torch's threads; for benchmarks.");
  });
  return true;
}();

}  // namespace pyposeext
