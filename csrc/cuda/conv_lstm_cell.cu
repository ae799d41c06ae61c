#include "ops/conv_lstm_cell.h"

#include "common/cuda_launch.cuh"
#include "cuda/pack.cuh"

namespace pyposeext::cuda {
namespace {

// The offset in a tensor of each number of neighbours along the last dimension.
struct Place {
  int64_t index[4];
  __device__ int64_t in(const LstmOperand& operand) const {
    return index[0] * operand.stride[0] + index[1] * operand.stride[1] + index[2] * operand.stride[2] + index[3] * operand.stride[3];
  }
};

template <int kCount>
__device__ Place place_of(const ConvLstmArguments& a, int64_t number) {
  const int64_t inner = a.size[3] / kCount;
  Place place{{0, 0, number / inner, number % inner * kCount}};
  if (a.size[1] == 1 && a.size[0] == 1) return place;  // the usual case, with one division
  place.index[1] = place.index[2] / a.size[2];
  place.index[2] %= a.size[2];
  place.index[0] = place.index[1] / a.size[1];
  place.index[1] %= a.size[1];
  return place;
}

// Adds a tensor's values, if it has any, to `values`.
template <typename T, int kCount, typename A>
__device__ void add_values(const LstmOperand& operand, const Place& place, int64_t gate, A* values) {
  if (operand.data == nullptr || gate < 0) return;
  const auto* data = static_cast<const T*>(operand.data) + place.in(operand) + gate * operand.gate_stride;
  const auto pack = *reinterpret_cast<const Pack<T, kCount>*>(data);
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] += load(pack.value[i]);
}

template <typename T, int kCount, typename A>
__device__ void write_values(const LstmOperand& operand, const Place& place, int64_t gate, const A* values) {
  if (operand.data == nullptr || gate < 0) return;
  Pack<T, kCount> pack;
#pragma unroll
  for (int i = 0; i < kCount; ++i) store(values[i], pack.value + i);
  auto* data = static_cast<T*>(operand.data) + place.in(operand) + gate * operand.gate_stride;
  *reinterpret_cast<Pack<T, kCount>*>(data) = pack;
}

template <typename A, int kCount>
struct Inputs {
  A input[kCount] = {}, forget[kCount] = {}, cell_gate[kCount] = {}, output[kCount] = {}, cell[kCount] = {};
  __device__ LstmInput<A> at(int i) const { return {input[i], forget[i], cell_gate[i], output[i], cell[i]}; }
};

template <typename T, typename C, int kCount>
__device__ Inputs<Accumulate<T>, kCount> read_inputs(const ConvLstmArguments& a, const Place& place) {
  Inputs<Accumulate<T>, kCount> inputs;
  add_values<T, kCount>(a.gates, place, a.input_gate, inputs.input);
  add_values<T, kCount>(a.gates, place, a.forget_gate, inputs.forget);
  add_values<T, kCount>(a.gates, place, a.cell_gate, inputs.cell_gate);
  add_values<T, kCount>(a.gates, place, a.output_gate, inputs.output);
  add_values<T, kCount>(a.hidden_gates, place, a.input_gate, inputs.input);
  add_values<T, kCount>(a.hidden_gates, place, a.forget_gate, inputs.forget);
  add_values<T, kCount>(a.hidden_gates, place, a.cell_gate, inputs.cell_gate);
  add_values<T, kCount>(a.hidden_gates, place, a.output_gate, inputs.output);
  add_values<C, kCount>(a.cell, place, 0, inputs.cell);
  return inputs;
}

template <typename T, typename C, int kCount>
__global__ void __launch_bounds__(kThreads) forward_kernel(const ConvLstmArguments a, int64_t total) {
  using A = Accumulate<T>;
  PYPOSEEXT_GRID_STRIDE(number, total) {
    const Place place = place_of<kCount>(a, number);
    const Inputs<A, kCount> inputs = read_inputs<T, C, kCount>(a, place);
    A hidden[kCount], cell[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const LstmOutput<A> out = lstm_forward(inputs.at(i), a.cell.data != nullptr, a.store_tanh);
      hidden[i] = out.hidden;
      cell[i] = out.cell;
    }
    write_values<T, kCount>(a.hidden, place, 0, hidden);
    write_values<C, kCount>(a.next_cell, place, 0, cell);
  }
}

template <typename T, typename C, int kCount>
__global__ void __launch_bounds__(kThreads) backward_kernel(const ConvLstmArguments a, int64_t total) {
  using A = Accumulate<T>;
  PYPOSEEXT_GRID_STRIDE(number, total) {
    const Place place = place_of<kCount>(a, number);
    Inputs<A, kCount> inputs = read_inputs<T, C, kCount>(a, place);
    A of_hidden[kCount] = {}, of_cell[kCount] = {};
    add_values<T, kCount>(a.gradient_hidden, place, 0, of_hidden);
    add_values<C, kCount>(a.gradient_next_cell, place, 0, of_cell);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const LstmGradient<A> of = lstm_backward(inputs.at(i), a.cell.data != nullptr, a.store_tanh, of_hidden[i], of_cell[i]);
      inputs.input[i] = of.input, inputs.forget[i] = of.forget, inputs.cell_gate[i] = of.cell_gate, inputs.output[i] = of.output;
      inputs.cell[i] = of.cell;
    }
    write_values<T, kCount>(a.gradient_gates, place, a.input_gate, inputs.input);
    write_values<T, kCount>(a.gradient_gates, place, a.forget_gate, inputs.forget);
    write_values<T, kCount>(a.gradient_gates, place, a.cell_gate, inputs.cell_gate);
    write_values<T, kCount>(a.gradient_gates, place, a.output_gate, inputs.output);
    write_values<C, kCount>(a.gradient_cell, place, 0, inputs.cell);
  }
}

