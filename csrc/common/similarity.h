// The similarities that suppression compares with its threshold, each written once for the CPU's vectors and a GPU's scalars.
// Products are never fused with sums here: rounding decides ties.
#pragma once
#include <type_traits>

#include "common/numeric.h"
#include "ops/nms.h"
#include "ops/oks_nms.h"
#include "ops/tube_nms.h"
#if !defined(__CUDACC__)
#include "common/vector_math.h"
#endif

namespace pyposeext {
inline namespace PYPOSEEXT_LEVEL {

// The vocabulary of the formulas: V is a scalar A on a GPU and a vector of A on the CPU. Lanes are bits, and a scalar has one.
template <typename A> PYPOSEEXT_HOST_DEVICE A larger(A a, A b) { return a > b ? a : b; }  // b where a is NaN
template <typename A> PYPOSEEXT_HOST_DEVICE A smaller(A a, A b) { return a < b ? a : b; }
template <typename A> PYPOSEEXT_HOST_DEVICE uint32_t lanes_greater(A a, A b) { return a > b ? 1 : 0; }

template <typename V, typename A> PYPOSEEXT_HOST_DEVICE V read(const A* from) {
  if constexpr (std::is_same_v<V, A>) return *from;
#if !defined(__CUDACC__)
  else return load_vector(from);
#endif
}

template <typename V, typename A> PYPOSEEXT_HOST_DEVICE V spread(A value) {
  if constexpr (std::is_same_v<V, A>) return value;
#if !defined(__CUDACC__)
  else return broadcast(value);
#endif
}

template <typename V> PYPOSEEXT_HOST_DEVICE V exact_product(V a, V b) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<V, float>)
    return __fmul_rn(a, b);
  else
    return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

template <typename V> PYPOSEEXT_HOST_DEVICE V exponential(V x) {  // of x <= 0
#if !defined(__CUDACC__)
  if constexpr (!std::is_floating_point_v<V>) return exp_nonpositive(x);
  else
#endif
  return exp(x);
}

// The area that two boxes share. A box is four fields, x1, y1, x2, y2; `plus` is added to every width and height.
template <typename V, typename A>
PYPOSEEXT_HOST_DEVICE V shared_area(const A* row, int64_t row_stride, const A* column, int64_t column_stride, A plus) {
  const V left = larger(spread<V>(row[0]), read<V>(column));
  const V top = larger(spread<V>(row[row_stride]), read<V>(column + column_stride));
  const V right = smaller(spread<V>(row[2 * row_stride]), read<V>(column + 2 * column_stride));
  const V bottom = smaller(spread<V>(row[3 * row_stride]), read<V>(column + 3 * column_stride));
  const V zero = spread<V>(A(0)), extra = spread<V>(plus);
  return exact_product(larger(right - left + extra, zero), larger(bottom - top + extra, zero));
}

// Intersection over union. Fields of an entry: x1, y1, x2, y2, area.
template <typename T> struct BoxSimilarity {
  using Value = Accumulate<T>;
  const T* boxes;
  int64_t stride[2];
  Value threshold;

  explicit BoxSimilarity(const NmsArguments& a)
      : boxes(static_cast<const T*>(a.boxes)), stride{a.box_stride[0], a.box_stride[1]}, threshold(threshold_as<Value>(a.suppression.threshold)) {}

  PYPOSEEXT_HOST_DEVICE int64_t fields() const { return 5; }

  PYPOSEEXT_HOST_DEVICE void gather(int64_t entry, Value* to, int64_t to_stride) const {
    Value box[4];
    for (int i = 0; i < 4; ++i) to[i * to_stride] = box[i] = load(boxes[entry * stride[0] + i * stride[1]]);
    to[4 * to_stride] = exact_product(box[2] - box[0], box[3] - box[1]);
  }

  // Which of the wanted lanes of `column` the entry `row` suppresses; the other lanes of the result mean nothing.
  template <typename V>
  PYPOSEEXT_HOST_DEVICE uint32_t suppressed(const Value* row, int64_t row_stride, const Value* column, int64_t column_stride, uint32_t wanted) const {
    const V overlap = shared_area<V>(row, row_stride, column, column_stride, Value(0));
    const V whole = spread<V>(row[4 * row_stride]) + read<V>(column + 4 * column_stride) - overlap;
    // A quotient above the threshold is only possible where the overlap is at least threshold * whole, and rounding keeps
    // that order. So the division is made where it can matter, and its own rounding still decides.
    const Value bound = threshold > Value(0) ? threshold : Value(0);
    if ((~lanes_greater(spread<V>(bound) * whole, overlap) & wanted) == 0) return 0;
    return lanes_greater(overlap / whole, spread<V>(threshold));
  }
};

// The mean over the frames of intersection over union; a frame whose union is not above 0 counts as 0. Fields of an entry:
// x1, y1, x2, y2, area of every frame.
template <typename T> struct TubeSimilarity {
  using Value = Accumulate<T>;
  const T* tubes;
  int64_t stride[3];
  int64_t frames;
  Value plus;
  Value threshold;

  explicit TubeSimilarity(const TubeNmsArguments& a)
      : tubes(static_cast<const T*>(a.tubes)),
        stride{a.tube_stride[0], a.tube_stride[1], a.tube_stride[2]},
        frames(a.frames),
        plus(a.plus_one ? Value(1) : Value(0)),
        threshold(threshold_as<Value>(a.suppression.threshold)) {}

  PYPOSEEXT_HOST_DEVICE int64_t fields() const { return 5 * frames; }

  PYPOSEEXT_HOST_DEVICE void gather(int64_t entry, Value* to, int64_t to_stride) const {
    for (int64_t t = 0; t < frames; ++t, to += 5 * to_stride) {
      Value box[4];
      for (int i = 0; i < 4; ++i) to[i * to_stride] = box[i] = load(tubes[entry * stride[0] + t * stride[1] + i * stride[2]]);
      to[4 * to_stride] = exact_product(box[2] - box[0] + plus, box[3] - box[1] + plus);
    }
  }

  template <typename V>
  PYPOSEEXT_HOST_DEVICE uint32_t suppressed(const Value* row, int64_t row_stride, const Value* column, int64_t column_stride, uint32_t wanted) const {
    const V zero = spread<V>(Value(0));
    const Value needed = threshold * Value(frames);
    V sum = zero;
    for (int64_t t = 0; t < frames; ++t, row += 5 * row_stride, column += 5 * column_stride) {
      const V overlap = shared_area<V>(row, row_stride, column, column_stride, plus);
      if (lanes_greater(overlap, zero) & wanted) {
        const V whole = spread<V>(row[4 * row_stride]) + read<V>(column + 4 * column_stride) - overlap;
        sum = sum + (whole > zero ? overlap / whole : zero);
      }
      // No frame adds more than 1; the factor is for the rounding of the sum.
      const V possible = (sum + spread<V>(Value(frames - 1 - t))) * spread<V>(Value(1) + Value(frames) * Value(1e-6));
      if ((lanes_greater(possible, spread<V>(needed)) & wanted) == 0) return 0;
    }
    return lanes_greater(sum / spread<V>(Value(frames)), spread<V>(threshold));
  }
};

// Object keypoint similarity, the mean over the joints of exp(-d^2 / (2 sigma)^2 / mean area / 2). Fields of an entry: area;
// x, y and, where joints are filtered, score of every joint.
template <typename T> struct OksSimilarity {
  using Value = Accumulate<T>;
  const T* keypoints;
  int64_t stride[3];
  int64_t joints;
  const Value *areas, *sigmas;
  JointFilter filter;
  Value visible_above, threshold;

  explicit OksSimilarity(const OksNmsArguments& a)
      : keypoints(static_cast<const T*>(a.keypoints)),
        stride{a.keypoint_stride[0], a.keypoint_stride[1], a.keypoint_stride[2]},
        joints(a.joints),
        areas(static_cast<const Value*>(a.areas)),
        sigmas(static_cast<const Value*>(a.sigmas)),
        filter(a.filter),
        visible_above(threshold_as<Value>(a.visible_above)),
        threshold(threshold_as<Value>(a.suppression.threshold)) {}

  PYPOSEEXT_HOST_DEVICE int64_t fields_of_joint() const { return filter == JointFilter::none ? 2 : 3; }
  PYPOSEEXT_HOST_DEVICE int64_t fields() const { return 1 + fields_of_joint() * joints; }

  PYPOSEEXT_HOST_DEVICE void gather(int64_t entry, Value* to, int64_t to_stride) const {
    *to = areas[entry];
    for (int64_t k = 0; k < joints; ++k)
      for (int64_t i = 0; i < fields_of_joint(); ++i) *(to += to_stride) = load(keypoints[entry * stride[0] + k * stride[1] + i * stride[2]]);
  }

  template <typename V>
  PYPOSEEXT_HOST_DEVICE uint32_t suppressed(const Value* row, int64_t row_stride, const Value* column, int64_t column_stride, uint32_t wanted) const {
    const V zero = spread<V>(Value(0)), one = spread<V>(Value(1));
    const V area = (spread<V>(row[0]) + read<V>(column)) * spread<V>(Value(0.5)) + spread<V>(Value(2.220446049250313e-16));
    V sum = zero, count = zero;
    row += row_stride;
    column += column_stride;
    for (int64_t k = 0; k < joints; ++k, row += fields_of_joint() * row_stride, column += fields_of_joint() * column_stride) {
      const V x = read<V>(column) - spread<V>(row[0]), y = read<V>(column + column_stride) - spread<V>(row[row_stride]);
      const Value width = Value(2) * sigmas[k];
      const V exponent = (exact_product(x, x) + exact_product(y, y)) / spread<V>(exact_product(width, width)) / area * spread<V>(Value(0.5));
      const V similarity = exponential(-larger(zero, exponent));  // negative only where the areas are
      if (filter == JointFilter::none) {
        sum = sum + similarity;
        count = count + one;
      } else {
        const V seen = read<V>(column + 2 * column_stride), limit = spread<V>(visible_above);
        const V weight = filter == JointFilter::both && !(row[2 * row_stride] > visible_above) ? zero : (seen > limit ? one : zero);
        sum = sum + (weight > zero ? similarity : zero);
        count = count + weight;
      }
      if (k + 1 == joints) break;
      // The mean would be largest with ones for all joints to come; the factor is for the rounding of the sum.
      const V rest = spread<V>(Value(joints - 1 - k)), possible = (sum + rest) * spread<V>(Value(1) + Value(joints) * Value(1e-6));
      if ((lanes_greater(possible, spread<V>(threshold) * (count + rest)) & wanted) == 0) return 0;
    }
    return lanes_greater(count > zero ? sum / count : zero, spread<V>(threshold));
  }
};

}  // inline namespace PYPOSEEXT_LEVEL
}  // namespace pyposeext
