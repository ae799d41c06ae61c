#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "cuda_runtime.h"

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

// Saves the callee's registers on the old stack and goes on with the new one.
extern "C" void emulation_switch(void** save_stack, void* new_stack);
asm(R"(
.text
.globl emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");

namespace emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kLargestBlock = 1024, kWarp = 32;

struct Warp {
  unsigned arrived = 0, participants = 0;  // of the barrier now, of the last one
  uint64_t generation = 0;
};

struct Fiber {
  void* stack = nullptr;
  std::unique_ptr<char[]> memory;
  uint3 index{};
  bool done = false;
  uint64_t exchanges = 0;  // warp instructions so far: their parity chooses the slots
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<uint64_t> slots;  // [warp][2][32]
  int count = 0, live = 0, current = 0, arrived = 0, predicates = 0, counted = 0;
  uint64_t generation = 0, progress = 0;
  const std::function<void()>* kernel = nullptr;
  void* scheduler_stack = nullptr;
};

Block block;
std::vector<char> dynamic_shared;
std::mutex one_launch;

void give_way() { emulation_switch(&block.fibers[block.current].stack, block.scheduler_stack); }

void release_block_if_complete() {
  if (block.arrived == 0 || block.arrived < block.live) return;
  block.arrived = 0;
  block.counted = block.predicates;
  block.predicates = 0;
  ++block.generation;
}

unsigned live_in_warp(int warp) {
  unsigned live = 0;
  for (int lane = 0; lane < kWarp && warp * kWarp + lane < block.count; ++lane)
    if (!block.fibers[warp * kWarp + lane].done) live |= 1u << lane;
  return live;
}

void run_fiber() {
  (*block.kernel)();
  Fiber& fiber = block.fibers[block.current];
  fiber.done = true;
  --block.live;
  ++block.progress;
  release_block_if_complete();
  give_way();
  std::abort();  // a finished thread is never resumed
}

void prepare(Fiber& fiber, int linear) {
  if (!fiber.memory) fiber.memory.reset(new char[kStackBytes]);
  auto top = reinterpret_cast<uintptr_t>(fiber.memory.get() + kStackBytes) & ~uintptr_t(63);
  void** stack = reinterpret_cast<void**>(top - 64);
  *--stack = nullptr;  // as if called: the stack is 8 off a multiple of 16 at the function's start
  *--stack = reinterpret_cast<void*>(&run_fiber);
  for (int i = 0; i < 6; ++i) *--stack = nullptr;
  fiber.stack = stack;
  fiber.done = false;
  fiber.exchanges = 0;
  fiber.index = {unsigned(linear) % blockDim.x, unsigned(linear) / blockDim.x % blockDim.y, unsigned(linear) / blockDim.x / blockDim.y};
}

// Threads take their turns in an order that differs from block to block: forward, backward or in strides.
void run_block(uint64_t number) {
  const int n = block.count;
  const int strides[] = {1, n - 1, 33 % (n > 1 ? n : 2), 7};
  int stride = strides[number % 4];
  while (n > 1 && std::gcd(stride, n) != 1) ++stride;
  if (n == 1) stride = 1;
  block.live = n;
  block.arrived = block.predicates = 0;
  std::fill(block.warps.begin(), block.warps.end(), Warp());
  for (int i = 0; i < n; ++i) prepare(block.fibers[i], i);
  std::fill(dynamic_shared.begin(), dynamic_shared.end(), char(0xff));
  while (block.live > 0) {
    const uint64_t before = block.progress;
    for (int turn = 0, i = 0; turn < n; ++turn, i = (i + stride) % n) {
      Fiber& fiber = block.fibers[i];
      if (fiber.done) continue;
      block.current = i;
      threadIdx = fiber.index;
      emulation_switch(&block.scheduler_stack, fiber.stack);
    }
    if (block.progress == before && block.live > 0) {
      std::fprintf(stderr, "CUDA emulation: %d threads of block %u wait for others that never come\n", block.live, blockIdx.x);
      std::abort();
    }
  }
}

}  // namespace

int lane() { return block.current % kWarp; }
unsigned live_lanes() { return live_in_warp(block.current / kWarp); }
unsigned participants() { return block.warps[block.current / kWarp].participants; }
void* dynamic_shared_memory() { return dynamic_shared.data(); }

uint64_t* next_warp_slots() {
  const uint64_t turn = block.fibers[block.current].exchanges++ % 2;
  return &block.slots[size_t((block.current / kWarp * 2 + turn) * kWarp)];
}

void wait_for_block() {
  const uint64_t generation = block.generation;
  ++block.arrived;
  ++block.progress;
  release_block_if_complete();
  while (block.generation == generation) give_way();
  ++block.progress;
}

void wait_for_warp(unsigned mask) {
  const int number = block.current / kWarp;
  if (!(mask >> lane() & 1)) {
    std::fprintf(stderr, "CUDA emulation: a lane calls a warp instruction whose mask leaves it out\n");
    std::abort();
  }
  Warp& warp = block.warps[number];
  const uint64_t generation = warp.generation;
  warp.arrived |= 1u << lane();
  ++block.progress;
  while (warp.generation == generation) {
    const unsigned wanted = mask & live_in_warp(number);
    if ((warp.arrived & wanted) == wanted) {
      warp.arrived &= ~mask;
      warp.participants = wanted;
      ++warp.generation;
      break;
    }
    give_way();
  }
  ++block.progress;
}

void launch(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(one_launch);
  static uint64_t number = 0;
  const size_t count = size_t(threads.x) * threads.y * threads.z;
  if (count == 0 || count > kLargestBlock || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535 || shared_bytes > 227 * 1024) {
    std::fprintf(stderr, "CUDA emulation: a GPU refuses this launch: %zu threads, grid %u x %u x %u, %zu bytes of shared memory\n", count, grid.x, grid.y,
                 grid.z, shared_bytes);
    std::abort();
  }
  blockDim = threads;
  gridDim = grid;
  block.kernel = &kernel;
  block.count = int(count);
  block.fibers.resize(std::max(block.fibers.size(), count));
  block.warps.resize((count + kWarp - 1) / kWarp);
  block.slots.resize(block.warps.size() * 2 * kWarp);
  dynamic_shared.resize(shared_bytes + 16);
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(number++);
}

}  // namespace emulation

int __syncthreads_count(int predicate) {
  emulation::block.predicates += predicate != 0;
  emulation::wait_for_block();
  return emulation::block.counted;
}

extern "C" {

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* at, int value, size_t count, cudaStream_t) {
  std::memset(at, value, count);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t count, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, count);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 * 1024; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 * 1024; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
    default: return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

}  // extern "C"
