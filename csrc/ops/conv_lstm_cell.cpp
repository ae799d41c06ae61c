// conv_lstm_cell: the step of a convolutional LSTM from the sums of its convolutions (Shi et al. 2015, without peepholes;
// Luo et al. 2018, LSTM Pose Machines): cell' = sigmoid(f) * cell + sigmoid(i) * tanh(g), hidden = sigmoid(o) * tanh(cell').
#include "ops/conv_lstm_cell.h"

#include <algorithm>
#include <array>
#include <optional>

#include "common/op.h"
#include "common/tensor.h"

namespace pyposeext {
namespace {

LstmOperand operand_of(const Tensor& tensor, int64_t gate_stride = 0) {
  return {const_cast<void*>(tensor.const_data_ptr()), {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)}, gate_stride};
}

using Operands = std::array<LstmOperand*, 9>;
Operands operands_of(ConvLstmArguments* a) {
  return {&a->gates,           &a->hidden_gates,       &a->cell,           &a->hidden,       &a->next_cell,
          &a->gradient_hidden, &a->gradient_next_cell, &a->gradient_gates, &a->gradient_cell};
}

struct Dimension {
  int64_t size;
  std::array<int64_t, 9> stride;  // of each operand
};

// Whether the two are one dimension in every tensor.
bool are_packed(const Dimension& outer, const Dimension& inner, const Operands& operands) {
  for (size_t i = 0; i < operands.size(); ++i)
    if (operands[i]->data != nullptr && outer.stride[i] != inner.stride[i] * inner.size) return false;
  return true;
}

// Orders the dimensions by the strides of the gates and merges those that lie packed in every tensor, so that a kernel's
// innermost loop is as long as it can be.
void merge_dimensions(ConvLstmArguments* a) {
  const Operands operands = operands_of(a);
  std::array<int, 4> order{0, 1, 2, 3};
  std::stable_sort(order.begin(), order.end(), [&](int left, int right) { return a->gates.stride[left] > a->gates.stride[right]; });
  std::vector<Dimension> merged;
  for (int d : order) {
    Dimension next{a->size[d], {}};
    if (next.size == 1) continue;
    for (size_t i = 0; i < operands.size(); ++i) next.stride[i] = operands[i]->stride[d];
    if (!merged.empty() && are_packed(merged.back(), next, operands)) {
      next.size *= merged.back().size;
      merged.back() = next;
    } else {
      merged.push_back(next);
    }
  }
  Dimension one{1, {}};
  one.stride.fill(1);
  while (merged.size() < 4) merged.insert(merged.begin(), one);
  a->packed = true;
  for (size_t d = 0; d < 4; ++d) {
    a->size[d] = merged[d].size;
    for (size_t i = 0; i < operands.size(); ++i) operands[i]->stride[d] = merged[d].stride[i];
  }
  for (const LstmOperand* operand : operands) a->packed = a->packed && (operand->data == nullptr || operand->stride[3] == 1);
}

DType cell_dtype_named(const char* op, const std::string& name, DType gates) {
  const std::array<const char*, 4> names{"float32", "float64", "float16", "bfloat16"};  // in the order of DType
  const bool half = gates == DType::float16 || gates == DType::bfloat16;
  if (name == names[size_t(gates)]) return gates;
  PYPOSEEXT_CHECK(half && name == "float32", op, ": the cell must be ", names[size_t(gates)], half ? " or float32" : "", " with such gates, got ", name);
  return DType::float32;
}

// Checks the forward's inputs and fills what they say.
ConvLstmArguments checked(const char* op, const Tensor& gates, const std::optional<Tensor>& hidden_gates, const std::optional<Tensor>& cell,
                          const std::string& gate_order, bool store_tanh, const std::string& cell_dtype) {
  std::string sorted = gate_order;
  std::sort(sorted.begin(), sorted.end());
  PYPOSEEXT_CHECK(sorted == "fgio" || (sorted == "gio" && !cell.has_value()), op, ": gate_order must hold the letters i, f, g and o once each",
                  cell.has_value() ? "" : ", or without a cell also only i, g and o", ", got ", gate_order);
  check_dim(op, "gates", gates, 4, "[B, gates * C, H, W]");
  ConvLstmArguments a{};
  a.dtype = floating_dtype(op, "gates", gates);
  check_device(op, "gates", gates);
  const int64_t count = int64_t(gate_order.size());
  PYPOSEEXT_CHECK(gates.size(1) % count == 0, op, ": gates must have a multiple of ", count, " channels, got shape ", shape_of(gates));
  if (hidden_gates.has_value()) {
    PYPOSEEXT_CHECK(shape_of(*hidden_gates) == shape_of(gates), op, ": hidden_gates must have the shape of gates, ", shape_of(gates), ", got shape ",
                    shape_of(*hidden_gates));
    PYPOSEEXT_CHECK(hidden_gates->scalar_type() == gates.scalar_type(), op, ": hidden_gates must have the dtype of gates");
    check_same_device(op, "hidden_gates", *hidden_gates, "gates", gates);
    a.hidden_gates = operand_of(*hidden_gates, gates.size(1) / count * hidden_gates->stride(1));
  }
  a.cell_dtype = cell_dtype_named(op, cell_dtype, a.dtype);
  const int64_t sizes[4] = {gates.size(0), gates.size(1) / count, gates.size(2), gates.size(3)};
  std::copy(sizes, sizes + 4, a.size);
  if (cell.has_value()) {
    const bool fits = cell->dim() == 4 && cell->size(0) == sizes[0] && cell->size(1) == sizes[1] && cell->size(2) == sizes[2] && cell->size(3) == sizes[3];
    PYPOSEEXT_CHECK(fits, op, ": cell must be [", sizes[0], ", ", sizes[1], ", ", sizes[2], ", ", sizes[3], "], got shape ", shape_of(*cell));
    PYPOSEEXT_CHECK(floating_dtype(op, "cell", *cell) == a.cell_dtype, op, ": cell must be ", cell_dtype);
    check_same_device(op, "cell", *cell, "gates", gates);
    a.cell = operand_of(*cell);
  }
  a.store_tanh = store_tanh;
  a.gates = operand_of(gates, a.size[1] * gates.stride(1));
  int64_t* const positions[4] = {&a.input_gate, &a.forget_gate, &a.cell_gate, &a.output_gate};
  for (int i = 0; i < 4; ++i) *positions[i] = gate_order.find("ifgo"[i]) == std::string::npos ? -1 : int64_t(gate_order.find("ifgo"[i]));
  return a;
}

void check_gradient(const char* op, const char* name, const Tensor& gradient, const ConvLstmArguments& a, DType dtype, const Tensor& gates) {
  const bool fits = gradient.dim() == 4 && gradient.size(0) == a.size[0] && gradient.size(1) == a.size[1] && gradient.size(2) == a.size[2] &&
                    gradient.size(3) == a.size[3];
  PYPOSEEXT_CHECK(fits && floating_dtype(op, name, gradient) == dtype, op, ": ", name,
                  " must have the shape and dtype of what it is the gradient of, got shape ", shape_of(gradient));
  check_same_device(op, name, gradient, "gates", gates);
}

ScalarType scalar_type(DType dtype) {
  return dtype == DType::float32   ? ScalarType::Float
         : dtype == DType::float64 ? ScalarType::Double
         : dtype == DType::float16 ? ScalarType::Half
                                   : ScalarType::BFloat16;
}

}  // namespace

