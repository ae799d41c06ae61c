// Marks for code that both backends compile, and the namespace that keeps the CPU levels apart.
#pragma once

#if defined(__CUDACC__)
#define PYPOSEEXT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PYPOSEEXT_HOST_DEVICE inline
#endif

// Every CPU kernel is compiled once per level with other instructions. Code in headers stands in an inline namespace
// named after the level, so that the linker can never hand one level's machine code to another.
#ifndef PYPOSEEXT_LEVEL
#define PYPOSEEXT_LEVEL host
#endif
