// The kernels behind conv_lstm_cell.
#pragma once
#include "common/conv_lstm_math.h"
#include "common/cpu_level.h"

namespace pyposeext::PYPOSEEXT_LEVEL {

// Calls body(T(), C()) with the element types of gates and cells.
template <typename Body>
inline void dispatch_gates_and_cells(const ConvLstmArguments& a, const Body& body) {
  dispatch_floating(a.dtype, [&](auto gate) {
    using T = decltype(gate);
    if constexpr (sizeof(T) == 2) {
      if (a.cell_dtype == DType::float32) return body(T(), float());
    }
    return body(T(), T());
  });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL

PYPOSEEXT_KERNEL(conv_lstm_cell, ConvLstmArguments)
PYPOSEEXT_KERNEL(conv_lstm_cell_backward, ConvLstmArguments)