std::tuple<Tensor, Tensor> conv_lstm_cell(const Tensor& gates,                        // [B, 4 * C, H, W], or 3 * C without a forget gate
                                          const std::optional<Tensor>& hidden_gates,  // [B, 4 * C, H, W], added to gates
                                          const std::optional<Tensor>& cell,          // [B, C, H, W]
                                          const std::string& gate_order, bool store_tanh,
                                          const std::string& cell_dtype) {  // -> hidden, cell [B, C, H, W]
  ConvLstmArguments a = checked("conv_lstm_cell", gates, hidden_gates, cell, gate_order, store_tanh, cell_dtype);
  const std::vector<int64_t> sizes(a.size, a.size + 4);
  const bool channels_last = is_channels_last(gates);
  Tensor hidden = empty_with_layout(sizes, gates.scalar_type(), gates, channels_last);
  Tensor next_cell = empty_with_layout(sizes, scalar_type(a.cell_dtype), gates, channels_last);
  if (hidden.numel() == 0) return {hidden, next_cell};
  a.hidden = operand_of(hidden);
  a.next_cell = operand_of(next_cell);
  merge_dimensions(&a);
  PYPOSEEXT_LAUNCH(conv_lstm_cell, gates, a);
  return {hidden, next_cell};
}

std::tuple<Tensor, Tensor> conv_lstm_cell_backward(const std::optional<Tensor>& gradient_hidden,  // [B, C, H, W], or none for 0
                                                   const std::optional<Tensor>& gradient_cell,    // [B, C, H, W], or none for 0
                                                   const Tensor& gates, const std::optional<Tensor>& hidden_gates,
                                                   const std::optional<Tensor>& cell, const std::string& gate_order, bool store_tanh,
                                                   const std::string& cell_dtype) {  // -> of gates and hidden_gates; of cell, [0] without one
  const char* op = "conv_lstm_cell_backward";
  ConvLstmArguments a = checked(op, gates, hidden_gates, cell, gate_order, store_tanh, cell_dtype);
  if (gradient_hidden.has_value()) {
    check_gradient(op, "gradient_hidden", *gradient_hidden, a, a.dtype, gates);
    a.gradient_hidden = operand_of(*gradient_hidden);
  }
  if (gradient_cell.has_value()) {
    check_gradient(op, "gradient_cell", *gradient_cell, a, a.cell_dtype, gates);
    a.gradient_next_cell = operand_of(*gradient_cell);
  }
  const ScalarType cell_type = scalar_type(a.cell_dtype);
  Tensor of_gates = empty_with_layout({gates.size(0), gates.size(1), gates.size(2), gates.size(3)}, gates.scalar_type(), gates, is_channels_last(gates));
  Tensor of_cell = cell.has_value() ? empty_with_layout({a.size[0], a.size[1], a.size[2], a.size[3]}, cell_type, gates, is_channels_last(*cell))
                                    : empty_with_layout({0}, cell_type, gates, false);
  if (of_gates.numel() == 0) return {of_gates, of_cell};
  a.gradient_gates = operand_of(of_gates, a.size[1] * of_gates.stride(1));
  if (cell.has_value()) a.gradient_cell = operand_of(of_cell);
  merge_dimensions(&a);
  PYPOSEEXT_LAUNCH(conv_lstm_cell_backward, gates, a);
  return {of_gates, of_cell};
}

}  // namespace pyposeext

PYPOSEEXT_OP(conv_lstm_cell, "(Tensor gates, Tensor? hidden_gates, Tensor? cell, str gate_order, bool store_tanh, str cell_dtype) -> (Tensor, Tensor)");
PYPOSEEXT_OP(conv_lstm_cell_backward,
             "(Tensor? gradient_hidden, Tensor? gradient_cell, Tensor gates, Tensor? hidden_gates, Tensor? cell, str gate_order, "
             "bool store_tanh, str cell_dtype) -> (Tensor, Tensor)");
