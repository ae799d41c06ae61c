// The step of a convolutional LSTM after its convolutions, shared by the CPU and CUDA kernels of conv_lstm_cell. A value is
// a float or a double, or on the CPU a vector of them.
#pragma once
#if defined(__CUDACC__)
#include "common/numeric.h"
#else
#include "common/vector_math.h"
#endif

namespace pyposeext {

// One tensor of a call: its strides go with ConvLstmArguments::size. No data: the call has no such tensor.
struct LstmOperand {
  void* data;
  int64_t stride[4];    // in elements
  int64_t gate_stride;  // from a gate to the next; 0 where the tensor holds no gates
};

struct ConvLstmArguments {
  DType dtype;       // of gates and hidden
  DType cell_dtype;  // of the cells; that of the gates, or float32 where they have 16 bits
  int64_t size[4];   // of the cell state, [B, C, H, W] in another order: dimensions that lie packed in every tensor are one
  bool packed;       // whether neighbours along the last dimension lie next to each other in every tensor
  bool store_tanh;   // the cell is stored after its tanh
  int64_t input_gate, forget_gate, cell_gate, output_gate;  // positions from 0; -1 for a forget gate that is not there
  LstmOperand gates, hidden_gates, cell;  // hidden_gates are added to gates
  LstmOperand hidden, next_cell;          // forward: written
  LstmOperand gradient_hidden, gradient_next_cell;  // backward: read
  LstmOperand gradient_gates, gradient_cell;        // backward: written
};

inline namespace PYPOSEEXT_LEVEL {

PYPOSEEXT_HOST_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
PYPOSEEXT_HOST_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
PYPOSEEXT_HOST_DEVICE float tanh_of(float x) { return std::tanh(x); }
PYPOSEEXT_HOST_DEVICE double tanh_of(double x) { return std::tanh(x); }
PYPOSEEXT_HOST_DEVICE float sigmoid_times_tanh(float x, float y) { return sigmoid(x) * tanh_of(y); }
PYPOSEEXT_HOST_DEVICE double sigmoid_times_tanh(double x, double y) { return sigmoid(x) * tanh_of(y); }

// Before their sigmoids and tanh; forget and cell are used only where there is a previous cell.
template <typename V> struct LstmInput {
  V input, forget, cell_gate, output, cell;
};

template <typename V> struct LstmOutput {
  V hidden, cell;
};

template <typename V>
PYPOSEEXT_HOST_DEVICE LstmOutput<V> lstm_forward(const LstmInput<V>& at, bool has_cell, bool store_tanh) {
  V sum = sigmoid_times_tanh(at.input, at.cell_gate);
  if (has_cell) sum = multiply_add(sigmoid(at.forget), at.cell, sum);
  if (!store_tanh) return {sigmoid_times_tanh(at.output, sum), sum};
  const V cell = tanh_of(sum);
  return {sigmoid(at.output) * cell, cell};
}

template <typename V> struct LstmGradient {
  V input, forget, cell_gate, output, cell;
};

// The activations are computed again: reading them back would cost more than that.
template <typename V>
PYPOSEEXT_HOST_DEVICE LstmGradient<V> lstm_backward(const LstmInput<V>& at, bool has_cell, bool store_tanh, V gradient_hidden, V gradient_cell) {
  const V input = sigmoid(at.input), cell_gate = tanh_of(at.cell_gate), output = sigmoid(at.output);
  V sum = input * cell_gate, forget{};
  if (has_cell) {
    forget = sigmoid(at.forget);
    sum = multiply_add(forget, at.cell, sum);
  }
  const V cell = tanh_of(sum), slope = 1 - cell * cell, from_hidden = gradient_hidden * output;
  const V of_sum = store_tanh ? (gradient_cell + from_hidden) * slope : multiply_add(from_hidden, slope, gradient_cell);
  return {of_sum * cell_gate * (input * (1 - input)), has_cell ? of_sum * at.cell * (forget * (1 - forget)) : V{},
          of_sum * input * (1 - cell_gate * cell_gate), gradient_hidden * cell * (output * (1 - output)), of_sum * forget};
}

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
