// What this processor can do at best, for the floors of the benchmarks: copying past the caches, reading, multiplying.
#include "ops/machine_rate.h"

#include "common/parallel.h"
#include "common/vector.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kUnit = 1024;  // elements of a task's smallest part
constexpr int kChains = 12;      // independent sums: more than the latency of a fused multiplication times its rate

using V = Vector<float>;

void copy(const MachineRateArguments& a) {
  parallel_for(0, a.count / kUnit, 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from * kUnit; i < to * kUnit; i += kWidth<float>) stream_vector(load_vector(a.source + i), a.target + i);
    end_streaming();
  });
}

void read(const MachineRateArguments& a) {
  parallel_for(0, a.count / kUnit, 1, [&](int64_t from, int64_t to) {
    V sum[4] = {};
    for (int64_t i = from * kUnit; i < to * kUnit; i += 4 * kWidth<float>)
      for (int64_t j = 0; j < 4; ++j) sum[j] = larger(load_vector(a.source + i + j * kWidth<float>), sum[j]);
    a.target[from] = maximum_of(larger(larger(sum[0], sum[1]), larger(sum[2], sum[3])));
  });
}

void multiply(const MachineRateArguments& a) {
  const int64_t threads = thread_count();
  parallel_for(0, threads, 1, [&](int64_t from, int64_t to) {
    for (int64_t thread = from; thread < to; ++thread) {
      V sum[kChains];
      for (int i = 0; i < kChains; ++i) sum[i] = broadcast(float(i));
      const V factor = load_vector(a.source), addend = load_vector(a.source + kWidth<float>);
      for (int64_t round = 0; round < a.rounds; ++round)
        for (int i = 0; i < kChains; ++i) sum[i] = multiply_add(sum[i], factor, addend);
      for (int i = 1; i < kChains; ++i) sum[0] = sum[0] + sum[i];
      a.target[thread * kUnit] = sum_of(sum[0]);
    }
  });
}

}  // namespace

void machine_rate(const MachineRateArguments& arguments) {
  switch (arguments.rate) {
    case Rate::copy: return copy(arguments);
    case Rate::read: return read(arguments);
    case Rate::multiply_add: return multiply(arguments);
  }
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
