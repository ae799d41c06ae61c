#include "ops/conv_lstm_cell.h"

#include "common/parallel.h"

namespace pyposeext::PYPOSEEXT_LEVEL {
namespace {

constexpr int64_t kRun = 1 << 10;            // elements of a row that a task takes at most
constexpr int64_t kGrain = 1 << 13;          // elements below which a second thread costs more than it gives
constexpr int64_t kStreamedBytes = 1 << 23;  // results of this size and more are written past the caches

// Where a task's run begins in a tensor, as an offset in elements.
struct Place {
  int64_t index[4];
  int64_t in(const LstmOperand& operand) const {
    return index[0] * operand.stride[0] + index[1] * operand.stride[1] + index[2] * operand.stride[2] + index[3] * operand.stride[3];
  }
};

// body(place, count) for runs of at most kRun neighbours along the last dimension.
template <typename Body>
void for_runs(const ConvLstmArguments& a, const Body& body) {
  const int64_t inner = a.size[3], parts = (inner + kRun - 1) / kRun, rows = a.size[0] * a.size[1] * a.size[2];
  parallel_for(0, rows * parts, 1 + kGrain / (inner < kRun ? inner : kRun), [&](int64_t from, int64_t to) {
    for (int64_t task = from; task < to; ++task) {
      const int64_t row = task / parts, first = task % parts * kRun;
      const Place place{{row / a.size[2] / a.size[1], row / a.size[2] % a.size[1], row % a.size[2], first}};
      body(place, inner - first < kRun ? inner - first : kRun);
    }
    end_streaming();
  });
}

// A tensor's run. Without data it reads as 0.
template <typename T>
struct Run {
  T* data;
  int64_t stride;

  Run(const LstmOperand& operand, const Place& place, int64_t gate = 0)
      : data(operand.data == nullptr || gate < 0 ? nullptr : static_cast<T*>(operand.data) + place.in(operand) + gate * operand.gate_stride),
        stride(operand.stride[3]) {}

  template <bool kWhole>
  Vector<Accumulate<T>> read(int64_t i, int64_t count) const {
    if (data == nullptr) return Vector<Accumulate<T>>{};
    if constexpr (kWhole) return load_vector(data + i);
    return load_strided(data + i * stride, stride, count);
  }

  template <bool kWhole>
  void write(Vector<Accumulate<T>> value, int64_t i, int64_t count, bool streamed) const {
    if (data == nullptr) return;
    if constexpr (!kWhole) return store_strided(value, data + i * stride, stride, count);
    if (streamed) return stream_vector(value, data + i);
    store_vector(value, data + i);
  }
};

// Whether every row of a tensor begins at a multiple of a vector: a line that is written past the caches in part and
// through them in part costs far more than either.
template <typename T>
bool has_aligned_rows(const ConvLstmArguments& a, const LstmOperand& operand) {
  constexpr int64_t elements = kVectorBytes / int64_t(sizeof(T));
  bool aligned = reinterpret_cast<uintptr_t>(operand.data) % kVectorBytes == 0 && operand.gate_stride % elements == 0;
  for (int d = 0; d < 3; ++d) aligned = aligned && (a.size[d] == 1 || operand.stride[d] % elements == 0);
  return aligned;
}

// The runs that both directions read.
template <typename T, typename C>
struct InputRuns {
  Run<T> input, forget, cell_gate, output, hidden_input, hidden_forget, hidden_cell_gate, hidden_output;
  Run<C> cell;

  InputRuns(const ConvLstmArguments& a, const Place& place)
      : input(a.gates, place, a.input_gate), forget(a.gates, place, a.forget_gate), cell_gate(a.gates, place, a.cell_gate),
        output(a.gates, place, a.output_gate), hidden_input(a.hidden_gates, place, a.input_gate), hidden_forget(a.hidden_gates, place, a.forget_gate),
        hidden_cell_gate(a.hidden_gates, place, a.cell_gate), hidden_output(a.hidden_gates, place, a.output_gate), cell(a.cell, place) {}