// Whether `count` neighbours can be read and written at once in every tensor.
bool has_packs(const ConvLstmArguments& a, int64_t count, int64_t bytes) {
  if (!a.packed || a.size[3] % count != 0) return false;
  for (const LstmOperand* operand : {&a.gates, &a.hidden_gates, &a.cell, &a.hidden, &a.next_cell, &a.gradient_hidden, &a.gradient_next_cell,
                                     &a.gradient_gates, &a.gradient_cell}) {
    if (operand->data == nullptr) continue;
    bool aligned = reinterpret_cast<uintptr_t>(operand->data) % uintptr_t(bytes) == 0 && operand->gate_stride % count == 0;
    for (int d = 0; d < 3; ++d) aligned = aligned && (a.size[d] == 1 || operand->stride[d] % count == 0);
    if (!aligned) return false;
  }
  return true;
}

// Calls launch(T(), C(), number of neighbours as a type) for these arguments.
template <typename Launch>
void for_types(const ConvLstmArguments& a, const Launch& launch) {
  dispatch_gates_and_cells(a, [&](auto gate, auto cell) {
    constexpr int kCount = sizeof(gate) == 8 ? 2 : 4;
    if (has_packs(a, kCount, 16))
      launch(gate, cell, std::integral_constant<int, kCount>());
    else
      launch(gate, cell, std::integral_constant<int, 1>());
  });
}

int64_t elements_of(const ConvLstmArguments& a) { return a.size[0] * a.size[1] * a.size[2] * a.size[3]; }

}  // namespace

void conv_lstm_cell(const ConvLstmArguments& a, void* stream) {
  for_types(a, [&](auto gate, auto cell, auto count) {
    constexpr int kCount = decltype(count)::value;
    const int64_t total = elements_of(a) / kCount;
    forward_kernel<decltype(gate), decltype(cell), kCount><<<blocks_for(total), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, total);
  });
  check_launch("conv_lstm_cell");
}

void conv_lstm_cell_backward(const ConvLstmArguments& a, void* stream) {
  for_types(a, [&](auto gate, auto cell, auto count) {
    constexpr int kCount = decltype(count)::value;
    const int64_t total = elements_of(a) / kCount;
    backward_kernel<decltype(gate), decltype(cell), kCount><<<blocks_for(total), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, total);
  });
  check_launch("conv_lstm_cell_backward");
}

}  // namespace pyposeext::cuda
