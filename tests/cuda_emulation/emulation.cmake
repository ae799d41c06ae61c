# The CUDA kernels compiled for the CPU, where they take the place of the CPU kernels: for tests, never for a wheel.
find_program(nvcc nvcc HINTS ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin REQUIRED)
file(REAL_PATH "${nvcc}" nvcc)
cmake_path(GET nvcc PARENT_PATH toolkit)
find_path(cuda_headers vector_types.h HINTS "${toolkit}/../include" "${toolkit}/../targets/x86_64-linux/include" REQUIRED)

set(emulation "${CMAKE_CURRENT_SOURCE_DIR}/tests/cuda_emulation")
set(translated "")
foreach(source ${cuda_sources})
  cmake_path(GET source STEM name)
  set(target "${CMAKE_CURRENT_BINARY_DIR}/emulated/${name}.cpp")
  add_custom_command(OUTPUT "${target}" COMMAND "${Python_EXECUTABLE}" "${emulation}/translate.py" "${source}" "${target}"
    DEPENDS "${source}" "${emulation}/translate.py")
  list(APPEND translated "${target}")
endforeach()
file(MAKE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/emulated")

add_library(emulated OBJECT ${translated} "${emulation}/emulator.cpp")
target_include_directories(emulated PRIVATE "${emulation}" csrc csrc/cuda)
target_include_directories(emulated SYSTEM PRIVATE "${cuda_headers}")
target_compile_options(emulated PRIVATE -O2 -ffp-contract=off -Wno-unknown-pragmas -Wno-sign-compare -include "${emulation}/cuda_runtime.h")
target_compile_definitions(emulated PRIVATE PYPOSEEXT_EMULATE_CUDA)
target_sources(_C PRIVATE $<TARGET_OBJECTS:emulated>)
target_compile_definitions(_C PRIVATE PYPOSEEXT_WITH_CUDA PYPOSEEXT_EMULATE_CUDA
  PYPOSEEXT_CUDA_TOOLKIT="emulated on the CPU" PYPOSEEXT_CUDA_ARCHITECTURES="emulated on the CPU")