  template <bool kWhole>
  LstmInput<Vector<Accumulate<T>>> read(int64_t i, int64_t count) const {
    LstmInput<Vector<Accumulate<T>>> at{input.template read<kWhole>(i, count), forget.template read<kWhole>(i, count),
                                        cell_gate.template read<kWhole>(i, count), output.template read<kWhole>(i, count),
                                        cell.template read<kWhole>(i, count)};
    if (hidden_input.data == nullptr) return at;
    at.input += hidden_input.template read<kWhole>(i, count);
    at.forget += hidden_forget.template read<kWhole>(i, count);
    at.cell_gate += hidden_cell_gate.template read<kWhole>(i, count);
    at.output += hidden_output.template read<kWhole>(i, count);
    return at;
  }
};

// step(whole, i, count): whole vectors where the tensors are packed, and the rest.
template <typename A, typename Step>
void for_vectors(bool packed, int64_t count, const Step& step) {
  constexpr int64_t width = kWidth<A>;
  int64_t i = 0;
  if (packed)
    for (; i + width <= count; i += width) step(std::true_type(), i, width);
  for (; i < count; i += width) step(std::false_type(), i, count - i < width ? count - i : width);
}

template <typename T, typename C>
void forward(const ConvLstmArguments& a) {
  const bool has_cell = a.cell.data != nullptr, store_tanh = a.store_tanh;
  const bool large = a.size[0] * a.size[1] * a.size[2] * a.size[3] * int64_t(sizeof(T) + sizeof(C)) >= kStreamedBytes;
  const bool streamed = large && has_aligned_rows<T>(a, a.hidden) && has_aligned_rows<C>(a, a.next_cell);
  for_runs(a, [&](const Place& place, int64_t count) {
    const InputRuns<T, C> inputs(a, place);
    const Run<T> hidden(a.hidden, place);
    const Run<C> cell(a.next_cell, place);
    for_vectors<Accumulate<T>>(a.packed, count, [&](auto whole, int64_t i, int64_t size) {
      constexpr bool kWhole = decltype(whole)::value;
      const auto out = lstm_forward(inputs.template read<kWhole>(i, size), has_cell, store_tanh);
      hidden.template write<kWhole>(out.hidden, i, size, streamed);
      cell.template write<kWhole>(out.cell, i, size, streamed);
    });
  });
}

template <typename T, typename C>
void backward(const ConvLstmArguments& a) {
  const bool has_cell = a.cell.data != nullptr, store_tanh = a.store_tanh;
  const bool large = a.size[0] * a.size[1] * a.size[2] * a.size[3] * int64_t(4 * sizeof(T) + sizeof(C)) >= kStreamedBytes;
  const bool streamed = large && has_aligned_rows<T>(a, a.gradient_gates) && has_aligned_rows<C>(a, a.gradient_cell);
  for_runs(a, [&](const Place& place, int64_t count) {
    const InputRuns<T, C> inputs(a, place);
    const Run<T> of_hidden(a.gradient_hidden, place);
    const Run<C> of_next_cell(a.gradient_next_cell, place), of_cell(a.gradient_cell, place);
    const Run<T> of_input(a.gradient_gates, place, a.input_gate), of_forget(a.gradient_gates, place, a.forget_gate);
    const Run<T> of_cell_gate(a.gradient_gates, place, a.cell_gate), of_output(a.gradient_gates, place, a.output_gate);
    for_vectors<Accumulate<T>>(a.packed, count, [&](auto whole, int64_t i, int64_t size) {
      constexpr bool kWhole = decltype(whole)::value;
      const auto gradient = lstm_backward(inputs.template read<kWhole>(i, size), has_cell, store_tanh, of_hidden.template read<kWhole>(i, size),
                                          of_next_cell.template read<kWhole>(i, size));
      of_input.template write<kWhole>(gradient.input, i, size, streamed);
      of_forget.template write<kWhole>(gradient.forget, i, size, streamed);
      of_cell_gate.template write<kWhole>(gradient.cell_gate, i, size, streamed);
      of_output.template write<kWhole>(gradient.output, i, size, streamed);
      of_cell.template write<kWhole>(gradient.cell, i, size, streamed);
    });
  });
}

}  // namespace

void conv_lstm_cell(const ConvLstmArguments& arguments) {
  dispatch_gates_and_cells(arguments, [&](auto gate, auto cell) { forward<decltype(gate), decltype(cell)>(arguments); });
}

void conv_lstm_cell_backward(const ConvLstmArguments& arguments) {
  dispatch_gates_and_cells(arguments, [&](auto gate, auto cell) { backward<decltype(gate), decltype(cell)>(arguments); });
}

}  // namespace pyposeext::PYPOSEEXT_LEVEL
